"""Draw pairs of noise and samples from a trained model, which another run is trained on (reflow).

Rectified flow (Liu et al. 2022) calls the pairs (x_0, X(x_0)), X the flow of the model from noise
to data, a coupling of noise and data whose paths cross less than those of independent noise. A flow
that is trained on it is therefore straighter, and needs fewer calls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from flowmatch_jax.arrays import Array, Inputs, Params
from flowmatch_jax.config.field import Of, select
from flowmatch_jax.config.fields import FIELDS
from flowmatch_jax.couplings import draw_source
from flowmatch_jax.data.pairs import PairFolder
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.parts.solver import solver_settings
from flowmatch_jax.runge_kutta import STOCHASTIC
from flowmatch_jax.runtime.errors import RunStopped, UserError
from flowmatch_jax.runtime.mesh import gather, split_if_even, to_host
from flowmatch_jax.runtime.progress import progress_bar
from flowmatch_jax.runtime.stops import StopNotice
from flowmatch_jax.solvers import Solution

logger = logging.getLogger(__name__)

# jitted (params, key, inputs) -> (x_0, Solution)
PairSampler = Callable[[Params, Array, Inputs], tuple[Array, Solution]]


def generate_pairs(
    experiment: Experiment, params: Params, folder: Path, weights: dict[str, Any]
) -> None:
    """Write config.pairs.count pairs (x_0, x_1) of noise and the sample that it becomes.

    x_0 is unit noise, which a path multiplies by the std of its source; x_1 is in model space and
    is not rounded to grey levels. Samples are drawn as `Experiment.generate` draws them, by the
    config's solver and guidance, and labels as often as in training. A stopped command goes on
    after the last chunk of config.pairs.batch_size pairs.

    Args:
        experiment: the experiment.
        params: the parameters.
        folder: folder of the pairs (see `data.pairs`).
        weights: what identifies the parameters in the run, such as their step.

    Raises:
        UserError: a sample of the model is no function of its noise, or the folder holds others.
        RunStopped: a signal arrived, or a sample is not finite.
    """
    check_pairs(experiment)
    config = experiment.config.pairs
    count, size = config.count or len(experiment.train_data), config.batch_size
    place = None
    if jax.process_index() == 0:
        place = PairFolder(folder, facts(experiment, weights), count)
    done = int(multihost_utils.broadcast_one_to_all(np.int32(place.done if place else 0)))
    sampler = make_pair_sampler(experiment)
    chunks, calls = -(-count // size), []
    with (
        progress_bar(total=chunks * size, initial=done * size, desc="pairs") as bar,
        StopNotice() as notice,
    ):
        for chunk in range(done, chunks):
            *pairs, nfe = _draw(experiment, sampler, params, chunk)
            if place is not None:
                place.append(*pairs)
            calls.append(nfe)
            bar.update(size)
            if notice.reached(chunk):
                left = (chunks - chunk - 1) * size
                raise RunStopped(
                    f"{notice.signal}: {left} pairs are left; the same command goes on"
                )
    by = f", by {np.mean(calls):.4g} function evaluations" if calls else ""
    logger.info("%d pairs are in %s; %d were drawn now%s.", count, folder, len(calls) * size, by)


def check_pairs(experiment: Experiment) -> None:
    """Raise UserError unless a sample of the model is a function of its noise and label."""
    config = experiment.config
    if not experiment.is_flow:
        allowed = "it has no flow that carries noise to samples"
        raise UserError("config.objective.name", config.objective.name, allowed)
    if config.solver.method in STOCHASTIC:
        allowed = "it adds noise on the way, so that x_0 does not determine x_1: use dopri5"
        raise UserError("config.solver.method", config.solver.method, allowed)
    if experiment.source is not None:
        allowed = "pairs are of noise and samples, and these samples start from a dataset"
        raise UserError("config.source.name", config.source.name, allowed)
    if experiment.conditioning.low_resolution is not None:
        allowed = "pairs are of models without a low-resolution image"
        side = experiment.conditioning.low_resolution
        raise UserError("config.condition.low_resolution", side, allowed)


def facts(experiment: Experiment, weights: dict[str, Any]) -> dict[str, Any]:
    """Return what the pairs depend on, besides their number, as JSON values."""
    config, data = experiment.config, experiment.train_data
    return {
        "data": {"name": data.name, "version": data.version, "sha256": data.content_hash},
        "shape": list(data.shape),
        "labels": experiment.conditioning.labels,
        "chunk": config.pairs.batch_size,
        "seed": config.pairs.seed,
        "model": weights | {"run": select(FIELDS, config, Of.RUN)},
        "solver": solver_settings(config, experiment.fitted),
        "guidance": select(FIELDS, config, Of.SCORES)["guidance"],
    }


def make_pair_sampler(experiment: Experiment) -> PairSampler:
    """Create a jitted function (params, key, inputs) -> (x_0, Solution from it) of a chunk.

    A solution with a value that is not finite has converged = False.
    """
    mesh, path = experiment.mesh, experiment.path
    shape = (experiment.config.pairs.batch_size, *experiment.train_data.shape)

    def sampler(params: Params, key: Array, inputs: Inputs) -> tuple[Array, Solution]:
        source_key, way_key = jax.random.split(key)
        x0 = split_if_even(draw_source(source_key, shape), mesh)
        inputs = jax.tree.map(lambda x: split_if_even(x, mesh), inputs)
        start = path.source_std * x0
        solution = experiment.generate(gather(params, mesh), start, way_key, inputs)
        finite = jnp.isfinite(solution.x).all()
        return x0, solution._replace(converged=solution.converged & finite)

    return jax.jit(sampler)


def draw_labels(counts: np.ndarray, seed: int, chunk: int, n: int) -> np.ndarray:
    """Draw the labels of a chunk, int32 [n], as frequently as in the training set.

    Args:
        counts: training items of each class.
        seed: seed of the pairs.
        chunk: number of the chunk.
        n: number of labels.
    """
    random = np.random.RandomState([seed, chunk])
    return random.choice(len(counts), n, p=counts / counts.sum()).astype(np.int32)


def _draw(
    experiment: Experiment, sampler: PairSampler, params: Params, chunk: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, int]:
    """Return x_0, x_1 and the labels of a chunk, and the NFE; RunStopped if they are not finite."""
    config, label, inputs = experiment.config.pairs, None, {}
    if experiment.conditioning.labels:
        counts = np.asarray(experiment.train_data.label_counts)
        label = draw_labels(counts, config.seed, chunk, config.batch_size)
        inputs = {"label": jnp.asarray(label)}
    key = jax.random.fold_in(jax.random.key(config.seed), chunk)
    x0, solution = sampler(params, key, inputs)
    if not solution.converged:
        raise RunStopped(
            "the solver failed: the field is not finite; try a fixed method, such as "
            "--config.solver.method=midpoint --config.solver.steps=50"
        )
    return to_host(x0), to_host(solution.x), label, int(solution.nfe)
