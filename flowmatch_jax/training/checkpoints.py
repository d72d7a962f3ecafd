"""Checkpoints by Orbax, from which a run resumes with the same bits.

A checkpoint has three parts, so that evaluation can read the weights alone: "params", "ema" and
"progress" (step, optimiser state, key, counters of non-finite updates). The position in the data is
the step: batch n is a function of the seed and n (`data.pipeline`).

After a checkpoint is written it is *sealed*: its metadata is read back, and files.json in it lists
its files with their sizes and hashes. A checkpoint is damaged if one of these files is missing or
differs; it is then set aside, and the previous one is used. If a checkpoint cannot be read for any
other reason (permissions, a network disk, memory), the run ends with a one-line error and nothing
is moved.
"""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from flowmatch_jax.arrays import Params
from flowmatch_jax.runtime.errors import RunStopped, UserError
from flowmatch_jax.runtime.processes import barrier, everywhere, gather
from flowmatch_jax.training.seals import damage, write_seal
from flowmatch_jax.training.state import TrainState

logger = logging.getLogger(__name__)

PARTS = ("params", "ema", "progress")
WEIGHTS = {"raw": "params", "ema": "ema"}
HALF_WRITTEN = ".orbax-checkpoint-tmp"  # part of the name of a checkpoint that Orbax is writing
DAMAGED = "damaged"  # folder in the workdir for checkpoints that were set aside


class DamagedCheckpoint(Exception):
    """Raised for a checkpoint whose files differ from those that were written."""


class Checkpoints:
    """The checkpoints of a workdir; a context manager that waits for the last write.

    Args:
        workdir: folder of the run.
        keep_last: number of newest checkpoints to keep.
        keep_every: also keep checkpoints at multiples of this step; None: keep no others.
        read_only: read checkpoints that another process may be writing.
    """

    def __init__(
        self,
        workdir: Path,
        keep_last: int = 1,
        keep_every: int | None = None,
        read_only: bool = False,
    ) -> None:
        # With the type of each part registered, Orbax can read the shapes of a checkpoint that it
        # did not write.
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for part in PARTS:
            registry.add(part, ocp.args.StandardSave)
            registry.add(part, ocp.args.StandardRestore)
        policies = [checkpoint_managers.LatestN(keep_last)]
        if keep_every is not None:
            policies.append(checkpoint_managers.EveryNSteps(keep_every))
        self.folder = workdir.absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                enable_async_checkpointing=True,
                read_only=read_only,
                save_interval_steps=0 if read_only else 1,  # avoids a warning of Orbax
                create=not read_only,
            ),
            handler_registry=registry,
        )
        self._written: int | None = None  # step of the checkpoint that is not sealed yet
        self._sealing: threading.Thread | None = None
        self._failure: Exception | None = None  # exception raised in the thread
        self._whole: set[int] = set()  # steps whose files matched their seal

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.finish()
        finally:
            self._manager.close()

    def steps(self) -> list[int]:
        """Return the steps that have checkpoints, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, step: int, state: TrainState) -> None:
        """Start writing the state after ``step`` steps; returns when it is copied to the host."""
        self.finish()
        parts = {name: ocp.args.StandardSave(tree) for name, tree in _parts(state).items()}
        if self._manager.save(step, args=ocp.args.Composite(**parts)):
            self._written = step

    def check(self) -> None:
        """Seal the last checkpoint if it is written; does not wait for it.

        Raises:
            RunStopped: the checkpoint cannot be read back.
            Exception: writing failed, for example because the disk is full.
        """
        self._manager.check_for_errors()
        if self._written is not None and not self._manager.is_saving_in_progress():
            self._seal()

    def finish(self) -> None:
        """Wait until the last checkpoint is written and sealed; raises as `check` does."""
        self._manager.wait_until_finished()
        self.check()
        if self._sealing is not None:
            self._sealing.join()
            self._sealing = None
        if self._failure is not None:
            raise self._failure

    def _seal(self) -> None:
        folder, self._written = self.folder / str(self._written), None
        try:
            metadata = self._manager.item_metadata(int(folder.name))
            readable = all(metadata[part].tree is not None for part in PARTS)
            reason = "parts of it are missing"
        except Exception as error:
            readable, reason = False, _in_one_line(error)
        if not readable:
            raise RunStopped(f"{folder} was written, and cannot be read back: {reason}")
        if jax.process_index() == 0:
            self._sealing = threading.Thread(target=self._write_seal, args=(folder,))
            self._sealing.start()

    def _write_seal(self, folder: Path) -> None:
        try:
            write_seal(folder)
        except Exception as error:
            self._failure = error

    def restore_newest(self, layout: TrainState) -> TrainState | None:
        """Restore the newest undamaged checkpoint; returns None if there was no checkpoint.

        Newer checkpoints that are damaged or incomplete are moved to the workdir's folder
        "damaged".

        Args:
            layout: shapes with their shardings (see `mesh.with_shardings`), which may differ from
                the shardings that the state was saved with.

        Raises:
            UserError: the checkpoint belongs to another network.
            RunStopped: the checkpoint cannot be read, or all checkpoints are damaged.
        """
        self._set_half_written_aside()
        for step in self.steps():
            try:
                return self.restore(step, layout)
            except DamagedCheckpoint as found:
                self._set_aside(str(step), str(step), str(found))
        kept = self.folder.parent / DAMAGED
        if any("half-written" not in path.name for path in kept.glob("*")):
            raise RunStopped(
                f"none of the run's checkpoints is whole; {kept} has them. To start over, give "
                "another --workdir, or remove that folder"
            )
        return None

    def restore(self, step: int, layout: TrainState) -> TrainState:
        """Restore the state saved at a step with the shardings of ``layout``.

        Raises:
            UserError: the checkpoint belongs to another network.
            DamagedCheckpoint: its files differ from those that were written.
            RunStopped: it cannot be read for another reason.
        """
        saved = self._restore(step, _parts(layout))
        return TrainState(params=saved["params"], ema=saved["ema"], **saved["progress"])

    def restore_weights(self, step: int, weights: str, layout: Params) -> Params:
        """Restore the "raw" or "ema" weights saved at a step; raises as `restore` does."""
        part = WEIGHTS[weights]
        return self._restore(step, {part: layout})[part]

    def _restore(self, step: int, layout: dict[str, Any]) -> dict[str, Any]:
        """Restore these parts of a checkpoint; all processes succeed or raise together."""
        reason, failure, saved = None, None, {}
        try:
            if jax.process_index() == 0 and step not in self._whole:
                reason = damage(self.folder / str(step), PARTS)
        except OSError as error:
            failure = error
        if not everywhere(reason is None):
            raise DamagedCheckpoint(reason or "process 0 found it so")
        if failure is None:
            self._whole.add(step)
        if everywhere(failure is None):
            try:
                saved = self._read(step, layout)
            except UserError:
                raise
            except Exception as error:
                failure = error
        if not everywhere(failure is None):
            reason = "another process cannot read it" if failure is None else _in_one_line(failure)
            raise RunStopped(
                f"{self.folder / str(step)} cannot be read: {reason}. Nothing was changed; mend "
                "that and give the same command, or move the checkpoint away to use the one before"
            ) from failure
        return saved

    def _read(self, step: int, layout: dict[str, Any]) -> dict[str, Any]:
        metadata = self._manager.item_metadata(step)
        for part, tree in layout.items():
            _check_structure(self.folder, part, metadata[part].tree, tree)
        parts = {part: ocp.args.StandardRestore(tree) for part, tree in layout.items()}
        saved = self._manager.restore(step, args=ocp.args.Composite(**parts))
        return {part: saved[part] for part in layout}

    def _set_half_written_aside(self) -> None:
        """Set aside the checkpoint that a killed run was writing; only the latest is kept."""
        half_written = sorted(self.folder.glob(f"*{HALF_WRITTEN}*"))
        barrier("half-written checkpoints are listed")
        for path in half_written:
            if jax.process_index() == 0:
                for older in (self.folder.parent / DAMAGED).glob("*-half-written"):
                    shutil.rmtree(older)
            name = f"{path.name.partition('.')[0]}-half-written"
            self._set_aside(path.name, name, "it is half written")

    def _set_aside(self, name: str, new_name: str, reason: str) -> None:
        kept = self.folder.parent / DAMAGED / new_name
        while kept.exists():
            kept = kept.with_name(f"{kept.name}-again")
        # Process 0's name counts: it may have removed a folder that another process still finds.
        kept = kept.with_name(gather(f"{name} is set aside", kept.name)[0])
        if jax.process_index() == 0:
            kept.parent.mkdir(exist_ok=True)
            (self.folder / name).rename(kept)
        barrier(f"{name} was set aside")
        self._manager.reload()
        logger.warning("Checkpoint %s cannot be used, and is kept as %s: %s", name, kept, reason)


def _parts(state: TrainState) -> dict[str, Any]:
    progress = {name: value for name, value in vars(state).items() if name not in PARTS}
    return {"params": state.params, "ema": state.ema, "progress": progress}


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _check_structure(folder: Path, part: str, saved: Any, layout: Any) -> None:
    """Raise UserError unless a part of a checkpoint has the names and shapes of the layout."""
    saved, wanted = _shapes(saved), _shapes(layout)
    if part == "progress":
        if saved.keys() != wanted.keys():
            allowed = "its checkpoints are of another version of flowmatch_jax; give another one"
            raise UserError("--workdir", str(folder.parent), allowed)
        return
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                "config.network",
                f"{name} {wanted.get(name, 'absent')}",
                f"the checkpoint in {folder} has {saved.get(name, 'none')}: it is "
                "of another network; give that network's config, or another --workdir",
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): tuple(a.shape) for p, a in leaves}
