"""Cost and quality of samples over the number of function evaluations (NFE) and over training.

Results are rows for CSV files: dicts with equal keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Array, Params
from flowmatch_jax.evaluation.quality import judge_samples
from flowmatch_jax.evaluation.reference import make_reference
from flowmatch_jax.evaluation.samples import Sampler, make_sampler, sample_inputs
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.metrics.features.extractors import score_name
from flowmatch_jax.metrics.scores import FeatureSet
from flowmatch_jax.parts.solver import read_fitted
from flowmatch_jax.runtime.overlap import overlapped
from flowmatch_jax.runtime.progress import progress_bar
from flowmatch_jax.runtime.workdir import read_metrics
from flowmatch_jax.sampling.fitted import solver_file
from flowmatch_jax.sampling.linear import METHODS, Coefficients, calls_per_step, of_method
from flowmatch_jax.solvers import FLOW_MAP, Solver

Rows = list[dict[str, Any]]

STRAIGHTNESS_TIMES = 33
STRAIGHTNESS_SOLVER = Solver("dopri5", rtol=1e-4, atol=1e-4)

# name in metrics.jsonl -> label of the curve
LOSSES = {
    "loss": "training",
    "validation_loss_ema": "validation, ema weights",
    "validation_loss_raw": "validation, raw weights",
}


def steps_for(method: str, nfe: int) -> int | None:
    """Return the number of steps with which a fixed method makes ``nfe`` calls, or None."""
    steps, rest = divmod(nfe, calls_per_step(method))
    return None if rest else steps


def solvers_for(experiment: Experiment, calls: int, workdir: Path) -> dict[str, Coefficients]:
    """Return config.figures.methods with a number of calls: on equal steps, or fitted.

    A method is left out if the calls are no whole number of its steps, or if the run has no fitted
    solver with so many calls.

    Args:
        experiment: the experiment.
        calls: number of calls of the field.
        workdir: folder of the run.
    """
    found = {}
    for method in experiment.config.figures.methods:
        file = solver_file(workdir, calls, experiment.guidance)
        if method == "fitted" and file.exists():
            found[method] = read_fitted(experiment.config, file, calls)
        elif method in METHODS and (steps := steps_for(method, calls)) is not None:
            grid = np.linspace(0, experiment.path.t_end, steps + 1)
            found[method] = of_method(method, grid, experiment.path)
    return found


def batch_size(experiment: Experiment) -> int:
    """Return the number of samples per batch."""
    config = experiment.config
    return min(config.evaluate.samples, config.figures.seeds)


def solve_batches(
    experiment: Experiment, sampler: Sampler, params: Params
) -> tuple[np.ndarray, int]:
    """Draw config.figures.seeds samples [N, ...], always from the same noise; returns x and NFE."""
    seeds = experiment.config.figures.seeds
    batches = range(-(-seeds // batch_size(experiment)))
    solutions = list(overlapped(lambda batch: sampler(params, batch), batches))
    return np.concatenate([s.x for s in solutions])[:seeds], int(solutions[0].nfe)


def losses(workdir: Path) -> Rows:
    """Read the losses of a run from its metrics.jsonl.

    Returns:
        Rows of "step", "loss" (the mean since the row before) and, where they were measured,
        "validation_loss_<weights>"; None where a step lacks one.
    """
    lines = [line for line in read_metrics(workdir / "metrics.jsonl") if "loss" in line]
    names = dict.fromkeys(name for line in lines for name in line if name in LOSSES)
    return [{"step": line["step"]} | {name: line.get(name) for name in names} for line in lines]


def over_nfe(experiment: Experiment, params: Params, workdir: Path) -> Rows:
    """Compute Figure 7: squared error and Fréchet distance of each fixed method at each NFE.

    config.figures.nfe counts calls of the field; rows count calls of the network, of which a field
    with guidance needs more. One program is compiled for each number of calls.

    Args:
        experiment, params: the model.
        workdir: folder of the run, for its fitted solvers.

    Returns:
        Rows of "method", "nfe", "mean_squared_error" (per dimension, in model space, against the
        midpoint solution with config.figures.reference_nfe from the same noise) and, with an
        extractor, "fd_...".
    """
    config, size = experiment.config, batch_size(experiment)
    exact_steps = steps_for("midpoint", config.figures.reference_nfe)
    exact_sampler = make_sampler(experiment, size, Solver("midpoint", steps=exact_steps))
    exact, _ = solve_batches(experiment, exact_sampler, params)
    reference = make_reference(experiment) if experiment.extractor else None
    rows = []
    draw = make_sampler(experiment, size)
    cells = [
        (method, partial(draw, coefficients=solver))
        for calls in config.figures.nfe
        for method, solver in solvers_for(experiment, calls, workdir).items()
    ]
    if FLOW_MAP in config.figures.methods and experiment.has_flow_map:
        maps = [Solver(FLOW_MAP, steps=calls) for calls in config.figures.nfe]
        cells += [(FLOW_MAP, make_sampler(experiment, size, each)) for each in maps]
    with progress_bar(cells, desc="over NFE") as bar:
        for method, sampler in bar:
            x, nfe = solve_batches(experiment, sampler, params)
            error = float(np.mean((x - exact) ** 2))
            row = {"method": method, "nfe": nfe, "mean_squared_error": error}
            if reference is not None:
                row |= _judged(experiment, sampler, params, reference)[1]
            rows.append(row)
    return rows


def over_training(experiment: Experiment, weights: Iterable[tuple[int, Params]]) -> Rows:
    """Compute Figures 5 and 10: NFE, straightness and Fréchet distance per checkpoint.

    Args:
        experiment: the experiment.
        weights: (step, parameters) of each checkpoint, in order.

    Returns:
        Rows of "step", "nfe" (of the config's solver, mean over batches), "straightness" (see
        `make_straightness`; not for methods without a vector field) and, with an extractor,
        "fd_...".
    """
    sampler = make_sampler(experiment, batch_size(experiment))
    straightness = make_straightness(experiment) if experiment.is_flow else None
    reference = make_reference(experiment) if experiment.extractor else None
    rows = []
    with progress_bar(weights, desc="over training") as bar:
        for step, params in bar:
            straight = {"straightness": straightness(params)} if straightness else {}
            if reference is None:
                rows.append({"step": step, "nfe": float(sampler(params).nfe)} | straight)
                continue
            nfe, distance = _judged(experiment, sampler, params, reference)
            rows.append({"step": step, "nfe": nfe} | straight | distance)
    return rows


def make_straightness(experiment: Experiment) -> Callable[[Params], float]:
    """Create a function of the parameters for E ||v_t(x_t) - (x_1 - x_0)||^2 per dimension.

    The mean is over t and over the model's own trajectories x_t from x_0 to x_1 (Liu et al. 2022),
    by an accurate solver on the path of training. It is 0 if all of them are straight lines with
    constant velocity, for which one step of Euler's method is exact. On a path that ends at t_end,
    x_1 - x_0 is the mean velocity up to there.
    """
    size = batch_size(experiment)
    t = np.linspace(0, experiment.path.t_end, STRAIGHTNESS_TIMES, dtype=np.float32)
    sampler = make_sampler(experiment, size, STRAIGHTNESS_SOLVER, save_at=t)
    inputs = sample_inputs(experiment, size)

    @jax.jit
    def variance(params: Params, x: Array) -> Array:
        field = experiment.whole_field(params, **inputs)
        chord = (x[-1] - x[0]) / t[-1]
        errors = jax.lax.map(lambda at: jnp.mean((field(*at) - chord) ** 2), (t, x))
        return jnp.trapezoid(errors, t) / t[-1]

    return lambda params: float(variance(params, sampler(params, inputs=inputs).trajectory))


def _judged(
    experiment: Experiment, sampler: Sampler, params: Params, reference: FeatureSet
) -> tuple[float, dict[str, float | None]]:
    """Return NFE and {"fd_...": Fréchet distance} of config.figures.generated samples."""
    count, name = experiment.config.figures.generated, score_name("fd", experiment.extractor.name)
    judged = judge_samples(experiment, sampler, params, count, reference, silent=True)
    return judged["sample_nfe"], {name: judged[name]}


def paths_of_samples(
    experiment: Experiment, params: Params, size: int, times: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute Figure 6: t [T] and trajectories [T, size, ...] by the config's solver."""
    t = np.linspace(0, experiment.sampling_path.t_end, times)
    sampler = make_sampler(experiment, size, save_at=t)
    return t, np.asarray(sampler(params).trajectory)


def samples_at(
    experiment: Experiment, params: Params, size: int, calls: Sequence[int]
) -> tuple[list[int], np.ndarray]:
    """Compute Figures 4 and 16: NFE and midpoint samples [K, size, ...] from the same noise.

    Args:
        experiment: the experiment.
        params: the parameters.
        size: number of samples.
        calls: numbers of calls of the field; the NFE count the network, as in `over_nfe`.
    """
    grids = [np.linspace(0, experiment.path.t_end, steps_for("midpoint", n) + 1) for n in calls]
    draw = make_sampler(experiment, size)
    solutions = [draw(params, coefficients=of_method("midpoint", grid)) for grid in grids]
    return [int(s.nfe) for s in solutions], np.asarray([s.x for s in solutions])
