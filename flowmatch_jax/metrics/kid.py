"""The kernel distance of two sets of features; float64 on the host.

Binkowski et al., Demystifying MMD GANs (2018). With Inception's features it is the KID; with
others it is named for these.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from flowmatch_jax.metrics.frechet import checked_pair
from flowmatch_jax.runtime.errors import UserError, at_least

BLOCK = 2048  # rows and columns of the kernel's matrix that are in memory together


class KernelDistance(NamedTuple):
    """Mean of the subsets' squared MMD, and its standard error over subsets."""

    mean: float
    standard_error: float


def kernel_distance(
    a: np.ndarray, b: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """The mean squared MMD of ``subsets`` pairs of random subsets, as KID is reported.

    Subsets are torch-fidelity's of the same seed, each drawn without replacement. Given the
    features, their values are independent and `squared_mmd` of all features is their expectation:
    the standard error, their deviation (divided by subsets - 1) over sqrt(subsets), tells how far
    the mean may be from that. Another set of N samples would differ by more. What torch-fidelity
    calls std is sqrt(subsets - 1) times as large.

    Args:
        a, b: features [N, D] and [M, D].
        subset_size: features of each subset, N / 2 and M / 2 at most: all N of N would be the same
            subset each time, and their deviation 0.

    Returns:
        The mean, unbiased and so below zero at times, and its standard error.

    Raises:
        UserError: a ``subset_size`` of more than half, or features of different sizes, or not
            finite.
    """
    at_least("subsets", subsets, 2)
    at_least("subset_size", subset_size, 2)
    a, b = checked_pair(("a", a), ("b", b), least=2)
    half = min(len(a), len(b)) // 2
    if subset_size > half:
        raise UserError("subset_size", subset_size, f"it must be {half} at most, half the features")
    rng = np.random.RandomState(seed)

    def subset(features: np.ndarray) -> np.ndarray:
        return features[rng.choice(len(features), subset_size, replace=False)]

    values = [squared_mmd(subset(a), subset(b)) for _ in range(subsets)]
    error = np.std(values, ddof=1) / np.sqrt(subsets)
    return KernelDistance(float(np.mean(values)), float(error))


def squared_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """MMD^2 of all features, unbiased: E k(x, x') + E k(y, y') - 2 E k(x, y), x not x', y not y'.

    The kernel is k(x, y) = (x . y / D + 1)^3; its matrix is made in blocks of `BLOCK`^2.

    Args:
        a, b: features [N, D] and [M, D].

    Raises:
        UserError: fewer than two features, or of different sizes, or not finite.
    """
    a, b = checked_pair(("a", a), ("b", b), least=2)
    return float(_mean_of_pairs(a) + _mean_of_pairs(b) - 2 * _sum(a, b) / (len(a) * len(b)))


def _mean_of_pairs(x: np.ndarray) -> float:
    """Mean of k(x_i, x_j) over i != j."""
    squares = np.einsum("nd,nd->n", x, x, dtype=np.float64)
    return (_sum(x, x) - _kernel(squares, x.shape[1]).sum()) / (len(x) * (len(x) - 1))


def _sum(x: np.ndarray, y: np.ndarray) -> float:
    """Sum of k(x_i, y_j) over all i and j."""
    return sum(
        _kernel(rows @ columns.T, x.shape[1]).sum() for rows in _blocks(x) for columns in _blocks(y)
    )


def _kernel(product: np.ndarray, dims: int) -> np.ndarray:
    k = product / dims + 1
    return k * k * k


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    return (x[i : i + BLOCK].astype(np.float64) for i in range(0, len(x), BLOCK))
