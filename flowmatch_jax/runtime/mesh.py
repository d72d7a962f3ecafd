"""The device mesh with axes ("data", "fsdp"), and the shardings of arrays on it.

The batch is sharded over both axes. Parameters, their moving average and the optimiser's moments
are sharded over "fsdp"; if that axis has one device, they are replicated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flowmatch_jax.runtime.errors import UserError

BATCH_AXES = ("data", "fsdp")


def check_jax() -> None:
    """Raise UserError for settings of JAX with which the program cannot work."""
    if jax.config.jax_disable_jit:
        allowed = "training steps and solves are compiled; unset it"
        raise UserError("JAX_DISABLE_JIT", True, allowed)
    try:
        jax.devices()
    except RuntimeError as error:
        allowed = f"JAX finds no such devices ({str(error).splitlines()[0]}); unset it, or give cpu"
        raise UserError("JAX_PLATFORMS", jax.config.jax_platforms, allowed) from error


def make_mesh(fsdp: int = 1) -> Mesh:
    """Create a (devices / fsdp) x fsdp mesh of all devices of all processes.

    Raises:
        UserError: fsdp does not divide the number of devices.
    """
    devices = jax.device_count()
    if devices % fsdp:
        raise UserError("fsdp", fsdp, f"it must divide the number of devices, {devices}")
    return jax.make_mesh((devices // fsdp, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def check_batch(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Raise UserError unless the number of devices divides the size of each micro-batch."""
    if batch_size % (mesh.size * microbatches):
        allowed = f"it must be a multiple of the number of devices, {mesh.size}"
        if microbatches > 1:
            allowed += f", times accumulate, {microbatches}"
        raise UserError("batch_size", batch_size, allowed)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of the leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding with a full copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Return a sharding for each array of the state.

    The largest axis whose length the size of "fsdp" divides is sharded over it; an array without
    such an axis is replicated.

    Args:
        state: a pytree of arrays or of their shapes.
        mesh: the device mesh.
    """
    size = mesh.shape["fsdp"]

    def sharding(array: Any) -> NamedSharding:
        divisible = [axis for axis, length in enumerate(array.shape) if length % size == 0]
        if size == 1 or not divisible:
            return replicated(mesh)
        axis = max(divisible, key=lambda axis: array.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree.map(sharding, state)


def with_shardings(state: Any, mesh: Mesh) -> Any:
    """Return the state's shapes with their shardings, the target for restoring a checkpoint."""
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        state,
        state_shardings(state, mesh),
    )


def split_if_even(batch: jax.Array, mesh: Mesh) -> jax.Array:
    """In a jitted function, shard the leading axis over all devices if they divide it."""
    even = batch.shape[0] % mesh.size == 0
    sharding = batch_sharding(mesh) if even else replicated(mesh)
    return jax.lax.with_sharding_constraint(batch, sharding)


def gather(tree: Any, mesh: Mesh) -> Any:
    """In a jitted function, replicate arrays that may be sharded.

    A solve calls its network many times; parameters gathered before it are not gathered at each
    call.
    """
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def to_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """Copy an array that may be sharded over devices and processes to the host."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def put_batches(batches: Sequence[dict[str, np.ndarray]], mesh: Mesh) -> dict[str, jax.Array]:
    """Stack this process's part of n batches into global arrays [n, B, ...] for n steps."""
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
    return {
        name: jax.make_array_from_process_local_data(
            sharding, np.stack([batch[name] for batch in batches])
        )
        for name in batches[0]
    }


def put_whole(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Copy an array, which must be equal in all processes, to each device."""
    return jax.make_array_from_process_local_data(replicated(mesh), np.asarray(array), array.shape)


def describe(mesh: Mesh) -> str:
    """Describe the mesh in one line for the log."""
    kind = mesh.devices.flat[0].device_kind
    shape = " x ".join(f"{name}={size}" for name, size in mesh.shape.items())
    return f"{mesh.size} x {kind} ({shape}), {jax.process_count()} process(es)"
