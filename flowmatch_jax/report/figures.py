"""The paper's figures for one run, as PNG files with their data as CSV."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax import paths
from flowmatch_jax.arrays import Params
from flowmatch_jax.config.field import Of, select
from flowmatch_jax.config.fields import FIELDS
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.metrics.features.extractors import score_name
from flowmatch_jax.parts.solver import solver_settings
from flowmatch_jax.paths import PATHS, GaussianPath
from flowmatch_jax.report import curves, plots
from flowmatch_jax.report.sample_figures import (
    draw_density,
    draw_few_calls,
    draw_map_calls,
    draw_paths,
    draw_super_resolution,
)
from flowmatch_jax.runtime.files import Unreadable, read_json
from flowmatch_jax.runtime.workdir import write_csv, write_json
from flowmatch_jax.sampling.fitted import solver_file

logger = logging.getLogger(__name__)


def draw_figures(
    experiment: Experiment,
    params: Params,
    step: int,
    checkpoints: Iterable[tuple[int, Params]],
    workdir: Path,
) -> None:
    """Draw all figures of a run into its folder figures/.

    Args:
        experiment: the experiment.
        params: the weights at ``step``, of the first kind in config.evaluate.weights.
        step: step of the weights.
        checkpoints: (step, weights) of all checkpoints that are kept, in order.
        workdir: folder of the run.
    """
    # All processes take part in the computation; only process 0 keeps its files.
    others = tempfile.TemporaryDirectory()
    folder = workdir / "figures" if jax.process_index() == 0 else Path(others.name)
    if experiment.is_flow:
        draw_conditional(experiment, folder)
        draw_paths(experiment, params, folder)
        draw_few_calls(experiment, params, folder)
        draw_over_nfe(experiment, params, workdir, folder)
    if experiment.has_flow_map:
        draw_map_calls(experiment, params, folder)
    if experiment.train_data.shape == (2,) and experiment.source is None:
        draw_density(experiment, params, folder)
    if experiment.conditioning.low_resolution is not None:
        draw_super_resolution(experiment, params, folder)
    draw_losses(curves.losses(workdir), folder)
    draw_over_training(experiment, checkpoints, folder)
    write_json(folder / "figures.json", settings(experiment, step, workdir))
    logger.info("Figures are in %s.", folder)


def are_drawn(experiment: Experiment, workdir: Path) -> bool:
    """Test whether the figures of the run's last step exist and were drawn with these settings."""
    path = workdir / "figures" / "figures.json"
    wanted = settings(experiment, experiment.config.train.steps, workdir)
    try:
        return read_json(path) == wanted
    except (FileNotFoundError, Unreadable):
        return False


def settings(experiment: Experiment, step: int, workdir: Path) -> dict[str, Any]:
    """Return the settings that a run's figures depend on, besides its weights."""
    files = (solver_file(workdir, n, experiment.guidance) for n in experiment.config.figures.nfe)
    fitted = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.exists()
    }
    config = select(FIELDS, experiment.config, Of.FIGURES)
    guidance = {"guidance": config["guidance"]} if experiment.guidance else {}
    return guidance | {
        "step": step,
        "weights": experiment.config.evaluate.weights[0],
        "evaluation_seed": config["evaluate"]["seed"],
        "extractor": config["evaluate"]["extractor"],
        "solver": solver_settings(experiment.config, experiment.fitted),
        "fitted": fitted,
        **config["figures"],
    }


def draw_conditional(experiment: Experiment, folder: Path) -> None:
    """Draw Figures 2 and 3: conditional fields and flows for one x_1 in the plane.

    They show the run's path, the OT path and the VP path.
    """
    name = experiment.config.path.name
    shown = {name: experiment.path} | {n: PATHS[n]() for n in ("ot", "vp") if n != name}
    target = jnp.array([1.0, 0.5])
    fields, trajectories, rows = {}, {}, []
    for label, path in shown.items():
        fields[label] = [(t, *_conditional_field(path, t, target)) for t in (0.0, 1 / 3, 2 / 3)]
        times, trajectories[label] = _conditional_flow(path, target)
        rows += [
            {"path": label, "trajectory": n, "t": t, "x": x, "y": y}
            for n, line in enumerate(trajectories[label])
            for t, (x, y) in zip(times, line, strict=True)
        ]
    write_csv(folder / "conditional.csv", rows)
    plots.save_fields(folder / "conditional.png", fields, trajectories, np.asarray(target))


def draw_over_nfe(experiment: Experiment, params: Params, workdir: Path, folder: Path) -> None:
    """Draw Figure 7: error (left) and Fréchet distance (right) of fixed methods over NFE."""
    rows = curves.over_nfe(experiment, params, workdir)
    write_csv(folder / "over_nfe.csv", rows)
    labels = {"mean_squared_error": "squared error per dimension"}
    if experiment.extractor:
        distance = score_name("fd", experiment.extractor.name)
        labels[distance] = distance
    for name, label in labels.items():
        by_method = {
            method: [(row["nfe"], row[name]) for row in rows if row["method"] == method]
            for method in experiment.config.figures.methods
        }
        lines = {m: tuple(zip(*points, strict=True)) for m, points in by_method.items() if points}
        plots.save_curves(folder / f"{name}_over_nfe.png", lines, "NFE", label, log_y=True)


def draw_over_training(
    experiment: Experiment, checkpoints: Iterable[tuple[int, Params]], folder: Path
) -> None:
    """Draw Figures 5 and 10: Fréchet distance, NFE and straightness over training."""
    rows = curves.over_training(experiment, checkpoints)
    write_csv(folder / "over_training.csv", rows)
    for name in [name for name in rows[0] if name != "step"]:
        line = ([row["step"] for row in rows], [row[name] for row in rows])
        label = {"nfe": f"NFE of {experiment.config.solver.method}"}.get(name, name)
        path = folder / f"{name}_over_training.png"
        plots.save_curves(
            path, {experiment.config.evaluate.weights[0]: line}, "step", label, name != "nfe"
        )


def draw_losses(rows: curves.Rows, folder: Path) -> None:
    """Draw the training and validation losses over training, if there are any."""
    if not rows:
        return
    write_csv(folder / "losses.csv", rows)
    lines = {
        label: ([row["step"] for row in rows], [row[name] for row in rows])
        for name, label in curves.LOSSES.items()
        if name in rows[0]
    }
    plots.save_curves(folder / "losses.png", lines, "step", "loss")


def _conditional_field(
    path: GaussianPath, t: float, target: jax.Array
) -> tuple[np.ndarray, np.ndarray]:
    side = path.source_std * jnp.linspace(-2.5, 2.5, 13)
    x = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    u = paths.velocity(path, t, x, jnp.broadcast_to(target, x.shape))
    return np.asarray(x), np.asarray(u)


def _conditional_flow(path: GaussianPath, target: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Compute t [T] and psi_t(x_0) for ten x_0, [10, T, 2]."""
    x0 = jax.random.normal(jax.random.key(0), (10, 2))
    times = jnp.linspace(0, path.t_end, 50)
    x1 = jnp.broadcast_to(target, x0.shape)
    lines = jax.vmap(lambda t: paths.flow(path, t, x0, x1), out_axes=1)(times)
    return np.asarray(times), np.asarray(lines)
