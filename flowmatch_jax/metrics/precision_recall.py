"""Precision and recall of samples by nearest neighbours in feature space; float64 on the host.

Kynkäänniemi et al., Improved Precision and Recall Metric for Assessing Generative Models (2019).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from flowmatch_jax.metrics.frechet import checked_pair
from flowmatch_jax.runtime.errors import at_least

BLOCK = 2048  # rows and columns of a block of the distance matrix, which bound the memory in use


class PrecisionRecall(NamedTuple):
    """Precision and recall, fractions in [0, 1]."""

    precision: float
    recall: float


def precision_recall(samples: np.ndarray, data: np.ndarray, k: int = 3) -> PrecisionRecall:
    """Compute the fraction of samples in the data's manifold, and of data in the samples' manifold.

    The manifold of a set is the union of closed balls around its features. The radius of a ball is
    the distance to the k-th nearest other feature of the set.

    Args:
        samples, data: features [N, D] and [M, D]. Both fractions depend on N and M (the paper uses
            50,000 of each), so only values with equal N and M are comparable.
        k: rank of the neighbour that sets the radius.

    Raises:
        UserError: there are k features or fewer, or the features have different sizes or are not
            finite.
    """
    at_least("k", k, 1)
    samples, data = checked_pair(("samples", samples), ("data", data), least=k + 1)
    return PrecisionRecall(
        precision=_fraction_within(samples, data, k), recall=_fraction_within(data, samples, k)
    )


def _fraction_within(x: np.ndarray, centres: np.ndarray, k: int) -> float:
    """Compute the fraction of x that lies in any of the balls around the centres."""
    radii = np.concatenate([_kth_nearest(rows, centres, k) for rows in _blocks(centres)])
    return float(np.mean(np.concatenate([_within(rows, centres, radii) for rows in _blocks(x)])))


def _kth_nearest(rows: np.ndarray, x: np.ndarray, k: int) -> np.ndarray:
    """Compute the squared distance of each row, itself in x, to its k-th nearest other row of x."""
    nearest = np.full((len(rows), k + 1), np.inf)  # includes each row itself, at distance 0
    for columns in _blocks(x):
        distances = np.concatenate([nearest, _squared_distances(rows, columns)], axis=1)
        nearest = np.partition(distances, k, axis=1)[:, : k + 1]
    return nearest[:, k]


def _within(rows: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Test whether each row is in any of the balls; radii are squared."""
    inside = np.zeros(len(rows), bool)
    for columns, radius in zip(_blocks(centres), _blocks(radii), strict=True):
        inside |= (_squared_distances(rows, columns) <= radius).any(axis=1)
    return inside


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute ||x_i - y_j||^2, set to exactly zero where it is zero up to rounding."""
    squares = np.sum(x * x, axis=1)[:, None] + np.sum(y * y, axis=1)
    distances = squares - 2 * x @ y.T
    rounding = x.shape[1] * np.finfo(np.float64).eps * squares
    return np.where(distances > rounding, distances, 0)


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    return (x[i : i + BLOCK].astype(np.float64) for i in range(0, len(x), BLOCK))
