"""Checkpoints by Orbax: all that a run needs to go on as if it had never stopped.

A checkpoint has three parts, so that evaluation reads the weights alone: "params", "ema" and
"progress" (step, optimiser, key). The position in the data is the step: batch n is a function of
the seed and n (`data.pipeline`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from flowmatch_jax.arrays import Params
from flowmatch_jax.errors import UserError
from flowmatch_jax.training.state import TrainState

WEIGHTS = {"raw": "params", "ema": "ema"}


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
    for part in ("params", "ema", "progress"):
        registry.add(part, ocp.args.StandardSave)
        registry.add(part, ocp.args.StandardRestore)
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
    checkpoints.save(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            ema=ocp.args.StandardSave(state.ema),
            progress=ocp.args.StandardSave(_progress(state)),
        ),
    )


def restore(checkpoints: ocp.CheckpointManager, step: int, state: TrainState) -> TrainState:
    """The state saved at a step, laid out like ``state``."""
    saved = checkpoints.restore(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardRestore(state.params),
            ema=ocp.args.StandardRestore(state.ema),
            progress=ocp.args.StandardRestore(_progress(state)),
        ),
    )
    return TrainState(params=saved.params, ema=saved.ema, **saved.progress)


def restore_weights(
    checkpoints: ocp.CheckpointManager, step: int, weights: str, params: Params
) -> Params:
    """The "raw" or "ema" weights saved at a step, laid out like ``params``."""
    part = WEIGHTS[weights]
    args = ocp.args.Composite(**{part: ocp.args.StandardRestore(params)})
    return checkpoints.restore(step, args=args)[part]


def check_network(checkpoints: ocp.CheckpointManager, params: Params) -> None:
    """Raise UserError unless the newest checkpoint's parameters have these names and shapes."""
    step = checkpoints.latest_step()
    if step is None:
        return
    saved = _shapes(checkpoints.item_metadata(step)["params"].tree)
    wanted = _shapes(params)
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                "config.network",
                f"{name} {wanted.get(name, 'absent')}",
                f"the checkpoint in {checkpoints.directory} has {saved.get(name, 'none')}: it is "
                "of another network; give that network's config, or another --workdir",
            )


def _progress(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state, "key": state.key}


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): tuple(a.shape) for p, a in leaves}
