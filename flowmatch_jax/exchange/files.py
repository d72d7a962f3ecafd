"""The weights of a run as a .safetensors file, and what a run needs from such a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save

from flowmatch_jax.arrays import Params
from flowmatch_jax.config.experiments import experiment_config
from flowmatch_jax.config.fields import for_weights
from flowmatch_jax.config.identity import from_record, record
from flowmatch_jax.experiment import Experiment, build
from flowmatch_jax.networks.convert.adm import torch_arguments, torch_tensors
from flowmatch_jax.networks.convert.own import FORMAT, named, read_own
from flowmatch_jax.networks.convert.sources import metadata_of, opened_weights
from flowmatch_jax.networks.unet import UNet
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.files import write_atomically
from flowmatch_jax.runtime.workdir import check_run, recorded_data
from flowmatch_jax.training.setup import facts_of
from flowmatch_jax.training.weights import load_weights

SUFFIX = ".safetensors"
FORMATS = (FORMAT, "torchcfm")


def check_file(file: Path) -> None:
    """Raise UserError unless a file of weights can be written and does not exist."""
    if file.suffix != SUFFIX:
        raise UserError("--to", str(file), f"give a name that ends in {SUFFIX}")
    if file.exists():
        raise UserError("--to", str(file), "it exists; give another name or remove it")
    if not os.access(file.parent, os.W_OK):
        raise UserError("--to", str(file), f"there is no folder {file.parent} to write to")


def export_run(workdir: Path, file: Path, form: str, weights: str, step: int | None) -> int:
    """Write the weights of a run to a file, with what the run needs in its metadata.

    Args:
        workdir: folder of the run.
        file: the .safetensors file, which must be new.
        form: "flowmatch_jax": our names, with the config and the facts of the data as JSON;
            "torchcfm": the names of torchcfm's UNetModel, with its arguments as JSON.
        weights: "ema" or "raw".
        step: step of the checkpoint; None: the newest.

    Returns:
        The step.

    Raises:
        UserError: there is no such run or checkpoint, the file cannot be written, or torchcfm has
            no such network.
    """
    check_file(file)
    check_run(workdir)
    config = experiment_config(str(workdir / "config.json"))
    experiment = build(for_weights(config), recorded_data(workdir))
    if form == "torchcfm":
        _check_torchcfm(experiment)
    ((step, kinds),) = load_weights(experiment, workdir, (weights,), step=step).items()
    params = jax.device_get(kinds[weights])
    metadata = {"format": form, "weights": weights, "step": str(step)}
    if form == "torchcfm":
        shape = experiment.train_data.shape
        metadata["arguments"] = json.dumps(torch_arguments(experiment.network, shape[0]))
        tensors = torch_tensors(experiment.network, shape[0], params)
    else:
        metadata |= {"config": json.dumps(record(config)), "data": json.dumps(facts_of(experiment))}
        tensors = named(params)
    contiguous = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    write_atomically(file, save(contiguous, metadata))
    return step


def _check_torchcfm(experiment: Experiment) -> None:
    """Raise UserError unless torchcfm's U-Net is this network, and is called as it is."""
    network, fields = experiment.network, experiment.config.network
    if not isinstance(network, UNet) or network.condition_channels or network.two_times:
        allowed = "torchcfm has U-Nets of x and one time, with labels or without: leave out --as"
        raise UserError("config.network", fields.name, allowed)
    if experiment.config.objective.predicts != "velocity" or fields.time_input != "t":
        got = f"{experiment.config.objective.predicts} at {fields.time_input}"
        allowed = "torchcfm's networks predict the velocity at t: leave out --as"
        raise UserError("config.objective.predicts", got, allowed)
    if experiment.path.source_std != 1:
        allowed = "on this path the network is given x scaled, and torchcfm's x itself"
        raise UserError(
            "config.path.name", experiment.config.path.name, f"{allowed}: leave out --as"
        )
    if network.conventions != "adm":
        allowed = "torchcfm's U-Net has other paddings, frequencies and norms: leave out --as"
        raise UserError("config.network.unet.conventions", network.conventions, allowed)
    if network.time_scale != 1:
        allowed = "torchcfm's U-Net takes t as it is: only a network with 1 is one"
        raise UserError("config.network.unet.time_scale", network.time_scale, allowed)
    for width in {network.channels * multiplier for multiplier in network.multipliers}:
        if width % 32:
            allowed = f"torchcfm's norms have 32 groups, and a level has {width} channels"
            raise UserError("config.network.unet.channels", network.channels, allowed)


def is_exported(source: Path) -> bool:
    """Test whether a file is one of `export_run`, with our names."""
    return source.suffix == SUFFIX and metadata_of(source).get("format") == FORMAT


def read_exported(source: Path) -> tuple[ConfigDict, dict[str, dict[str, Any]], Params]:
    """Read a file of `export_run`: the config, the facts of the data, and the parameters.

    The data are opened if the file has no facts of them.

    Raises:
        UserError: the file is damaged, or not one with our names.
    """
    metadata = metadata_of(source)
    try:
        config, facts = (json.loads(metadata[name]) for name in ("config", "data"))
    except (KeyError, ValueError) as error:
        allowed = f"it must be a file of python -m flowmatch_jax.networks.export ({error!r})"
        raise UserError("SOURCE", str(source), allowed) from error
    config = from_record(config)
    experiment = build(for_weights(config), facts)
    layout = jax.eval_shape(experiment.init_params, jax.random.key(0))
    with opened_weights(source) as state:
        return config, facts_of(experiment), read_own(source, state, layout)
