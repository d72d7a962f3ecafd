"""Generate samples as files: one for each seed, or for each class and seed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from flowmatch_jax.arrays import Array, Inputs, Params, filled
from flowmatch_jax.config.field import Of, select
from flowmatch_jax.config.fields import FIELDS
from flowmatch_jax.couplings import draw_source
from flowmatch_jax.data.dataset import Dataset, check_label
from flowmatch_jax.data.sample_files import Archive, Item, Output, Pictures
from flowmatch_jax.evaluation.samples import starts
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.parts.solver import solver_settings
from flowmatch_jax.pixels import as_bytes, quantise
from flowmatch_jax.runtime.errors import RunStopped, UserError
from flowmatch_jax.runtime.mesh import gather, split_if_even, to_host
from flowmatch_jax.runtime.progress import progress_bar
from flowmatch_jax.runtime.stops import StopNotice
from flowmatch_jax.solvers import Solution

logger = logging.getLogger(__name__)

# jitted (params, seeds [B], inputs, x0 [B, ...] or None) -> Solution
SeededSampler = Callable[[Params, Array, Inputs, Array | None], Solution]


def generate_samples(
    experiment: Experiment,
    params: Params,
    seeds: Sequence[int],
    classes: Sequence[str],
    output: Path,
    weights: dict[str, Any],
) -> None:
    """Draw one sample per seed, or per class and seed, and write each to the output.

    The noise of a sample is a function of its seed alone, and with a fixed-step solver so is the
    sample; the steps of an adaptive solver depend on the whole batch. Where samples start from a
    dataset, the seed is the number of the item of its test split, modulo their number. Samples that
    are there already are not drawn again. A batch has config.evaluate.samples samples.

    Args:
        experiment: the experiment.
        params: the parameters.
        seeds: seeds of the noise.
        classes: numbers or names of classes. If it is empty and the model has classes, the class of
            a sample is drawn from the frequencies of the training labels, with its seed.
        output: an .npz file, or a folder for one PNG file per sample (see `sample_files`).
        weights: what identifies the parameters in the run, such as their step. The output records
            it with the settings of the run and of the solver, and refuses others.

    Raises:
        UserError: a class does not exist, the model generates no samples of this kind, or the
            output holds other samples.
    """
    if experiment.conditioning.low_resolution is not None:
        allowed = "it generates from images of low resolution: use --mode=upsample"
        raise UserError("--mode", "generate", allowed)
    items = list_items(experiment, seeds, classes)
    place = _open(experiment, output, items, weights) if jax.process_index() == 0 else None
    present = place.present() if place else np.zeros(len(items), bool)
    missing = np.flatnonzero(~multihost_utils.broadcast_one_to_all(present))
    calls = _draw(experiment, params, items, missing, place)
    if place is not None and place.present().all():
        place.finish()
    by = f", by {np.mean(calls):.4g} function evaluations" if calls else ""
    logger.info("%d samples are in %s; %d were drawn now%s.", len(items), output, len(missing), by)


def list_items(experiment: Experiment, seeds: Sequence[int], classes: Sequence[str]) -> list[Item]:
    """List the samples: each seed once, or once for each of the classes."""
    data = experiment.train_data
    if not experiment.conditioning.labels:
        if classes:
            raise UserError(
                "--classes", ",".join(classes), "the model has no classes: leave it out"
            )
        return [Item(seed, None) for seed in seeds]
    if classes:
        labels = [class_number(data, name) for name in classes]
        return [Item(seed, label) for label in labels for seed in seeds]
    counts = np.asarray(data.label_counts)
    labels = (
        np.random.RandomState(seed).choice(len(counts), p=counts / counts.sum()) for seed in seeds
    )
    return [Item(seed, int(label)) for seed, label in zip(seeds, labels, strict=True)]


def class_number(data: Dataset, name: str) -> int:
    """Return the number of a class that is given by its name or its number."""
    names = data.classes or ()
    if name in names or name.isdigit():
        label = names.index(name) if name in names else int(name)
        check_label("--classes", label, data)
        return label
    named = f", or by name: {', '.join(names)}" if names else ""
    raise UserError("--classes", name, f"the classes are 0 to {data.num_classes - 1}{named}")


def make_seeded_sampler(experiment: Experiment) -> SeededSampler:
    """Create a jitted sampler (params, seeds uint32 [B], inputs, x0) -> Solution in model space."""
    path, mesh, shape = experiment.path, experiment.mesh, experiment.train_data.shape

    def source(seed: Array) -> Array:
        return draw_source(jax.random.key(seed), shape, path.source_std)

    def sampler(params: Params, seeds: Array, inputs: Inputs, x0: Array | None) -> Solution:
        x0 = split_if_even(jax.vmap(source)(seeds) if x0 is None else x0, mesh)
        inputs = jax.tree.map(lambda x: split_if_even(x, mesh), inputs)
        keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 1))(seeds)
        return experiment.generate(gather(params, mesh), x0, keys, inputs)

    return jax.jit(sampler)


def _open(
    experiment: Experiment, output: Path, items: Sequence[Item], weights: dict[str, Any]
) -> Output:
    data, config = experiment.train_data, experiment.config
    how = select(FIELDS, config, Of.SCORES)
    settings = weights | {
        "solver": solver_settings(config, experiment.fitted),
        "guidance": how["guidance"],
        "run": select(FIELDS, config, Of.RUN),
    }
    if config.objective.name == "sr3":
        settings["sr3"] = how["sr3"]
    if output.suffix == ".npz":
        return Archive(output, items, settings, data.shape, data.is_image)
    if output.suffix or not data.is_image:
        allowed = "give a folder (one PNG file per image) or an .npz file"
        raise UserError("--output", str(output), allowed if data.is_image else "give an .npz file")
    return Pictures(output, items, settings, data.classes)


def _draw(
    experiment: Experiment,
    params: Params,
    items: Sequence[Item],
    missing: np.ndarray,
    place: Output | None,
) -> list[int]:
    """Draw the missing samples in batches; returns the NFE of each."""
    size, calls = experiment.config.evaluate.samples, []
    sampler = make_seeded_sampler(experiment)
    with progress_bar(total=len(missing), desc="samples") as bar, StopNotice() as notice:
        for start in range(0, len(missing), size):
            rows = missing[start : start + size]
            solution = _draw_batch(experiment, sampler, params, [items[i] for i in rows], size)
            x = to_host(_stored(experiment, solution.x))[: len(rows)]
            if place is not None:
                place.add(rows, x)
            calls.append(int(solution.nfe))
            bar.update(len(rows))
            if notice.reached(start // size):
                left = len(missing) - start - len(rows)
                raise RunStopped(
                    f"{notice.signal}: {left} samples are left; the same command goes on"
                )
    return calls


def _draw_batch(
    experiment: Experiment,
    sampler: SeededSampler,
    params: Params,
    items: Sequence[Item],
    size: int,
) -> Solution:
    seeds = filled(np.array([item.seed for item in items], np.uint32), size)
    labels = filled(np.array([item.label or 0 for item in items], np.int32), size)
    inputs = {"label": jnp.asarray(labels)} if experiment.conditioning.labels else {}
    source = experiment.source
    x0 = None if source is None else starts(source.test, seeds)
    solution = sampler(params, seeds, inputs, x0)
    if not solution.converged:
        raise RunStopped(
            f"the solver failed for the seeds {items[0].seed} to {items[-1].seed}: the field is "
            "not finite; try a fixed method, such as --config.solver.method=midpoint"
        )
    return solution


def _stored(experiment: Experiment, x: Array) -> Array:
    """Convert samples to what is stored: images become uint8 in [0, 255]."""
    levels = experiment.train_data.levels
    return x if levels is None else as_bytes(quantise(x, levels), levels)
