"""PNG files of samples: grids of images, heat maps of points."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from flowmatch_jax.pixels import as_bytes, quantise


def to_uint8(x: np.ndarray, levels: int) -> np.ndarray:
    """Quantise images in model space [-1, 1] to the data's levels, scaled to uint8 0 .. 255."""
    return np.asarray(as_bytes(quantise(x, levels), levels))


def image_grid(images: np.ndarray, columns: int | None = None, gap: int = 1) -> np.ndarray:
    """Arrange uint8 images [N, H, W, C] in a grid, uint8 [H', W', C].

    Args:
        images: the images.
        columns: images per row; None: a nearly square grid.
        gap: white pixels between images.
    """
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    padded = np.pad(images, ((0, rows * columns - n), (0, gap), (0, gap), (0, 0)))
    padded[:, height:], padded[:, :, width:], padded[n:] = 255, 255, 255
    tiles = padded.reshape(rows, columns, height + gap, width + gap, channels)
    grid = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * (height + gap), -1, channels)
    return grid[: grid.shape[0] - gap, : grid.shape[1] - gap]


def save_images(path: Path, x: np.ndarray, levels: int, columns: int | None = None) -> None:
    """Write images in model space [N, H, W, 1 or 3] as a PNG grid; small images are enlarged."""
    images = to_uint8(x, levels)
    zoom = max(1, 32 // images.shape[1])
    grid = image_grid(images.repeat(zoom, axis=1).repeat(zoom, axis=2), columns, gap=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid[:, :, 0] if grid.shape[-1] == 1 else grid).save(path)


def count_points(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Count points [N, D] in the cells of a square, [rows, columns], rows from low to high y.

    Of more than two coordinates, the first two count. A single one gives equal rows.

    Args:
        x: the points.
        edges: the edges of the cells, along both sides of the square.
    """
    if x.shape[1] == 1:
        counts, _ = np.histogram(x, bins=edges)
        return np.tile(counts, (len(counts), 1))
    return np.histogram2d(x[:, 1], x[:, 0], bins=(edges, edges))[0]


def save_points(path: Path, x: np.ndarray, bins: int = 100) -> None:
    """Write points [N, D] as a PNG heat map of a square that holds 99% of each coordinate.

    It shows the coordinates that `count_points` counts. Points that are not finite are ignored.
    """
    x = x[np.isfinite(x).all(axis=1), :2]
    if len(x) == 0:
        x = np.zeros((1, x.shape[1]))
    reach = 1.1 * np.quantile(np.abs(x), 0.99) + 1e-6
    edges = np.linspace(-reach, reach, bins + 1)
    counts = count_points(x, edges)[::-1]
    brightness = counts / max(np.quantile(counts[counts > 0], 0.99), 1)
    pixels = (255 * np.clip(1 - brightness, 0, 1)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((4 * bins, 4 * bins), Image.Resampling.NEAREST).save(path)
