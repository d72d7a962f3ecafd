"""Similarity of pairs of images, PSNR and SSIM; float64 on the host.

Images are integers [N, H, W, C] in [0, peak]: callers quantise samples with `pixels.quantise`
first, so that a metric describes the images as they would be saved. Floating-point images are not
rounded.
"""

from __future__ import annotations

import math

import numpy as np

from flowmatch_jax.metrics.frechet import checked
from flowmatch_jax.runtime.errors import UserError

RADIUS = 5  # SSIM's window is 11 pixels wide
SIGMA = 1.5  # standard deviation of the window in pixels
K1, K2 = 0.01, 0.03


def psnr(a: np.ndarray, b: np.ndarray, peak: float = 255) -> np.ndarray:
    """Compute 10 log10(peak^2 / mean of (a - b)^2) for each image, in decibels.

    Args:
        a, b: images [N, H, W, C].
        peak: the largest possible pixel value, levels - 1.

    Returns:
        [N]; infinite for equal images, which also makes the mean over images infinite.

    Raises:
        UserError: there are no images, the shapes differ, or a value is not finite.
    """
    a, b = _checked(a, b)
    errors = np.array([np.mean((x.astype(np.float64) - y) ** 2) for x, y in zip(a, b, strict=True)])
    with np.errstate(divide="ignore"):
        return 10 * np.log10(peak**2 / errors)


def ssim(a: np.ndarray, b: np.ndarray, peak: float = 255) -> np.ndarray:
    """Compute the structural similarity of each pair of images, in [-1, 1].

    Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity (2004):
    (2 mu_x mu_y + C_1)(2 cov_xy + C_2) / ((mu_x^2 + mu_y^2 + C_1)(var_x + var_y + C_2)), averaged
    over channels and all windows that lie within the image. The moments are population moments in
    a Gaussian window of 11 x 11 pixels with sigma 1.5. The value equals scikit-image's with
    gaussian_weights, sigma=1.5 and use_sample_covariance=False; torchmetrics also averages windows
    that cross the border, over reflected images.

    Args:
        a, b: images [N, H, W, C], 11 x 11 or larger.
        peak: the largest possible pixel value, levels - 1.

    Returns:
        [N]; 1 for equal images.

    Raises:
        UserError: there are no images, the shapes differ, the images are smaller than the window,
            or a value is not finite.
    """
    a, b = _checked(a, b, least=2 * RADIUS + 1)
    return np.array([_ssim(x, y, peak) for x, y in zip(a, b, strict=True)])


def mean_and_error(name: str, values: np.ndarray) -> dict[str, float | None]:
    """Average a score of images, [N], under {name, "<name>_standard_error"}.

    Both are None if a value is not finite, and the error is None for a single image.
    """
    if not np.isfinite(values).all():
        return {name: None, f"{name}_standard_error": None}
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return {name: float(values.mean()), f"{name}_standard_error": error}


def _ssim(x: np.ndarray, y: np.ndarray, peak: float) -> float:
    """Compute the structural similarity of two images [H, W, C]."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    mu_x, mu_y, xx, yy, xy = _windowed(np.stack([x, y, x * x, y * y, x * y]))
    variances, covariance = xx - mu_x**2 + yy - mu_y**2, xy - mu_x * mu_y
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    return np.mean(luminance * (2 * covariance + c2) / (variances + c2))


def _windowed(x: np.ndarray) -> np.ndarray:
    """Average x [K, H, W, C] in the Gaussian window: [K, H - 10, W - 10, C]."""
    offsets = np.arange(-RADIUS, RADIUS + 1)
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    height, width = x.shape[1] - 2 * RADIUS, x.shape[2] - 2 * RADIUS
    x = sum(w * x[:, i : i + height] for i, w in enumerate(weights))
    return sum(w * x[:, :, i : i + width] for i, w in enumerate(weights))


def _checked(a: np.ndarray, b: np.ndarray, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Check that a and b are images of one shape, ``least`` x ``least`` or larger."""
    a, b = (checked(name, images, "[N, H, W, C]") for name, images in (("a", a), ("b", b)))
    if min(a.shape[1:3]) < least:
        raise UserError("a", a.shape, f"H and W must be {least} or more")
    if a.shape != b.shape:
        raise UserError("b", b.shape, f"it must be of a's shape, {a.shape}")
    return a, b
