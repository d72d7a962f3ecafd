"""What a run costs, before it starts: operations, memory, and what lies where."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from flowmatch_jax.experiment import Experiment
from flowmatch_jax.networks import pure_apply
from flowmatch_jax.runtime.text import aligned
from flowmatch_jax.training.cost import hardware
from flowmatch_jax.training.state import TrainState
from flowmatch_jax.training.step import make_gradient

PARTS = {"params": "parameters", "ema": "average", "opt_state": "optimiser"}


def model_flops(experiment: Experiment, batch_size: int | None = None) -> float | None:
    """Floating-point operations of the gradient of a batch, forward and backward.

    Those of the model: neither what rematerialisation computes again nor the optimiser. Counted by
    XLA in the traced program; nothing is compiled.

    Args:
        batch_size: that of config.train where not given.

    Returns:
        None for maximum likelihood, whose solver calls the network as often as it must, and where
        JAX has no CPU beside the accelerator (JAX_PLATFORMS).
    """
    config, source = experiment.config, experiment.train_data
    if config.objective.name == "maximum_likelihood":
        return None
    network = experiment.network
    if hasattr(network, "remat"):
        network = network.clone(remat=False)
    gradient = make_gradient(
        experiment.objective,
        pure_apply(network),
        source.levels,
        config.data.flip,
        training_inputs=experiment.conditioning.training_inputs,
    )
    batch = jax.eval_shape(lambda: source.zeros(batch_size or config.train.batch_size))
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(experiment.init_params, key)
    return traced_flops(gradient, params, batch, key)


def traced_flops(function: Any, *shapes: Any) -> float | None:
    """XLA's count for a function of arrays of these shapes; a loop's body counts once.

    Counted by the CPU's backend, of the program for a TPU: there attention is neither the loop that
    it is on CPUs nor an opaque call. None where JAX has no CPU backend: those of accelerators count
    compiled programs alone.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
    with jax.default_device(cpu):
        program = jax.jit(function).trace(*shapes).lower(lowering_platforms=("tpu",))
        return program.cost_analysis()["flops"]


def bytes_a_device(layout: Any) -> int:
    """Bytes on one device of a pytree of arrays, or of their shapes with shardings."""
    return sum(map(_bytes, jax.tree.leaves(layout)))


def _bytes(array: Any) -> int:
    return int(np.prod(array.sharding.shard_shape(array.shape))) * array.dtype.itemsize


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        parameters, average, optimiser: of the state.
        activations: what the step needs besides: activations, gradients, the batch, the data set
            where it lies on the device; None where the compiler does not tell.
    """

    parameters: int
    average: int
    optimiser: int
    activations: int | None

    @property
    def total(self) -> int:
        return sum(value or 0 for value in dataclasses.astuple(self))


def step_memory(layout: TrainState, compiled: jax.stages.Compiled) -> Memory:
    """What a training step needs.

    Args:
        layout: the state's shapes with their shardings.
        compiled: of `make_train_step`, compiled for it.
    """
    parts = {name: bytes_a_device(getattr(layout, part)) for part, name in PARTS.items()}
    analysis = compiled.memory_analysis()
    if analysis is None:
        return Memory(**parts, activations=None)
    # Outputs that take the place of the donated state are in both counts.
    needed = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )
    return Memory(**parts, activations=max(0, needed - bytes_a_device(layout)))


def memory_limit(device: jax.Device) -> int | None:
    """Bytes of memory that JAX may use on a device; its datasheet's, or None, where it is silent.

    With preallocation (GPUs) this is the fraction that JAX takes, 75% unless told otherwise.
    """
    stats = device.memory_stats() or {}
    known = hardware.find(device.device_kind)
    return stats.get("bytes_limit") or (None if known is None else int(known.memory_bytes))


def describe(
    parameters: int, memory: Memory, limit: int | None, flops: float | None, batch_size: int
) -> list[str]:
    """Lines for the log: the network's size, the memory of a device, the operations of a step.

    Args:
        parameters: how many.
        limit: of `memory_limit`.
        flops: of `model_flops`, for batch_size items.
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
    """A warning with the ways out where the memory is short; None where it is not."""
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
    """Model FLOP utilisation: operations a second over the mesh's peak; None where it isn't known.

    Args:
        flops_a_step: of `model_flops`.
        dtype: that the network computes in, "float32" or "bfloat16".
    """
    known = hardware.find(mesh.devices.flat[0].device_kind)
    if known is None:
        return None
    return flops_a_step * steps_per_second / (known.peak_flops[dtype] * mesh.size)


def time_left(steps: int, steps_per_second: float) -> str:
    """How long so many steps take, in the two largest units that matter: "2 d 3 h", "5 min"."""
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
    """Every parameter, where it lies and its bytes on a device; totals of each part and of all.

    Average and optimiser's moments lie as their parameters do.

    Args:
        layout: arrays, or their shapes with shardings.
    """
    header = ("parameter", "shape", "dtype", "lies", "bytes a device")
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
    """Such as "fsdp on axis 1", or "replicated"."""
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
    """Three digits with a prefix: 1.25 PFLOP by base 1000, 3.1 GiB by base 1024."""
    power = 0
    while value >= 999.5:
        value, power = value / base, power + 1
    prefix = ("", "K", "M", "G", "T", "P", "E", "Z")[power]
    return f"{value:.3g} {prefix}{'i' if prefix and base == 1024 else ''}{unit}"
