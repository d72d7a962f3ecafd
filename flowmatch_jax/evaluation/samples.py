"""Sampling from an experiment's model, and pictures of the samples."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from flowmatch_jax.arrays import Array, Batch, Inputs, Params
from flowmatch_jax.couplings import draw_source
from flowmatch_jax.data.dataset import Dataset
from flowmatch_jax.data.pipeline import items_at
from flowmatch_jax.evaluation.pictures import save_images, save_points
from flowmatch_jax.evaluation.super_resolution import side_by_side
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.metrics.scores import SCORES
from flowmatch_jax.pixels import centres
from flowmatch_jax.runtime.mesh import gather, split_if_even, to_host
from flowmatch_jax.runtime.messages import compiling
from flowmatch_jax.sampling.linear import Coefficients
from flowmatch_jax.solvers import Solution, Solver

logger = logging.getLogger(__name__)

MOST_GENERATED = 50_000

# (params, batch=0, inputs=None, coefficients=None) -> Solution, the batch being a number
Sampler = Callable[..., Solution]
# jitted (params, key, inputs, coefficients=None, x0=None) -> Solution
GivenSampler = jax.stages.Wrapped


def number_generated(experiment: Experiment) -> int:
    """Return the number of samples that are scored, config.evaluate.generated.

    If it is unset, they are as many as the training images, but at most 50,000, the number of the
    literature, and at least what each of the scores needs. Samples that start from a dataset are as
    many as the items of its test split, or fewer if that is given.
    """
    given = experiment.config.evaluate.generated
    if experiment.source is not None:
        return min(given or MOST_GENERATED, len(experiment.source.test))
    least = max(score.least for score in SCORES.values())
    return given or min(MOST_GENERATED, max(least, len(experiment.train_data)))


def make_sampler(
    experiment: Experiment,
    size: int,
    solver: Solver | None = None,
    save_at: Sequence[float] | Array | None = None,
) -> Sampler:
    """Create a sampler (params, batch=0, inputs=None, coefficients=None) -> Solution.

    The samples are in model space. With coefficients (`sampling.linear`), these are the solver; one
    compiled program serves all that have the same number of calls.

    Batch number ``batch`` starts from the noise of `sample_key`, or from `source_batch`, and,
    unless ``inputs`` are given, uses the conditioning inputs of `sample_inputs`. All are the same
    for all weights, methods and solvers.

    Args:
        experiment: the experiment.
        size: batch size; the batch is sharded over all devices if they divide it.
        solver: solver; None: the config's.
        save_at: times of the trajectory, as in `solvers.integrate`.
    """
    draw_given = make_given_sampler(experiment, size, solver, save_at)
    seed = experiment.config.evaluate.seed

    def sampler(
        params: Params,
        batch: int = 0,
        inputs: Inputs | None = None,
        coefficients: Coefficients | None = None,
    ) -> Solution:
        inputs = sample_inputs(experiment, size, batch) if inputs is None else inputs
        source = experiment.source
        x0 = None if source is None else source_batch(source.test, size, batch)
        return draw_given(params, sample_key(seed, batch), inputs, coefficients, x0)

    return sampler


def make_given_sampler(
    experiment: Experiment,
    size: int,
    solver: Solver | None = None,
    save_at: Sequence[float] | Array | None = None,
) -> GivenSampler:
    """Create a jitted sampler (params, key, inputs, coefficients=None, x0=None) -> Solution.

    It starts from x0 [size, ...] in model space; None: from noise.

    Args:
        experiment: the experiment.
        size, solver, save_at: as in `make_sampler`.
    """
    path = experiment.path
    shape = (size, *experiment.train_data.shape)
    mesh = experiment.mesh

    def sampler(
        params: Params,
        key: Array,
        inputs: Inputs,
        coefficients: Coefficients | None = None,
        x0: Array | None = None,
    ) -> Solution:
        source_key, noise_key = jax.random.split(key)
        x0 = draw_source(source_key, shape, path.source_std) if x0 is None else x0
        x0 = split_if_even(x0, mesh)
        inputs = jax.tree.map(lambda x: split_if_even(x, mesh), inputs)
        by = solver if coefficients is None else coefficients
        return experiment.generate(gather(params, mesh), x0, noise_key, inputs, by, save_at)

    return jax.jit(sampler)


def source_batch(source: Dataset, size: int, batch: int = 0) -> np.ndarray:
    """Return the items of a source that a batch of samples starts from, in order and cyclically.

    They are in model space, float32 [size, ...]; images are at the centres of their bins.
    """
    return starts(source, np.arange(batch * size, (batch + 1) * size))


def starts(source: Dataset, numbers: np.ndarray) -> np.ndarray:
    """Return the items of a source with these numbers, cyclically, as `source_batch` does."""
    x = items_at(source, numbers % len(source))["x"]
    return x if source.levels is None else centres(x, source.levels).astype(np.float32)


def items_of_batch(experiment: Experiment, size: int, batch: int = 0) -> Batch:
    """Return the test images that belong to a batch of samples, in order and cyclically."""
    source = experiment.test_data
    indices = np.arange(batch * size, (batch + 1) * size) % len(source)
    return items_at(source, indices, experiment.config.data.max_corrupt)


def sample_inputs(experiment: Experiment, size: int, batch: int = 0) -> Inputs:
    """Return the conditioning inputs of a batch of samples.

    Super-resolution uses the low resolution, and the labels, of the batch's test images. Models
    with labels alone use the training images' labels in random order, so that the class frequencies
    equal those of the reference.
    """
    if not experiment.conditioning:
        return {}
    if experiment.conditioning.low_resolution is None:
        labels = experiment.train_data.label
        order = np.random.RandomState(0).permutation(len(labels))
        return {"label": labels[order[np.arange(batch * size, (batch + 1) * size) % len(order)]]}
    return experiment.conditioning.inputs(items_of_batch(experiment, size, batch))


def sample_key(seed: int, batch: int = 0) -> Array:
    """Return the key of a batch of samples; likelihoods use `likelihoods.score_key`.

    It is the same for all weights, methods and solvers, so that they start from the same noise.
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

    For super-resolution the picture shows the low resolution, its bicubic enlargement, the sample
    and the original side by side. If samples start from the images of a dataset, it shows the
    start and the sample. For class-conditional models each class has a row (see `class_rows`).

    Args:
        experiment: the experiment.
        sampler: result of `make_sampler`.
        workdir: folder of the run.
        weights: kind of the parameters, "ema" or "raw".
        params: the parameters.
        step: step at which they were saved.
        keep_arrays: write samples/<step>_<weights>[_guidance<scale>]_nfe<n>.png instead, and an npz
            file beside it with "x" in model space, float32, and "label" if classes have rows.
    """
    rows = class_rows(experiment)
    count = experiment.config.evaluate.samples
    given = None if rows is None else {"label": np.resize(rows, count)}
    with compiling("the sampler"):
        solution = sampler(params, inputs=given)
    if not solution.converged:
        logger.warning("The solver of samples at step %d failed: the field is not finite.", step)
    x = to_host(solution.x)[: None if rows is None else rows.size]
    if jax.process_index() == 0:
        how = f"{experiment.guidance.label}_nfe{solution.nfe}" if keep_arrays else ""
        path = picture_file(workdir, step, f"{weights}{how}")
        _save_picture(experiment, path, x, None if rows is None else rows.shape[1])
        if keep_arrays:
            labels = {} if rows is None else {"label": rows.ravel()}
            np.savez_compressed(path.with_suffix(".npz"), x=x, **labels)
        logger.info("Samples by %d function evaluations are in %s.", solution.nfe, path)
    return solution


def picture_file(workdir: Path, step: int, weights: str) -> Path:
    """Return the file of the picture that `draw` writes."""
    return workdir / "samples" / f"{step}_{weights}.png"


def class_rows(experiment: Experiment) -> np.ndarray | None:
    """Return the labels [rows, columns] of a grid with a row per class, or None for other models.

    The classes are config.evaluate.classes, or all that have training images. The grid has at most
    config.evaluate.samples samples. If there are more classes than that, it is square and shows the
    first ones.
    """
    config, conditioning = experiment.config.evaluate, experiment.conditioning
    if not conditioning.labels or conditioning.low_resolution is not None:
        return None
    classes = config.classes or np.flatnonzero(experiment.train_data.label_counts)
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
    if experiment.source is not None:
        columns = 2 * (columns or max(1, math.isqrt(len(x)) // 2))
        pairs = (source_batch(experiment.source.test, len(x)), x)
        x = np.stack(pairs, axis=1).reshape(-1, *source.shape)
    if experiment.conditioning.low_resolution is not None:
        originals = items_of_batch(experiment, len(x))["x"]
        of_each = side_by_side(experiment.conditioning, originals, sample=x)
        columns = len(of_each) * max(1, math.isqrt(len(x)) // 2)
        x = np.stack(list(of_each.values()), axis=1).reshape(-1, *source.shape)
    save_images(path, x, source.levels, columns)
