"""The paper's figures for one run, as PNG files with their data as CSV."""

from __future__ import annotations

import hashlib
import logging
import math
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
from flowmatch_jax.evaluation.samples import items_of_batch, make_sampler
from flowmatch_jax.evaluation.super_resolution import side_by_side
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.likelihood import log_prob
from flowmatch_jax.metrics.features.extractors import score_name
from flowmatch_jax.parts.solver import solver_settings
from flowmatch_jax.paths import PATHS, GaussianPath
from flowmatch_jax.pixels import centres
from flowmatch_jax.report import curves, plots
from flowmatch_jax.report.runs import method_name
from flowmatch_jax.runtime.files import Unreadable, read_json
from flowmatch_jax.runtime.mesh import to_host
from flowmatch_jax.runtime.workdir import write_csv, write_json
from flowmatch_jax.sampling.fitted import solver_file
from flowmatch_jax.solvers import Solver

logger = logging.getLogger(__name__)

PATH_IMAGES, PATH_POINTS = 8, 200  # number of trajectories that are drawn
TIMES = 9  # number of times on a trajectory
DENSITY_SIDE = 100  # points per side of the density's grid
# Far from the data a learned field is stiff, and an adaptive solver would need thousands of calls.
DENSITY_SOLVER = Solver("rk4", steps=25)


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


def draw_paths(experiment: Experiment, params: Params, folder: Path) -> None:
    """Draw Figure 6: trajectories of samples, and their distances to the final sample.

    For points, and where samples start from a dataset, items of the test split are beside them.
    sample_paths.npz has "t" [T] and "x" [T, N, ...], for the report.
    """
    data = experiment.test_data
    size = PATH_IMAGES if data.is_image else experiment.config.evaluate.samples
    t, x = curves.paths_of_samples(experiment, params, size, TIMES)
    _save_arrays(folder / "sample_paths.npz", t=t, x=x)
    distance = np.sqrt(((x - x[-1]) ** 2).reshape(*x.shape[:2], -1).mean(axis=-1))
    rows = [
        {"sample": n, "t": t[k], "rms_to_end": distance[k, n]}
        for n in range(min(size, PATH_POINTS))
        for k in range(len(t))
    ]
    write_csv(folder / "sample_paths.csv", rows)
    path = folder / "sample_paths.png"
    if data.is_image:
        rows = {f"{n + 1}": x[:, n] for n in range(size)}
        if experiment.source is not None:
            rows["data"] = np.asarray(centres(items_of_batch(experiment, size)["x"], data.levels))
        plots.save_image_rows(path, rows, data.levels)
        return
    plots.save_trajectories(path, x[:, :PATH_POINTS].swapaxes(0, 1))
    columns = {f"t = {at:.2f}": points for at, points in zip(t[::2], x[::2], strict=True)}
    columns["data"] = items_of_batch(experiment, size)["x"]
    plots.save_point_rows(folder / "marginals.png", {"": columns}, reach(experiment))


def draw_few_calls(experiment: Experiment, params: Params, folder: Path) -> None:
    """Draw Figures 4 and 16: midpoint samples at a few NFE from the same noise.

    samples_nfe.npz has "nfe" [K] and "x" [K, N, ...], for the report.
    """
    config, source = experiment.config, experiment.train_data
    size = 16 if source.is_image else config.evaluate.samples
    nfe, x = curves.samples_at(experiment, params, size, config.figures.sample_nfe)
    _save_arrays(folder / "samples_nfe.npz", nfe=np.array(nfe), x=x)
    finest = x[-1]
    rows = [
        {"nfe": calls, "sample": n, "rms_to_finest": float(np.sqrt(np.mean((a - b) ** 2)))}
        for calls, samples in zip(nfe, x, strict=True)
        for n, (a, b) in enumerate(zip(samples[:PATH_POINTS], finest, strict=False))
    ]
    write_csv(folder / "samples_nfe.csv", rows)
    path, labelled = (
        folder / "samples_nfe.png",
        {f"NFE {n}": s for n, s in zip(nfe, x, strict=True)},
    )
    if source.is_image:
        plots.save_image_rows(path, labelled, source.levels)
    else:
        plots.save_point_rows(path, {"": labelled}, reach(experiment))


def draw_super_resolution(experiment: Experiment, params: Params, folder: Path) -> None:
    """Draw test images: low resolution, bicubic enlargement, this method's sample, original.

    super_resolution.npz has these rows [N, H, W, C] by name; "sample" is the method's.
    """
    config, size = experiment.config, min(PATH_IMAGES, len(experiment.test_data))
    made = make_sampler(experiment, size)(params).x
    originals = items_of_batch(experiment, size)["x"]
    rows = side_by_side(experiment.conditioning, originals, sample=to_host(made))
    _save_arrays(folder / "super_resolution.npz", **rows)
    method = method_name(config)
    labelled = {method if name == "sample" else name: x for name, x in rows.items()}
    levels = experiment.test_data.levels
    plots.save_image_rows(folder / "super_resolution.png", labelled, levels)


def draw_density(experiment: Experiment, params: Params, folder: Path) -> None:
    """Draw the model's density in the plane, by `DENSITY_SOLVER` and the exact divergence."""
    path, config = experiment.path, experiment.config
    side = np.linspace(-reach(experiment), reach(experiment), DENSITY_SIDE)
    points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2).astype(np.float32)

    @jax.jit
    def score(params: Params, x: jax.Array) -> jax.Array:
        field = experiment.field(params)
        ends = {"source_std": path.source_std, "t1": path.t_end}
        return log_prob(field, x, solver=DENSITY_SOLVER, divergence="exact", **ends).log_prob

    size = min(config.evaluate.batch_size, len(points))
    batches = np.array_split(points, math.ceil(len(points) / size))
    logs = np.concatenate([np.asarray(score(params, x)) for x in batches])
    rows = [{"x": x, "y": y, "log_density": p} for (x, y), p in zip(points, logs, strict=True)]
    write_csv(folder / "density.csv", rows)
    density = np.exp(logs).reshape(DENSITY_SIDE, DENSITY_SIDE)
    plots.save_density(folder / "density.png", density, reach(experiment))


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


def reach(experiment: Experiment) -> float:
    """Return half the side of the square in which points are shown, slightly beyond the data.

    Where samples start from a dataset, the square holds that too.
    """
    shown = [experiment.test_data] + ([experiment.source.test] if experiment.source else [])
    return 1.15 * max(float(np.abs(split.x).max()) for split in shown)


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


def _save_arrays(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
