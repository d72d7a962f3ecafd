"""Devices as a mesh of axes ("data", "fsdp"), and what lies where on it.

The batch is split over both axes. Parameters, their average and the optimiser's moments are split
over "fsdp"; with one device there, each device has them whole.
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


def make_mesh(fsdp: int = 1) -> Mesh:
    """All devices of all processes as a (devices / fsdp) x fsdp mesh.

    Raises:
        UserError: fsdp does not divide the number of devices.
    """
    devices = jax.device_count()
    if devices % fsdp:
        raise UserError("fsdp", fsdp, f"it must divide the number of devices, {devices}")
    return jax.make_mesh((devices // fsdp, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def check_batch(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Raise UserError unless the devices of the mesh divide each microbatch evenly."""
    if batch_size % (mesh.size * microbatches):
        allowed = f"it must be a multiple of the number of devices, {mesh.size}"
        if microbatches > 1:
            allowed += f", times accumulate, {microbatches}"
        raise UserError("batch_size", batch_size, allowed)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """For each array of the state: its largest axis that "fsdp" divides, split; or replicated.

    Args:
        state: a pytree of arrays or of their shapes.
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
    """The shapes of the state, each with its sharding: what a checkpoint is restored to."""
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        state,
        state_shardings(state, mesh),
    )


def split_if_even(batch: jax.Array, mesh: Mesh) -> jax.Array:
    """Inside a jitted function: the leading axis over all devices, where they divide it."""
    even = batch.shape[0] % mesh.size == 0
    sharding = batch_sharding(mesh) if even else replicated(mesh)
    return jax.lax.with_sharding_constraint(batch, sharding)


def gather(tree: Any, mesh: Mesh) -> Any:
    """Inside a jitted function: whole copies on each device of arrays that may be split.

    A solve calls its network many times: what is gathered before is not gathered at each call.
    """
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def to_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """The whole of an array that may be spread over devices and processes."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def put_batches(batches: Sequence[dict[str, np.ndarray]], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of n batches, as part of the global arrays [n, B, ...] for n steps."""
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
    return {
        name: jax.make_array_from_process_local_data(
            sharding, np.stack([batch[name] for batch in batches])
        )
        for name in batches[0]
    }


def put_whole(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """A copy of an array, the same in all processes, on each device."""
    return jax.make_array_from_process_local_data(replicated(mesh), np.asarray(array), array.shape)


def describe(mesh: Mesh) -> str:
    """One line for the log."""
    kind = mesh.devices.flat[0].device_kind
    shape = " x ".join(f"{name}={size}" for name, size in mesh.shape.items())
    return f"{mesh.size} x {kind} ({shape}), {jax.process_count()} process(es)"
