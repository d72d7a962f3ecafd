"""Estimates of a run's cost before it starts: operations, memory, and the state's sharding."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from flowmatch_jax.couplings import OF_THE_BATCH
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.networks import pure_apply
from flowmatch_jax.runtime.text import aligned
from flowmatch_jax.training.cost import hardware
from flowmatch_jax.training.state import TrainState
from flowmatch_jax.training.step import make_gradient

PARTS = {"params": "parameters", "ema": "average", "opt_state": "optimiser"}


def model_flops(experiment: Experiment, batch_size: int | None = None) -> float | None:
    """Count the floating-point operations of the gradient of a batch, forward and backward.

    Only the model counts, not rematerialisation or the optimiser. XLA counts the operations of the
    traced program; nothing is compiled.

    Args:
        experiment: the experiment.
        batch_size: batch size; None: config.train.batch_size.

    Returns:
        The number of operations; None for maximum likelihood, whose solver makes a variable number
        of network calls, and where `traced_flops` has no count.
    """
    config, source = experiment.config, experiment.trained_on.train
    if config.objective.name == "maximum_likelihood":
        return None
    network = experiment.network
    if isinstance(network, nn.Module) and hasattr(network, "remat"):
        network = network.clone(remat=False)
    gradient = make_gradient(
        experiment.objective,
        pure_apply(network, features=experiment.features),
        source.levels,
        config.data.flip,
        training_inputs=experiment.conditioning.training_inputs,
    )
    batch = jax.eval_shape(lambda: source.zeros(batch_size or config.train.batch_size))
    if config.objective.coupling in OF_THE_BATCH or experiment.source is not None:
        batch["x0"] = jax.ShapeDtypeStruct(batch["x"].shape, np.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(experiment.init_params, key)
    return traced_flops(gradient, params, batch, key)


def traced_flops(function: Any, *shapes: Any) -> float | None:
    """Return XLA's count of operations for arguments of these shapes; a loop's body counts once.

    The CPU backend counts the program lowered for TPUs, in which attention is neither a loop, as it
    is on CPUs, nor an opaque call. The result is None if JAX has no CPU backend, because the
    backends of accelerators count compiled programs only, and if the function has a part that
    cannot be lowered for TPUs, such as a call of Python.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
    with jax.default_device(cpu):
        traced = jax.jit(function).trace(*shapes)
        try:
            return traced.lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]
        except (ValueError, NotImplementedError):
            return None


def bytes_a_device(layout: Any) -> int:
    """Count the bytes per device of a pytree of arrays, or of their shapes with shardings."""
    return sum(map(_bytes, jax.tree.leaves(layout)))


def _bytes(array: Any) -> int:
    return int(np.prod(array.sharding.shard_shape(array.shape))) * array.dtype.itemsize


@dataclass(frozen=True)
class Memory:
    """Memory of a training step, in bytes per device.

    Attributes:
        parameters, average, optimiser: the parts of the state.
        activations: all other memory: activations, gradients, the batch, and the dataset if it is
            stored on the device; None if the compiler does not report it.
    """

    parameters: int
    average: int
    optimiser: int
    activations: int | None

    @property
    def total(self) -> int:
        return sum(value or 0 for value in dataclasses.astuple(self))


def step_memory(layout: TrainState, compiled: jax.stages.Compiled) -> Memory:
    """Return the memory of a training step.

    Args:
        layout: the state's shapes with their shardings.
        compiled: the function of `make_train_step`, compiled for this state.
    """
    parts = {name: bytes_a_device(getattr(layout, part)) for part, name in PARTS.items()}
    analysis = compiled.memory_analysis()
    if analysis is None:
        return Memory(**parts, activations=None)
    # Outputs that reuse the buffers of the donated state are in both counts.
    needed = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )
    return Memory(**parts, activations=max(0, needed - bytes_a_device(layout)))


def memory_limit(device: jax.Device) -> int | None:
    """Return the bytes of memory that JAX may use on a device, or None if they are unknown.

    With preallocation (GPUs) this is the preallocated fraction, 75% by default. If the device does
    not report it, the datasheet's value is used.
    """
    stats = device.memory_stats() or {}
    known = hardware.find(device.device_kind)
    return stats.get("bytes_limit") or (None if known is None else int(known.memory_bytes))


def describe(
    parameters: int, memory: Memory, limit: int | None, flops: float | None, batch_size: int
) -> list[str]:
    """Return lines for the log: number of parameters, memory per device, operations per step.

    Args:
        parameters: number of parameters.
        memory: result of `step_memory`.
        limit: result of `memory_limit`.
        flops: result of `model_flops` for ``batch_size`` items.
        batch_size: number of items in a batch.
    """
    sizes = dataclasses.asdict(memory).items()
    parts = ", ".join(f"{name} {_size(size)}" for name, size in sizes if size is not None)
    of_limit = "" if limit is None else f" of {_size(limit)}"
    lines = [
        f"The network has {parameters:,} parameters.",
        f"A step needs {_size(memory.total)}{of_limit} of memory on a device: {parts}.",
    ]
    if flops is not None:
        step, item = (_short(n, 1000, "FLOP") for n in (flops, flops / batch_size))
        lines.append(f"A step takes {step}, {item} for each item of the batch.")
    return lines


def shortage(memory: Memory, limit: int | None) -> str | None:
    """Return a warning with remedies if memory does not suffice, else None."""
    if limit is None or memory.total <= limit:
        return None
    return (
        f"The step needs {_size(memory.total)} of memory on a device that has {_size(limit)}: set "
        "config.network.unet.remat, raise config.train.accumulate or config.mesh.fsdp, or take "
        "more devices (docs/scaling.md)"
    )


def utilisation(
    flops_a_step: float, steps_per_second: float, mesh: Mesh, dtype: str
) -> float | None:
    """Compute the model FLOP utilisation: operations per second over the mesh's peak.

    Args:
        flops_a_step: result of `model_flops`.
        steps_per_second: steps per second.
        mesh: the device mesh.
        dtype: computing dtype of the network, "float32" or "bfloat16".

    Returns:
        The utilisation; None if the device's peak is unknown.
    """
    known = hardware.find(mesh.devices.flat[0].device_kind)
    if known is None:
        return None
    return flops_a_step * steps_per_second / (known.peak_flops[dtype] * mesh.size)


def time_left(steps: int, steps_per_second: float) -> str:
    """Format the duration of ``steps`` in its two largest units, such as "2 d 3 h" or "5 min"."""
    seconds = round(steps / steps_per_second)
    if seconds < 60:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


def layout_table(layout: TrainState) -> str:
    """Format the sharding and the bytes per device of every parameter, with totals.

    The average and the optimiser's moments are sharded as their parameters are.

    Args:
        layout: arrays, or their shapes with shardings.
    """
    header = ("parameter", "shape", "dtype", "sharding", "bytes per device")
    leaves, _ = jax.tree_util.tree_flatten_with_path(layout.params)
    arrays = [
        (
            jax.tree_util.keystr(path, simple=True, separator="/"),
            " x ".join(map(str, array.shape)) or "scalar",
            str(array.dtype),
            sharding_text(array.sharding),
            f"{_bytes(array):,}",
        )
        for path, array in leaves
    ]
    totals = {name: bytes_a_device(getattr(layout, part)) for part, name in PARTS.items()}
    totals["all"] = bytes_a_device(layout)
    sums = [(f"total: {name}", "", "", "", f"{size:,}") for name, size in totals.items()]
    return aligned([header, *arrays, *sums], right=(len(header) - 1,))


def sharding_text(sharding: jax.sharding.Sharding) -> str:
    """Describe a sharding, such as "fsdp on axis 1" or "replicated"."""
    spec = getattr(sharding, "spec", PartitionSpec())
    split = [
        f"{' x '.join(names) if isinstance(names, tuple) else names} on axis {axis}"
        for axis, names in enumerate(spec)
        if names is not None
    ]
    return ", ".join(split) or "replicated"


def _size(size: float) -> str:
    return _short(size, 1024, "B")


def _short(value: float, base: int, unit: str) -> str:
    """Format with three digits and a prefix: 1.25 PFLOP for base 1000, 3.1 GiB for base 1024."""
    power = 0
    while value >= 999.5:
        value, power = value / base, power + 1
    prefix = ("", "K", "M", "G", "T", "P", "E", "Z")[power]
    return f"{value:.3g} {prefix}{'i' if prefix and base == 1024 else ''}{unit}"
