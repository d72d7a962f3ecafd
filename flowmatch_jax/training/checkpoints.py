"""Checkpoints by Orbax: all that a run needs to go on as if it had never stopped.

A checkpoint has three parts, so that evaluation reads the weights alone: "params", "ema" and
"progress" (step, optimiser, key, what became of updates that were not finite). The position in the
data is the step: batch n is a function of the seed and n (`data.pipeline`).

Orbax checks that files are there and can be decoded, not that they hold what was written, so a
checkpoint also has "checksums" of its parts.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from flowmatch_jax.arrays import Array, Params
from flowmatch_jax.errors import UserError
from flowmatch_jax.processes import barrier, everywhere
from flowmatch_jax.training.state import TrainState

logger = logging.getLogger(__name__)

PARTS = ("params", "ema", "progress")
WEIGHTS = {"raw": "params", "ema": "ema"}
HALF_WRITTEN = ".orbax-checkpoint-tmp"  # in the name of a checkpoint that Orbax is writing
DAMAGED = "damaged"  # folder of the workdir with checkpoints that were set aside
# Odd numbers without pattern: a number's weight in a checksum changes much from place to place.
ODD = np.array([2654435761, 2246822519, 3266489917, 668265263], np.uint32)


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be read, or does not hold what was written."""


def open_checkpoints(
    workdir: Path,
    keep_last: int = 1,
    keep_every: int | None = None,
    read_only: bool = False,
) -> ocp.CheckpointManager:
    """The checkpoints of a workdir; to be used in a ``with``, which waits for the last write.

    Args:
        keep_last: newest checkpoints kept.
        keep_every: checkpoints at multiples of this step are kept too; None: no others.
        read_only: for reading checkpoints that another process may be writing.
    """
    # Telling Orbax the kind of each part lets it read the shapes of a checkpoint it did not write.
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for part in PARTS:
        registry.add(part, ocp.args.StandardSave)
        registry.add(part, ocp.args.StandardRestore)
    registry.add("checksums", ocp.args.JsonSave)
    registry.add("checksums", ocp.args.JsonRestore)
    policies = [checkpoint_managers.LatestN(keep_last)]
    if keep_every is not None:
        policies.append(checkpoint_managers.EveryNSteps(keep_every))
    return ocp.CheckpointManager(
        workdir.absolute() / "checkpoints",
        options=ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            enable_async_checkpointing=True,
            read_only=read_only,
            create=not read_only,
        ),
        handler_registry=registry,
    )


def save(checkpoints: ocp.CheckpointManager, step: int, state: TrainState) -> None:
    """Start writing the state after ``step`` steps; returns once it is copied off the device."""
    parts = _parts(state)
    checksums = {part: checksum(tree) for part, tree in parts.items()}
    saved = {part: ocp.args.StandardSave(tree) for part, tree in parts.items()}
    checkpoints.save(step, args=ocp.args.Composite(checksums=ocp.args.JsonSave(checksums), **saved))


def restore_newest(checkpoints: ocp.CheckpointManager, layout: TrainState) -> TrainState | None:
    """The newest state that can be read; None where there is none.

    Newer ones that cannot be read, or are half written, are set aside: kept in the workdir's folder
    "damaged".

    Args:
        layout: shapes with their shardings (see `mesh.with_shardings`), which need not be those
            that the state was saved with.

    Raises:
        UserError: it is of another network.
    """
    _set_half_written_aside(checkpoints)
    for step in sorted(checkpoints.all_steps(), reverse=True):
        try:
            return restore(checkpoints, step, layout)
        except DamagedCheckpoint as damage:
            _set_aside(checkpoints, str(step), str(step), str(damage))
    return None


def restore(checkpoints: ocp.CheckpointManager, step: int, layout: TrainState) -> TrainState:
    """The state saved at a step, laid out like ``layout``.

    Raises:
        UserError: it is of another network.
        DamagedCheckpoint: it cannot be read, or is not what was written.
    """
    saved = _restore(checkpoints, step, _parts(layout))
    return TrainState(params=saved["params"], ema=saved["ema"], **saved["progress"])


def restore_weights(
    checkpoints: ocp.CheckpointManager, step: int, weights: str, layout: Params
) -> Params:
    """The "raw" or "ema" weights saved at a step, laid out like ``layout``; raises as `restore`."""
    part = WEIGHTS[weights]
    return _restore(checkpoints, step, {part: layout})[part]


def checksum(tree: Any) -> int:
    """A number below 2^32 that tells states apart that differ in anything, but for chance.

    The bits of each number times an odd number of its place, summed modulo 2^32: exact, so the same
    in every layout over devices. Compiled once a shape: one program for all 322 arrays of a U-Net,
    and one for its optimiser's, took 24 s.
    """
    sums = [_array_checksum(array, np.uint32(i)) for i, array in enumerate(jax.tree.leaves(tree))]
    return sum(map(int, jax.device_get(sums))) % 2**32


@jax.jit
def _array_checksum(array: Array, number: Array) -> Array:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    bits = jax.lax.bitcast_convert_type(array, jnp.uint32)
    place = jnp.asarray(number)
    for axis in range(bits.ndim):
        place = place + ODD[axis] * jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


def _parts(state: TrainState) -> dict[str, Any]:
    progress = {name: value for name, value in vars(state).items() if name not in PARTS}
    return {"params": state.params, "ema": state.ema, "progress": progress}


def _restore(
    checkpoints: ocp.CheckpointManager, step: int, layout: dict[str, Any]
) -> dict[str, Any]:
    """These parts of a checkpoint; damaged in one process is damaged in all."""
    saved, damage = {}, None
    try:
        with _damage():
            saved = _read(checkpoints, step, layout)
    except DamagedCheckpoint as error:
        damage = error
    if not everywhere(damage is None):
        raise damage or DamagedCheckpoint("another process cannot read it")
    return saved


def _read(checkpoints: ocp.CheckpointManager, step: int, layout: dict[str, Any]) -> dict[str, Any]:
    metadata = checkpoints.item_metadata(step)
    for part, tree in layout.items():
        _check_structure(checkpoints, part, metadata[part].tree, tree)
    args = {part: ocp.args.StandardRestore(tree) for part, tree in layout.items()}
    args["checksums"] = ocp.args.JsonRestore()
    saved = checkpoints.restore(step, args=ocp.args.Composite(**args))
    for part in layout:
        if checksum(saved[part]) != saved.checksums[part]:
            raise DamagedCheckpoint(f"its {part} are not those that were saved")
    return {part: saved[part] for part in layout}


@contextmanager
def _damage() -> Iterator[None]:
    """What Orbax raises at a damaged checkpoint, errors of many types, as `DamagedCheckpoint`."""
    try:
        yield
    except (UserError, DamagedCheckpoint, MemoryError, PermissionError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        if "PERMISSION_DENIED" in str(error):
            raise
        raise DamagedCheckpoint(" ".join(str(error).split())[:200]) from error


def _check_structure(
    checkpoints: ocp.CheckpointManager, part: str, saved: Any, layout: Any
) -> None:
    """Raise UserError unless a part of a checkpoint has the names and shapes of the layout."""
    saved, wanted = _shapes(saved), _shapes(layout)
    if part == "progress":
        if saved.keys() != wanted.keys():
            allowed = "its checkpoints are of another version of flowmatch_jax; give another one"
            raise UserError("--workdir", str(checkpoints.directory.parent), allowed)
        return
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                "config.network",
                f"{name} {wanted.get(name, 'absent')}",
                f"the checkpoint in {checkpoints.directory} has {saved.get(name, 'none')}: it is "
                "of another network; give that network's config, or another --workdir",
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): tuple(a.shape) for p, a in leaves}


def _set_half_written_aside(checkpoints: ocp.CheckpointManager) -> None:
    """What a killed run was writing: the last of these is kept, as large as any checkpoint."""
    half_written = sorted(Path(checkpoints.directory).glob(f"*{HALF_WRITTEN}*"))
    barrier("half-written checkpoints are listed")
    for path in half_written:
        kept = Path(checkpoints.directory).parent / DAMAGED
        if jax.process_index() == 0:
            for older in kept.glob("*-half-written"):
                shutil.rmtree(older)
        name = f"{path.name.partition('.')[0]}-half-written"
        _set_aside(checkpoints, path.name, name, "it is half written")


def _set_aside(checkpoints: ocp.CheckpointManager, name: str, new_name: str, reason: str) -> None:
    folder = Path(checkpoints.directory)
    kept = folder.parent / DAMAGED / new_name
    while kept.exists():
        kept = kept.with_name(f"{kept.name}-again")
    barrier(f"{name} is set aside as {kept.name}")
    if jax.process_index() == 0:
        kept.parent.mkdir(exist_ok=True)
        (folder / name).rename(kept)
    barrier(f"{name} was set aside")
    checkpoints.reload()
    logger.warning("Checkpoint %s cannot be used, and is kept as %s: %s", name, kept, reason)
