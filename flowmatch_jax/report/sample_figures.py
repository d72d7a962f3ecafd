"""Figures of a run's samples and density, which `figures` draws beside its curves."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import numpy as np

from flowmatch_jax.arrays import Params
from flowmatch_jax.evaluation.samples import items_of_batch, make_sampler
from flowmatch_jax.evaluation.super_resolution import side_by_side
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.likelihood import log_prob
from flowmatch_jax.pixels import centres
from flowmatch_jax.report import curves, plots
from flowmatch_jax.report.runs import method_name
from flowmatch_jax.runtime.mesh import to_host
from flowmatch_jax.runtime.workdir import write_csv
from flowmatch_jax.solvers import FLOW_MAP, Solver

PATH_IMAGES, PATH_POINTS = 8, 200  # number of trajectories that are drawn
TIMES = 9  # number of times on a trajectory
MAP_CALLS = (1, 2, 4)  # numbers of calls of a flow map
DENSITY_SIDE = 100  # points per side of the density's grid
# Far from the data a learned field is stiff, and an adaptive solver would need thousands of calls.
DENSITY_SOLVER = Solver("rk4", steps=25)


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
    _save_rows(experiment, folder / "marginals.png", columns)


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
    labelled = {f"NFE {n}": s for n, s in zip(nfe, x, strict=True)}
    _save_rows(experiment, folder / "samples_nfe.png", labelled)


def draw_map_calls(experiment: Experiment, params: Params, folder: Path) -> None:
    """Draw samples by one, two and four calls of a flow map, from the same noise.

    For points, items of the test split are beside them.
    """
    data, config = experiment.test_data, experiment.config
    size = PATH_IMAGES if data.is_image else config.evaluate.samples
    samplers = {n: make_sampler(experiment, size, Solver(FLOW_MAP, steps=n)) for n in MAP_CALLS}
    labelled = {f"NFE {n}": to_host(draw(params).x) for n, draw in samplers.items()}
    if not data.is_image:
        labelled["data"] = items_of_batch(experiment, size)["x"]
    _save_rows(experiment, folder / "samples_flow_map.png", labelled)


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


def reach(experiment: Experiment) -> float:
    """Return half the side of the square in which points are shown, slightly beyond the data.

    Where samples start from a dataset, the square holds that too.
    """
    shown = [experiment.test_data] + ([experiment.source.test] if experiment.source else [])
    return 1.15 * max(float(np.abs(split.x).max()) for split in shown)


def _save_rows(experiment: Experiment, path: Path, labelled: dict[str, np.ndarray]) -> None:
    """Draw samples by label, images in rows and points side by side."""
    data = experiment.train_data
    if data.is_image:
        plots.save_image_rows(path, labelled, data.levels)
    else:
        plots.save_point_rows(path, {"": labelled}, reach(experiment))


def _save_arrays(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
