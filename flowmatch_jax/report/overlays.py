"""Figures that compare several runs: curves on the same axes, samples in rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from flowmatch_jax.metrics.features.extractors import score_name
from flowmatch_jax.report import plots
from flowmatch_jax.report.curves import LOSSES, Rows
from flowmatch_jax.report.drawn import Arrays, load_arrays, read_points, shared_settings
from flowmatch_jax.runtime.files import Unreadable
from flowmatch_jax.runtime.workdir import write_csv
from flowmatch_jax.sampling.linear import METHODS
from flowmatch_jax.solvers import FLOW_MAP

logger = logging.getLogger(__name__)


def draw_overlays(
    sources: dict[str, Path], levels: int | None, folder: Path, losses: bool = False
) -> list[Path]:
    """Draw Figures 5, 6, 7 and 10 of the paper, and 4 for points, with all methods in each.

    A figure that needs a damaged file is skipped with a warning.

    Args:
        sources: label -> folder of a run's figures, see `figures.draw_figures`.
        levels: grey levels of the images; None for points.
        folder: output folder; the data of curves is written there as CSV.
        losses: also draw training and validation losses, those of runs with one objective.

    Returns:
        The files drawn.

    Raises:
        UserError: the runs' figures were drawn with different settings.
    """
    if not sources:
        return []
    distance = score_name("fd", shared_settings(sources.values())["extractor"])
    pictures = [
        partial(draw, sources, levels, folder) for draw in (_draw_super_resolution, _draw_paths)
    ]
    if levels is None:
        pictures.append(partial(_draw_few_calls, sources, folder))
    over_training = partial(_overlay, sources, "over_training", "step")
    pictures.append(partial(over_training, distance, folder / "figure5.png"))
    for solver in (*METHODS, "fitted", FLOW_MAP, "best"):
        for side, y in (("left", "mean_squared_error"), ("right", distance)):
            path = folder / f"figure7_{side}_{solver}.png"
            pictures.append(partial(_overlay, sources, "over_nfe", "nfe", y, path, solver))
    pictures.append(partial(over_training, "nfe", folder / "figure10.png"))
    for name in LOSSES if losses else ():
        pictures.append(partial(_overlay, sources, "losses", "step", name, folder / f"{name}.png"))
    return [path for draw in pictures if (path := _unless_damaged(draw)) is not None]


def _unless_damaged(draw: Callable[[], Path | None]) -> Path | None:
    try:
        return draw()
    except Unreadable as error:
        logger.warning("A figure is skipped; draw it again with --mode=figures: %s", error)
        return None


def _smallest(rows: Rows, x: str, y: str) -> Rows:
    """Keep the row with the smallest y of each run at each x, in the order of x."""
    best = {}
    for row in sorted(rows, key=lambda row: row[y], reverse=True):
        best[row["method"], row[x]] = row
    order = list(dict.fromkeys(row["method"] for row in rows))
    return sorted(best.values(), key=lambda row: (order.index(row["method"]), row[x]))


def _overlay(
    sources: dict[str, Path], file: str, x: str, y: str, path: Path, solver: str | None = None
) -> Path | None:
    """Draw one curve per run, column y over column x; returns None if no run has the columns.

    Of several solvers, only the rows of ``solver`` are drawn; for "best", the smallest y at each x.
    """
    rows: Rows = []
    for label, source in sources.items():
        points = read_points(source / f"{file}.csv", x, y)
        wanted = [p for p in points if solver in (None, "best") or solver == p["method"]]
        rows += [point | {"method": label} for point in wanted]
    if solver == "best":
        rows = _smallest(rows, x, y)
    if not rows:
        return None
    write_csv(path.with_suffix(".csv"), rows)
    curves = {
        label: tuple(zip(*[(r[x], r[y]) for r in rows if r["method"] == label], strict=True))
        for label in dict.fromkeys(row["method"] for row in rows)
    }
    plots.save_curves(
        path, curves, x, f"{y} ({solver})" if solver else y, log_y=y != "nfe" and y not in LOSSES
    )
    return path


def _draw_super_resolution(
    sources: dict[str, Path], levels: int | None, folder: Path
) -> Path | None:
    """Draw each method's images with their low resolution and originals; None if there are none."""
    found = load_arrays(sources, "super_resolution.npz", ("sample",))
    if not found:
        return None
    first, rows = next(iter(found.values())), {}
    for name in first:
        made = {label: arrays["sample"] for label, arrays in found.items()}
        rows |= made if name == "sample" else {name: first[name]}
    path = folder / "super_resolution.png"
    plots.save_image_rows(path, rows, levels)
    return path


def _draw_paths(sources: dict[str, Path], levels: int | None, folder: Path) -> Path | None:
    """Draw Figure 6, trajectories from one noise sample; for points, of all samples (4, left)."""
    ways = load_arrays(sources, "sample_paths.npz", ("t", "x"))
    if not ways:  # models without a flow
        return None
    path = folder / "figure6.png"
    if levels is not None:
        plots.save_image_rows(path, {label: way["x"][:, 0] for label, way in ways.items()}, levels)
        return path
    columns = {
        label: {f"t = {t:.2f}": x for t, x in zip(way["t"][::2], way["x"][::2], strict=True)}
        for label, way in ways.items()
    }
    plots.save_point_rows(path, columns, _reach(ways))
    return path


def _draw_few_calls(sources: dict[str, Path], folder: Path) -> Path | None:
    """Draw Figure 4, right: midpoint samples at a few NFE."""
    few = load_arrays(sources, "samples_nfe.npz", ("nfe", "x"))
    if not few:
        return None
    columns = {
        label: {f"NFE {n}": x for n, x in zip(samples["nfe"], samples["x"], strict=True)}
        for label, samples in few.items()
    }
    plots.save_point_rows(folder / "figure4.png", columns, _reach(few))
    return folder / "figure4.png"


def _reach(samples: dict[str, Arrays]) -> float:
    """Return half the side of a square that holds nearly all final samples."""
    return 1.15 * max(float(np.quantile(np.abs(s["x"][-1]), 0.99)) for s in samples.values())
