"""Samples of an experiment, and their pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from flowmatch_jax.arrays import Array, Batch, Inputs, Params
from flowmatch_jax.couplings import draw_source
from flowmatch_jax.data.pipeline import items_at
from flowmatch_jax.evaluation.pictures import save_images, save_points
from flowmatch_jax.evaluation.super_resolution import side_by_side
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.runtime.mesh import gather, split_if_even, to_host
from flowmatch_jax.runtime.messages import compiling
from flowmatch_jax.solvers import Solution, Solver

logger = logging.getLogger(__name__)

# (params, batch=0, inputs=None) -> Solution, the batch being a number
Sampler = Callable[..., Solution]
# jitted (params, key, inputs) -> Solution
GivenSampler = jax.stages.Wrapped


def make_sampler(
    experiment: Experiment,
    size: int,
    solver: Solver | None = None,
    save_at: Sequence[float] | Array | None = None,
) -> Sampler:
    """An evaluation's samples, batch by batch: (params, batch=0, inputs=None) -> Solution.

    A batch, x in model space, starts from the noise of `sample_key` and is given the
    `sample_inputs` of its number, where no others are handed in: the same for all weights, methods
    and solvers.

    Args:
        size: samples in a batch, split over all devices where these divide it.
        solver: in place of the config's.
        save_at: times at which to keep the states, as for `solvers.integrate`.
    """
    draw_given = make_given_sampler(experiment, size, solver, save_at)
    seed = experiment.config.evaluate.seed

    def sampler(params: Params, batch: int = 0, inputs: Inputs | None = None) -> Solution:
        inputs = sample_inputs(experiment, size, batch) if inputs is None else inputs
        return draw_given(params, sample_key(seed, batch), inputs)

    return sampler


def make_given_sampler(
    experiment: Experiment,
    size: int,
    solver: Solver | None = None,
    save_at: Sequence[float] | Array | None = None,
) -> GivenSampler:
    """Compile (params, key, inputs) -> Solution with x [size, ...] in model space.

    Args:
        size, solver, save_at: as of `make_sampler`.
    """
    path = experiment.path
    shape = (size, *experiment.train_data.shape)
    mesh = experiment.mesh

    def sampler(params: Params, key: Array, inputs: Inputs) -> Solution:
        source_key, noise_key = jax.random.split(key)
        x0 = split_if_even(draw_source(source_key, shape, path.source_std), mesh)
        inputs = jax.tree.map(lambda x: split_if_even(x, mesh), inputs)
        return experiment.generate(gather(params, mesh), x0, noise_key, inputs, solver, save_at)

    return jax.jit(sampler)


def items_of_batch(experiment: Experiment, size: int, batch: int = 0) -> Batch:
    """The test images that a batch of samples belongs to: in order, and again from the first."""
    source = experiment.test_data
    indices = np.arange(batch * size, (batch + 1) * size) % len(source)
    return items_at(source, indices, experiment.config.data.max_corrupt)


def sample_inputs(experiment: Experiment, size: int, batch: int = 0) -> Inputs:
    """What a batch of samples is given: the low resolution of its test images, and their labels.

    Labels alone are those of the training images, which samples are held against, in random order:
    as many of each class.
    """
    if not experiment.conditioning:
        return {}
    if experiment.conditioning.low_resolution is None:
        labels = experiment.train_data.label
        order = np.random.RandomState(0).permutation(len(labels))
        return {"label": labels[order[np.arange(batch * size, (batch + 1) * size) % len(order)]]}
    return experiment.conditioning.inputs(items_of_batch(experiment, size, batch))


def sample_key(seed: int, batch: int = 0) -> Array:
    """The key of a batch of an evaluation's samples; its scores have another (`scores.score_key`).

    The same for all weights, methods and solvers, so that these start from the same noise.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 0), batch)


def draw(
    experiment: Experiment,
    sampler: Sampler,
    workdir: Path,
    weights: str,
    params: Params,
    step: int,
    keep_arrays: bool = False,
) -> Solution:
    """Draw samples, always from the same noise, and write samples/<step>_<weights>.png.

    Of super-resolution each sample stands between its low resolution, as it is and by the bicubic
    filter, and its original; of a model of classes each class has a row (see `class_rows`).

    Args:
        weights: what the parameters are, "ema" or "raw".
        keep_arrays: write samples/<step>_<weights>[_guidance<scale>]_nfe<n>.png instead, and an
            .npz beside it with "x" in model space, float32, and "label" where classes have rows.
    """
    rows = class_rows(experiment)
    count = experiment.config.evaluate.samples
    given = None if rows is None else {"label": np.resize(rows, count)}
    with compiling("the sampler"):
        solution = sampler(params, inputs=given)
    if not solution.converged:
        logger.warning("The solver gave up on samples at step %d: the field is not finite.", step)
    x = to_host(solution.x)[: None if rows is None else rows.size]
    if jax.process_index() == 0:
        guided = f"_guidance{experiment.guidance.scale:g}" if experiment.guidance else ""
        how = f"{guided}_nfe{solution.nfe}" if keep_arrays else ""
        path = workdir / "samples" / f"{step}_{weights}{how}.png"
        _save_picture(experiment, path, x, None if rows is None else rows.shape[1])
        if keep_arrays:
            labels = {} if rows is None else {"label": rows.ravel()}
            np.savez_compressed(path.with_suffix(".npz"), x=x, **labels)
        logger.info("Samples by %d function evaluations are in %s.", solution.nfe, path)
    return solution


def class_rows(experiment: Experiment) -> np.ndarray | None:
    """Labels [rows, columns] of a grid with a row for each class; None where there is no such grid.

    Together they are config.evaluate.samples at most. Where there are more classes than that, the
    grid is square and has the first of them.
    """
    config, conditioning = experiment.config.evaluate, experiment.conditioning
    if not conditioning.labels or conditioning.low_resolution is not None:
        return None
    classes = config.classes or range(experiment.train_data.num_classes)
    columns = config.samples // len(classes) or math.isqrt(config.samples)
    shown = np.asarray(classes, np.int32)[: config.samples // columns]
    return np.repeat(shown[:, None], columns, axis=1)


def _save_picture(
    experiment: Experiment, path: Path, x: np.ndarray, columns: int | None = None
) -> None:
    source = experiment.train_data
    if not source.is_image:
        save_points(path, x)
        return
    if experiment.conditioning.low_resolution is not None:
        originals = items_of_batch(experiment, len(x))["x"]
        of_each = side_by_side(experiment.conditioning, originals, sample=x)
        columns = len(of_each) * max(1, math.isqrt(len(x)) // 2)
        x = np.stack(list(of_each.values()), axis=1).reshape(-1, *source.shape)
    save_images(path, x, source.levels, columns)
