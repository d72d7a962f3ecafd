"""Samples of an experiment, and their pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flowmatch_jax.arrays import Array, Params
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.mesh import gather, split_if_even, to_host
from flowmatch_jax.pictures import save_images, save_points
from flowmatch_jax.sampling import draw_source
from flowmatch_jax.solvers import Solution, integrate

logger = logging.getLogger(__name__)

Sampler = Callable[[Params, Array], Solution]


def make_sampler(experiment: Experiment, size: int, **solver: Any) -> Sampler:
    """Compile (params, key) -> Solution with x [size, ...] in model space.

    Args:
        size: samples in a batch, split over all devices where these divide it.
        **solver: in place of the config's: method, rtol, atol, steps, save_at.
    """
    path = experiment.path
    shape = (size, *experiment.train_source.shape)
    options = solver or experiment.solver()
    mesh = experiment.mesh

    def sampler(params: Params, key: Array) -> Solution:
        x0 = split_if_even(draw_source(key, shape, path.source_std), mesh)
        field = experiment.field(gather(params, mesh))
        return integrate(field, x0, 0.0, path.t_end, **options)

    return jax.jit(sampler)


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

    Args:
        weights: what the parameters are, "ema" or "raw".
        keep_arrays: write samples/<step>_<weights>_nfe<n>.png instead, and an .npz beside it with
            "x" in model space, float32.
    """
    source = experiment.train_source
    solution = sampler(params, sample_key(experiment.config.evaluate.seed))
    if not solution.converged:
        logger.warning("The solver gave up on samples at step %d: the field is not finite", step)
    x = to_host(solution.x)
    if jax.process_index() == 0:
        cost = f"_nfe{solution.nfe}" if keep_arrays else ""
        path = workdir / "samples" / f"{step}_{weights}{cost}.png"
        if source.is_image:
            save_images(path, x, source.levels)
        else:
            save_points(path, x)
        if keep_arrays:
            np.savez_compressed(path.with_suffix(".npz"), x=x)
        logger.info("Samples: %s (%d function evaluations)", path, solution.nfe)
    return solution
