"""The Fréchet distance between two Gaussians and the moments it needs; float64 on the host.

Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium
(2017). With Inception features it is the FID; with other features it is named after them.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowmatch_jax.runtime.errors import UserError

LARGEST = 2**30  # bytes of moments accepted from a file: a covariance of 11,585 features


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of features, [D] and [D, D], float64.

    Attributes:
        count: number of features; None where it is unknown, as for published statistics.
        mean: mean of the features.
        cov: covariance of the features, divided by count - 1; zero for fewer than two features.
    """

    count: int | None
    mean: np.ndarray
    cov: np.ndarray

    @classmethod
    def empty(cls, dims: int) -> Moments:
        """Return the moments of an empty set of features."""
        return cls(0, np.zeros(dims), np.zeros((dims, dims)))

    def add(self, features: np.ndarray) -> Moments:
        """Return the moments with further features [N, D] included.

        Raises:
            UserError: the features have another size or are not finite, or the count is unknown.
        """
        features = np.asarray(checked("features", features, least=0), np.float64)
        if features.shape[1:] != self.mean.shape:
            raise UserError("features", features.shape, f"they must be [N, {len(self.mean)}]")
        if len(features) == 0:
            return self
        mean = features.mean(axis=0)
        deviations = features - mean
        cov = deviations.T @ deviations / max(len(features) - 1, 1)
        return self.merge(Moments(len(features), mean, cov))

    def merge(self, other: Moments) -> Moments:
        """Return the moments of the union of both sets of features (Chan et al., 1979).

        The order matters only through rounding.

        Raises:
            UserError: the features have different sizes, or a count is unknown.
        """
        if self.count is None or other.count is None:
            raise UserError("count", None, "moments of unknown counts cannot be merged")
        if other.mean.shape != self.mean.shape:
            raise UserError("other", other.mean.shape, f"its mean must be {self.mean.shape}")
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
        """Write mu, sigma and, where it is known, count to an npz file."""
        count = {} if self.count is None else {"count": self.count}
        np.savez(path, mu=self.mean, sigma=self.cov, **count)

    @classmethod
    def load(cls, path: Path) -> Moments:
        """Read mu, sigma and count from an npz file, ignoring all other arrays.

        The statistics that pytorch-fid, clean-fid, EDM and ADM publish (ADM's also hold spatial
        statistics and images) have no count; it becomes None.

        Raises:
            UserError: the file is missing, truncated, not an npz, or lacks mu or sigma.
        """
        try:
            with np.lib.npyio.NpzFile(path) as file:
                size = sum(
                    entry.file_size
                    for entry in file.zip.infolist()
                    if entry.filename.removesuffix(".npy") in ("mu", "sigma", "count")
                )
                if size > LARGEST:
                    allowed = f"it cannot be read: it unpacks to {size:,} bytes, over {LARGEST:,}"
                    raise UserError("path", str(path), allowed)
                arrays = {name: file[name] for name in ("mu", "sigma", "count") if name in file}
                held = {name: arrays[name].shape if name in arrays else "" for name in file.files}
        except UserError:
            raise
        except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as why:
            raise UserError("path", str(path), f"it cannot be read as an npz file: {why}") from why
        if not _are_moments(**arrays):
            names = ", ".join(f"{name} {shape}".strip() for name, shape in held.items())
            wanted = "mu [D] and sigma [D, D], finite, and a number as count if any"
            raise UserError("path", str(path), f"it must hold {wanted}; it holds {names or 'none'}")
        count = int(arrays["count"]) if "count" in arrays else None
        return cls(count, arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Compute ||mu_a - mu_b||^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2).

    Roots are taken of symmetric matrices only, by eigendecomposition, so that singular covariances
    (fewer features than dimensions) are handled. An unknown count (None) is assumed to suffice.
    The estimate is biased upwards by about a constant divided by the number of features.

    Raises:
        UserError: there are fewer than two features, or features have different sizes.
    """
    for name, moments in (("a", a), ("b", b)):
        if moments.count is not None and moments.count < 2:
            raise UserError(name, moments.count, "a covariance takes two features or more")
    if a.mean.shape != b.mean.shape:
        raise UserError("b", b.mean.shape, f"its features must be like a's, {a.mean.shape}")
    # The trace of the last root is the sum of the singular values of S_a^1/2 S_b^1/2. This avoids
    # the rounding error of taking the root of a product.
    overlap = np.linalg.svd(_root(a.cov) @ _root(b.cov), compute_uv=False).sum()
    difference = a.mean - b.mean
    distance = difference @ difference + np.trace(a.cov) + np.trace(b.cov) - 2 * overlap
    return max(0.0, float(distance))  # for equal moments, rounding may leave a negative number


def _root(cov: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(cov)
    # The root of an eigenvalue that is zero up to rounding would be 1e-8, far from zero.
    rounding = len(cov) * np.finfo(np.float64).eps * np.abs(values).max()
    return (vectors * np.sqrt(np.where(values > rounding, values, 0))) @ vectors.T


def _are_moments(mu: Any = None, sigma: Any = None, count: Any = 2) -> bool:
    mu, sigma, count = (np.asarray(x) for x in (mu, sigma, count))
    shapes = len(mu.shape) == 1 and mu.size > 0 and sigma.shape == 2 * mu.shape and not count.shape
    numbers = all(x.dtype.kind in "fiu" for x in (mu, sigma, count))
    return shapes and numbers and all(np.isfinite(x).all() for x in (mu, sigma, count))


def checked(name: str, values: np.ndarray, shape: str = "[N, D]", least: int = 1) -> np.ndarray:
    """Check that ``values`` have the given shape and are finite; returns them as an array.

    Raises:
        UserError: the number of axes differs, the first axis is shorter than ``least``, or a value
            is not finite.
    """
    values = np.asarray(values)
    if values.ndim != shape.count(",") + 1 or 0 in values.shape[1:]:
        raise UserError(name, values.shape, f"its shape must be {shape}")
    if len(values) < least:
        raise UserError(name, values.shape, f"N must be {least} or more")
    unusable = values.size - np.count_nonzero(np.isfinite(values))
    if unusable:
        raise UserError(name, f"{unusable} values that are NaN or infinite", "all must be finite")
    return values


def checked_pair(
    a: tuple[str, np.ndarray], b: tuple[str, np.ndarray], least: int
) -> tuple[np.ndarray, np.ndarray]:
    """Apply `checked` to two named sets of features, [N, D] and [M, D], and compare their D."""
    x, y = checked(*a, least=least), checked(*b, least=least)
    if x.shape[1] != y.shape[1]:
        raise UserError(b[0], y.shape, f"its D must be that of {a[0]}, {x.shape[1]}")
    return x, y
