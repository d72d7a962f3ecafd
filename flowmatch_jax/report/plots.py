"""Matplotlib figures as PNG files: curves, fields, trajectories, densities, rows of samples.

The functions take arrays and a path and do not depend on runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowmatch_jax.evaluation.pictures import count_points, image_grid, to_uint8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110

# {label: (x, y)}, points in the order in which they are connected
Curves = dict[str, tuple[Sequence[float], Sequence[float]]]


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure of this size in inches."""
    # Imported here: matplotlib takes more than a second to load, and training draws nothing by it.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, creating its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, bbox_inches="tight")


def save_curves(
    path: Path, curves: Curves, x_label: str, y_label: str, log_y: bool = False
) -> None:
    """Draw one line per label, with gaps where values are not finite."""
    figure = new_figure(4.8, 3.4)
    axes = figure.subplots()
    for label, (x, y) in curves.items():
        axes.plot(np.asarray(x, float), np.asarray(y, float), marker="o", ms=3, lw=1.2, label=label)
    axes.set(xlabel=x_label, ylabel=y_label)
    if log_y:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def save_fields(
    path: Path,
    fields: dict[str, list[tuple[float, np.ndarray, np.ndarray]]],
    trajectories: dict[str, np.ndarray],
    target: np.ndarray,
) -> None:
    """Draw a row per label: the field at some times, then trajectories to the target point.

    Args:
        path: path of the PNG.
        fields: label -> [(t, positions [N, 2], velocities [N, 2])]; arrows have unit length, and
            their colour shows the speed.
        trajectories: label -> [N, T, 2].
        target: target point [2].
    """
    columns = 1 + max(len(row) for row in fields.values())
    figure = new_figure(2.3 * columns, 2.4 * len(fields))
    grid = figure.subplots(len(fields), columns, squeeze=False)
    for axes_row, (label, row) in zip(grid, fields.items(), strict=True):
        for axes, (t, x, v) in zip(axes_row, row, strict=False):
            speed = np.linalg.norm(v, axis=1)
            axes.quiver(*x.T, *(v / (speed[:, None] + 1e-12)).T, speed, cmap="viridis", scale=22)
            axes.set_title(f"t = {t:.2f}", fontsize=8)
        for line in trajectories[label]:
            axes_row[-1].plot(*line.T, lw=0.9)
        axes_row[0].set_ylabel(label)
        for axes in axes_row:
            axes.plot(*target, "r*", ms=6)
            _bare(axes)
    save_figure(figure, path)


def save_point_rows(
    path: Path, rows: dict[str, dict[str, np.ndarray]], reach: float, bins: int = 120
) -> None:
    """Draw heat maps of points in the square [-reach, reach]^2, as `count_points` counts them.

    Args:
        path: path of the PNG.
        rows: row label -> {column label: points [N, D]}.
        reach: half the side of the square.
        bins: bins per side.
    """
    columns = max(len(row) for row in rows.values())
    figure = new_figure(2.0 * columns, 2.1 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    edges = np.linspace(-reach, reach, bins + 1)
    for axes_row, (label, row) in zip(grid, rows.items(), strict=True):
        for axes in axes_row[len(row) :]:
            axes.axis("off")
        for axes, (title, x) in zip(axes_row, row.items(), strict=False):
            counts = count_points(x, edges)
            brightest = max(np.quantile(counts, 0.99), 1)
            axes.imshow(counts, origin="lower", extent=(-reach, reach) * 2, vmax=brightest)
            axes.set_title(title, fontsize=8)
            _bare(axes)
        axes_row[0].set_ylabel(label)
    save_figure(figure, path)


def save_image_rows(path: Path, rows: dict[str, np.ndarray], levels: int) -> None:
    """Draw a row of images in model space [N, H, W, 1 or 3] per label, at full resolution."""
    images = {label: to_uint8(x, levels) for label, x in rows.items()}
    n, height, width, _ = next(iter(images.values())).shape
    across = max(6, n * (width + 1) / DPI)
    figure = new_figure(across, max(0.6, across * height / (n * width)) * len(rows))
    for axes, (label, row) in zip(
        figure.subplots(len(rows), 1, squeeze=False)[:, 0], images.items(), strict=True
    ):
        axes.imshow(image_grid(row, len(row)), cmap="gray", interpolation="nearest")
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        _bare(axes)
    save_figure(figure, path)


def save_trajectories(path: Path, trajectories: np.ndarray) -> None:
    """Draw lines [N, T, D] from their start points (hollow) to end points (filled).

    Of more than two coordinates, the first two are drawn, and a single one over the T states.
    """
    lines = trajectories[..., :2]
    if lines.shape[-1] == 1:
        states = np.broadcast_to(np.arange(lines.shape[1])[:, None], lines.shape)
        lines = np.concatenate([states, lines], axis=-1)
    figure = new_figure(4, 4)
    axes = figure.subplots()
    for line in lines:
        axes.plot(*line.T, lw=0.6, color="0.6", zorder=1)
    axes.scatter(*lines[:, 0].T, s=8, facecolors="none", edgecolors="C0", label="start")
    axes.scatter(*lines[:, -1].T, s=8, color="C3", label="samples")
    axes.set_aspect("equal" if trajectories.shape[-1] > 1 else "auto")
    axes.legend(fontsize=8)
    save_figure(figure, path)


def save_density(path: Path, density: np.ndarray, reach: float) -> None:
    """Draw a density [rows, columns] on the square [-reach, reach]^2, rows from low to high y.

    The colour scale ends at the 99th percentile, so that a few failed solves do not dominate it.
    """
    figure = new_figure(4.6, 4)
    axes = figure.subplots()
    brightest = np.nanquantile(density, 0.99)
    image = axes.imshow(density, origin="lower", extent=(-reach, reach) * 2, vmax=brightest)
    figure.colorbar(image, ax=axes, label="density")
    save_figure(figure, path)


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
