"""What samples cost and what they are worth: over function evaluations, and over training.

Numbers are rows, dicts of one shape, for a CSV file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flowmatch_jax.arrays import Params
from flowmatch_jax.evaluation.quality import judge_samples, make_reference
from flowmatch_jax.evaluation.samples import Sampler, make_sampler
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.metrics.features.extractors import score_name
from flowmatch_jax.runtime.progress import progress_bar
from flowmatch_jax.solvers import Solver, count_calls

Rows = list[dict[str, Any]]

METHODS = ("euler", "midpoint", "rk4")


def steps_for(method: str, nfe: int) -> int | None:
    """Steps of a fixed method that make ``nfe`` calls; None where no whole number does."""
    steps, rest = divmod(nfe, count_calls(method, 1))
    return None if rest else steps


def batch_size(experiment: Experiment) -> int:
    """Samples drawn together."""
    config = experiment.config
    return min(config.evaluate.samples, config.figures.seeds)


def solve_batches(
    experiment: Experiment, sampler: Sampler, params: Params
) -> tuple[np.ndarray, int]:
    """config.figures.seeds samples from the same noise for any sampler, [N, ...], and their NFE."""
    seeds = experiment.config.figures.seeds
    batches = range(-(-seeds // batch_size(experiment)))
    solutions = [sampler(params, batch) for batch in batches]
    return np.concatenate([s.x for s in solutions])[:seeds], int(solutions[0].nfe)


def over_nfe(experiment: Experiment, params: Params) -> Rows:
    """Figure 7: of each fixed method at each NFE, the squared error and the Fréchet distance.

    config.figures counts calls of the field; rows have calls of the network, of which a guided
    field takes more.

    Returns:
        Rows of "method", "nfe", "mean_squared_error" (a dimension, model space, against the
        solution at config.figures.reference_nfe by midpoint from the same noise) and, with an
        extractor, "fd_...".
    """
    config, size = experiment.config, batch_size(experiment)
    exact_steps = steps_for("midpoint", config.figures.reference_nfe)
    exact_sampler = make_sampler(experiment, size, Solver("midpoint", steps=exact_steps))
    exact, _ = solve_batches(experiment, exact_sampler, params)
    reference = make_reference(experiment) if experiment.extractor else None
    rows = []
    cells = [(method, nfe) for method in METHODS for nfe in config.figures.nfe]
    for method, calls in progress_bar(cells, desc="over NFE"):
        steps = steps_for(method, calls)
        if steps is None:
            continue
        sampler = make_sampler(experiment, size, Solver(method, steps=steps))
        x, nfe = solve_batches(experiment, sampler, params)
        error = float(np.mean((x - exact) ** 2))
        row = {"method": method, "nfe": nfe, "mean_squared_error": error}
        if reference is not None:
            count, distance = config.figures.generated, score_name("fd", experiment.extractor.name)
            judged = judge_samples(experiment, sampler, params, count, reference, silent=True)
            row[distance] = judged[distance]
        rows.append(row)
    return rows


def over_training(experiment: Experiment, weights: Iterable[tuple[int, Params]]) -> Rows:
    """Figures 5 and 10: NFE of the config's solver, and the distance, for each checkpoint.

    Args:
        weights: (step, parameters), in order.

    Returns:
        Rows of "step", "nfe" (mean over batches) and, with an extractor, "fd_...".
    """
    config = experiment.config
    sampler = make_sampler(experiment, batch_size(experiment))
    reference = make_reference(experiment) if experiment.extractor else None
    rows = []
    for step, params in progress_bar(weights, desc="over training"):
        if reference is None:
            nfe = float(sampler(params).nfe)
            rows.append({"step": step, "nfe": nfe})
            continue
        count, distance = config.figures.generated, score_name("fd", experiment.extractor.name)
        judged = judge_samples(experiment, sampler, params, count, reference, silent=True)
        rows.append({"step": step, "nfe": judged["sample_nfe"], distance: judged[distance]})
    return rows


def paths_of_samples(
    experiment: Experiment, params: Params, size: int, times: int
) -> tuple[np.ndarray, np.ndarray]:
    """Figure 6: (t [T], states [T, size, ...]) of samples on their way, by the config's solver."""
    t = np.linspace(0, experiment.path.t_end, times)
    sampler = make_sampler(experiment, size, save_at=t)
    return t, np.asarray(sampler(params).trajectory)


def samples_at(
    experiment: Experiment, params: Params, size: int, calls: Sequence[int]
) -> tuple[list[int], np.ndarray]:
    """Figures 4 and 16: samples [K, size, ...] by midpoint, from the same noise, and their NFE.

    Args:
        calls: of the field; NFE are of the network, as in `over_nfe`.
    """
    solvers = [Solver("midpoint", steps=steps_for("midpoint", n)) for n in calls]
    solutions = [make_sampler(experiment, size, solver)(params) for solver in solvers]
    return [int(s.nfe) for s in solutions], np.asarray([s.x for s in solutions])
