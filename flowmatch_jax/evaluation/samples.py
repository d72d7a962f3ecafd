"""Samples of an experiment, and their pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flowmatch_jax.arrays import Array, Inputs, Params
from flowmatch_jax.conditioning import Batch
from flowmatch_jax.data.pipeline import items_at
from flowmatch_jax.evaluation.super_resolution import side_by_side
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.mesh import gather, split_if_even, to_host
from flowmatch_jax.pictures import save_images, save_points
from flowmatch_jax.sampling import draw_source
from flowmatch_jax.solvers import Solution

logger = logging.getLogger(__name__)

# (params, batch=0) -> Solution, the batch being a number
Sampler = Callable[..., Solution]
# jitted (params, key, inputs) -> Solution
GivenSampler = jax.stages.Wrapped


def make_sampler(experiment: Experiment, size: int, **solver: Any) -> Sampler:
    """An evaluation's samples, batch by batch: (params, batch=0) -> Solution, x in model space.

    A batch starts from the noise of `sample_key` and is given the `sample_inputs` of its number:
    the same for all weights, methods and solvers.

    Args:
        size: samples in a batch, split over all devices where these divide it.
        **solver: in place of the config's: method, rtol, atol, steps, save_at.
    """
    draw_given = make_given_sampler(experiment, size, **solver)
    seed = experiment.config.evaluate.seed

    def sampler(params: Params, batch: int = 0) -> Solution:
        inputs = sample_inputs(experiment, size, batch)
        return draw_given(params, sample_key(seed, batch), inputs)

    return sampler


def make_given_sampler(experiment: Experiment, size: int, **solver: Any) -> GivenSampler:
    """Compile (params, key, inputs) -> Solution with x [size, ...] in model space.

    Args:
        size, solver: as of `make_sampler`.
    """
    path = experiment.path
    shape = (size, *experiment.train_source.shape)
    mesh = experiment.mesh

    def sampler(params: Params, key: Array, inputs: Inputs) -> Solution:
        x0 = split_if_even(draw_source(key, shape, path.source_std), mesh)
        inputs = jax.tree.map(lambda x: split_if_even(x, mesh), inputs)
        noise_key = jax.random.fold_in(key, 0)
        return experiment.generate(gather(params, mesh), x0, noise_key, inputs, **solver)

    return jax.jit(sampler)


def items_of_batch(experiment: Experiment, size: int, batch: int = 0) -> Batch:
    """The test images that a batch of samples belongs to: in order, and again from the first."""
    source = experiment.test_source
    indices = np.arange(batch * size, (batch + 1) * size) % len(source)
    return items_at(source, indices, experiment.config.data.max_corrupt)


def sample_inputs(experiment: Experiment, size: int, batch: int = 0) -> Inputs:
    """What a batch of samples is given: labels and low resolution of its test images."""
    if not experiment.conditioning:
        return {}
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
    filter, and its original.

    Args:
        weights: what the parameters are, "ema" or "raw".
        keep_arrays: write samples/<step>_<weights>_nfe<n>.png instead, and an .npz beside it with
            "x" in model space, float32.
    """
    source = experiment.train_source
    solution = sampler(params)
    if not solution.converged:
        logger.warning("The solver gave up on samples at step %d: the field is not finite", step)
    x = to_host(solution.x)
    if jax.process_index() == 0:
        cost = f"_nfe{solution.nfe}" if keep_arrays else ""
        path = workdir / "samples" / f"{step}_{weights}{cost}.png"
        if experiment.conditioning.low_resolution is not None:
            originals = items_of_batch(experiment, len(x))["x"]
            columns = side_by_side(experiment.conditioning, originals, sample=x)
            of_each = np.stack(list(columns.values()), axis=1)
            a_row = max(1, math.isqrt(len(x)) // 2)
            images = of_each.reshape(-1, *source.shape)
            save_images(path, images, source.levels, len(columns) * a_row)
        elif source.is_image:
            save_images(path, x, source.levels)
        else:
            save_points(path, x)
        if keep_arrays:
            np.savez_compressed(path.with_suffix(".npz"), x=x)
        logger.info("Samples: %s (%d function evaluations)", path, solution.nfe)
    return solution
