"""Super-resolved images beside their originals, in numbers and in pictures."""

from __future__ import annotations

import math

import numpy as np

from flowmatch_jax.arrays import Array
from flowmatch_jax.data.conditioning import Conditioning
from flowmatch_jax.data.images.resolution import resize
from flowmatch_jax.metrics.similarity import RADIUS, psnr, ssim
from flowmatch_jax.pixels import centres

SCORES = ("psnr", "ssim", "consistency")


def pair_scores(conditioning: Conditioning, images: Array, originals: np.ndarray) -> np.ndarray:
    """PSNR, SSIM and consistency of each image, [N, 3] float64.

    Consistency is the mean squared error, in grey levels, of the image reduced to low resolution
    against the low resolution it was made from, as SR3 has it. SSIM is nan for images that are
    smaller than its window.

    Args:
        images, originals: integers [N, H, W, C].
    """
    images = np.asarray(images)
    peak = conditioning.levels - 1
    error = conditioning.reduce(images) - conditioning.reduce(originals)
    consistency = np.mean(np.asarray(error, np.float64) ** 2, axis=(1, 2, 3))
    small = min(images.shape[1:3]) <= 2 * RADIUS
    likeness = np.full(len(images), np.nan) if small else ssim(images, originals, peak)
    return np.stack([psnr(images, originals, peak), likeness, consistency], axis=1)


def summary(scores: np.ndarray) -> dict[str, float | None]:
    """Means over images of `pair_scores`, with standard errors; consistency as its square root.

    PSNR is None where an image equals its original, and SSIM where it was not measured.
    """
    found: dict[str, float | None] = {}
    for name, values in zip(("psnr", "ssim"), scores.T, strict=False):
        known = bool(np.isfinite(values).all())
        error = values.std(ddof=1) / math.sqrt(len(values)) if known else None
        found[name] = float(values.mean()) if known else None
        found[f"{name}_standard_error"] = error and float(error)
    return found | {"consistency_rmse": math.sqrt(scores[:, 2].mean())}


def side_by_side(
    conditioning: Conditioning, originals: np.ndarray, **made: np.ndarray
) -> dict[str, np.ndarray]:
    """Rows of a picture, each [N, H, W, C] in model space: what was given, what was made of it.

    Args:
        originals: integers [N, H, W, C].
        **made: label -> what a method made of their low resolution, in model space.
    """
    sides, levels = originals.shape[1:3], conditioning.levels
    low = conditioning.reduce(originals)
    rows = {
        "low resolution": centres(resize(low, sides, "box"), levels),
        "bicubic": conditioning.enlarge(low, sides),
        **made,
        "original": centres(originals, levels),
    }
    return {label: np.asarray(x) for label, x in rows.items()}
