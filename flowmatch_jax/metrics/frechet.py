"""The Fréchet distance of two Gaussians, and the moments it needs; float64 on the host.

Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium
(2017). With Inception's features it is the FID; with others it is named for these.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowmatch_jax.errors import UserError


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of features, [D] and [D, D], float64.

    Attributes:
        count: features seen.
        mean: their mean.
        cov: their covariance, divided by count - 1; zero for fewer than two.
    """

    count: int
    mean: np.ndarray
    cov: np.ndarray

    @classmethod
    def empty(cls, dims: int) -> Moments:
        """Of no features."""
        return cls(0, np.zeros(dims), np.zeros((dims, dims)))

    def add(self, features: np.ndarray) -> Moments:
        """With further features [N, D]."""
        features = np.asarray(features, np.float64)
        if len(features) == 0:
            return self
        mean = features.mean(axis=0)
        deviations = features - mean
        cov = deviations.T @ deviations / max(len(features) - 1, 1)
        return self.merge(Moments(len(features), mean, cov))

    def merge(self, other: Moments) -> Moments:
        """Of both sets of features together, in any order to rounding (Chan et al., 1979)."""
        count = self.count + other.count
        if count == 0:
            return self
        difference = other.mean - self.mean
        scatter = (
            self.cov * max(self.count - 1, 0)
            + other.cov * max(other.count - 1, 0)
            + np.outer(difference, difference) * (self.count * other.count / count)
        )
        mean = self.mean + difference * (other.count / count)
        return Moments(count, mean, scatter / max(count - 1, 1))

    def save(self, path: Path) -> None:
        """Write mu, sigma and count as npz."""
        np.savez(path, mu=self.mean, sigma=self.cov, count=self.count)

    @classmethod
    def load(cls, path: Path) -> Moments:
        """Read what `save` wrote."""
        with np.load(path) as saved:
            return cls(int(saved["count"]), saved["mu"], saved["sigma"])


def frechet_distance(a: Moments, b: Moments) -> float:
    """||mu_a - mu_b||^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2).

    The roots are of symmetric matrices, by eigendecomposition, so that singular covariances (fewer
    features than dimensions) do no harm.

    Raises:
        UserError: fewer than two features, or features of different sizes.
    """
    for name, moments in (("a", a), ("b", b)):
        if moments.count < 2:
            raise UserError(name, moments.count, "a covariance takes two features or more")
    if a.mean.shape != b.mean.shape:
        raise UserError("b", b.mean.shape, f"its features must be like a's, {a.mean.shape}")
    # The last trace, as the sum of singular values of S_a^1/2 S_b^1/2: so the rounding error
    # of an eigenvalue that is zero passes through no root.
    overlap = np.linalg.svd(_root(a.cov) @ _root(b.cov), compute_uv=False).sum()
    difference = a.mean - b.mean
    return float(difference @ difference + np.trace(a.cov) + np.trace(b.cov) - 2 * overlap)


def _root(cov: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
