"""The kernel distance between two sets of features; float64 on the host.

Binkowski et al., Demystifying MMD GANs (2018). With Inception features it is the KID; with other
features it is named after them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from flowmatch_jax.metrics.frechet import checked_pair
from flowmatch_jax.runtime.errors import UserError, at_least

BLOCK = 2048  # rows and columns of a block of the kernel matrix, which bound the memory in use


class KernelDistance(NamedTuple):
    """Mean squared MMD over the subsets, and its standard error."""

    mean: float
    standard_error: float


def kernel_distance(
    a: np.ndarray, b: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Average the squared MMD over ``subsets`` pairs of random subsets, as KID is reported.

    Subsets are drawn without replacement and equal those of torch-fidelity for the same seed.
    Given the features, the subsets' values are independent with expectation `squared_mmd` of all
    features. The standard error (the deviation, divided by subsets - 1, over sqrt(subsets))
    estimates how far the mean is from that expectation; it does not include the variation between
    sets of N samples, which is larger. The std of torch-fidelity is sqrt(subsets - 1) times as
    large.

    Args:
        a, b: features [N, D] and [M, D].
        subsets: number of pairs of subsets.
        subset_size: features in each subset, at most N / 2 and M / 2: with all N features every
            subset would be the same, and the deviation 0.
        seed: seed of the subsets.

    Returns:
        The mean, which is unbiased and can be negative, and its standard error.

    Raises:
        UserError: ``subset_size`` is more than half of the features, or the features have
            different sizes or are not finite.
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
    """Estimate MMD^2 from all features: E k(x, x') + E k(y, y') - 2 E k(x, y), x != x', y != y'.

    The estimate is unbiased. The kernel is k(x, y) = (x . y / D + 1)^3; its matrix is computed in
    blocks of `BLOCK`^2.

    Args:
        a, b: features [N, D] and [M, D].

    Raises:
        UserError: there are fewer than two features, or the features have different sizes or are
            not finite.
    """
    a, b = checked_pair(("a", a), ("b", b), least=2)
    return float(_mean_of_pairs(a) + _mean_of_pairs(b) - 2 * _sum(a, b) / (len(a) * len(b)))


def _mean_of_pairs(x: np.ndarray) -> float:
    """Average k(x_i, x_j) over i != j."""
    squares = np.einsum("nd,nd->n", x, x, dtype=np.float64)
    return (_sum(x, x) - _kernel(squares, x.shape[1]).sum()) / (len(x) * (len(x) - 1))


def _sum(x: np.ndarray, y: np.ndarray) -> float:
    """Sum k(x_i, y_j) over all i and j."""
    return sum(
        _kernel(rows @ columns.T, x.shape[1]).sum() for rows in _blocks(x) for columns in _blocks(y)
    )


def _kernel(product: np.ndarray, dims: int) -> np.ndarray:
    k = product / dims + 1
    return k * k * k


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    return (x[i : i + BLOCK].astype(np.float64) for i in range(0, len(x), BLOCK))
