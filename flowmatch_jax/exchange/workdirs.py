"""Runs that begin with given weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flowmatch_jax.arrays import Params
from flowmatch_jax.config.fields import for_weights
from flowmatch_jax.config.identity import record
from flowmatch_jax.data.dataset import Splits, described
from flowmatch_jax.experiment import Experiment, build
from flowmatch_jax.parts.data import open_dataset
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.workdir import open_workdir, write_config, write_data
from flowmatch_jax.training.checkpoints import Checkpoints
from flowmatch_jax.training.setup import check_training
from flowmatch_jax.training.state import init_state


def facts_of_data(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Return the facts of both splits of the config's dataset, which is opened."""
    return {split: open_dataset(config.data, split).facts() for split in Splits._fields}


def facts_of_absent_data(
    config: ConfigDict, shape: tuple[int, ...], classes: int | None
) -> dict[str, dict[str, Any]]:
    """Return facts of both splits of images of this shape, of which nothing else is known."""
    name, version = config.data.name, config.data.version
    return {split: described(name, version, split, shape, classes) for split in Splits._fields}


def check_new(workdir: Path) -> None:
    """Raise UserError unless the folder of a run does not exist, or is empty."""
    if workdir.exists() and not (workdir.is_dir() and not any(workdir.iterdir())):
        raise UserError("--to", str(workdir), "it exists; give another folder or remove it")


def write_workdir(
    config: ConfigDict, facts: dict[str, dict[str, Any]], params: Params, workdir: Path
) -> Experiment:
    """Write the workdir of a run that begins with these weights, both raw and averaged.

    Its checkpoint is that of step 0, before any training: Adam's moments are zero.

    Args:
        config: the config of the run.
        facts: facts of the "train" and the "test" split, and of the "source" if it is a dataset.
        params: the parameters, as arrays of NumPy.
        workdir: folder of the run, which must be new.

    Returns:
        The experiment.

    Raises:
        UserError: a field of the config is invalid, or the folder exists or cannot be written.
    """
    check_new(workdir)
    experiment = build(for_weights(config), facts)
    _, optimizer = check_training(experiment)
    open_workdir(workdir)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(0, init_state(lambda key: params, optimizer, config.seed))
    write_data(workdir, **facts)
    write_config(workdir, record(config))
    return experiment
