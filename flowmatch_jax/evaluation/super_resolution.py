"""Comparison of super-resolved images with their originals, by metrics and in pictures."""

from __future__ import annotations

import math

import numpy as np

from flowmatch_jax.arrays import Array
from flowmatch_jax.data.conditioning import Conditioning
from flowmatch_jax.data.images.resolution import resize
from flowmatch_jax.metrics.similarity import RADIUS, mean_and_error, psnr, ssim
from flowmatch_jax.pixels import centres

SCORES = ("psnr", "ssim", "consistency")


def pair_scores(conditioning: Conditioning, images: Array, originals: np.ndarray) -> np.ndarray:
    """Compute PSNR, SSIM and consistency of each image, [N, 3] float64.

    Consistency, as in SR3, is the mean squared error in squared grey levels between the downscaled
    image and the low-resolution input. SSIM is NaN for images smaller than its window.

    Args:
        conditioning: the conditioning of the model.
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
    """Average `pair_scores` over images, with standard errors; consistency becomes an RMSE.

    PSNR is None if an image equals its original; SSIM is None if it was not measured.
    """
    found = mean_and_error("psnr", scores[:, 0]) | mean_and_error("ssim", scores[:, 1])
    return found | {"consistency_rmse": math.sqrt(scores[:, 2].mean())}


def side_by_side(
    conditioning: Conditioning, originals: np.ndarray, **made: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the rows of a picture by label, each [N, H, W, C] in model space.

    The rows are the low resolution, its bicubic enlargement, ``made``, and the originals.

    Args:
        conditioning: the conditioning of the model.
        originals: integers [N, H, W, C].
        **made: label -> a method's super-resolved images in model space.
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
