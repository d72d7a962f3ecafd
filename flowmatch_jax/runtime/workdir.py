"""The folder of a run: its layout, its records, and checks that it belongs to the experiment.

config.json  data.json  metrics.jsonl  tensorboard/  checkpoints/<step>/
samples/<step>_<weights>.png  evaluation/<step>.json
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.files import Unreadable, owned, read_json, write_atomically
from flowmatch_jax.runtime.processes import everywhere

logger = logging.getLogger(__name__)


def open_workdir(workdir: Path) -> None:
    """Create the folder if it does not exist, and check that it is writable.

    Raises:
        UserError: it is not writable, or Orbax would interpret its path as a pattern.
    """
    if any(character in str(workdir.absolute()) for character in "*?["):
        allowed = "its path must be without * ? [, which stand for other letters; give another"
        raise UserError("--workdir", str(workdir), allowed)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        allowed = f"it cannot be written ({error.strerror}); give another --workdir"
        raise UserError("--workdir", str(workdir), allowed) from error


def check_run(workdir: Path) -> None:
    """Raise UserError unless the workdir belongs to a run; nothing is created."""
    if not (workdir / "config.json").exists():
        allowed = (
            "there is no run (no config.json); give the workdir of a run, or train one first, by "
            "--config=configs/<name>.py"
        )
        raise UserError("--workdir", str(workdir), allowed)


def recorded_data(workdir: Path) -> dict[str, Any] | None:
    """Return the facts of a run's "train" and "test" split; None for runs that lack some.

    For a run whose samples start from a dataset, "source" has the facts of its two splits.
    """
    path = workdir / "data.json"
    if not path.exists():
        return None
    facts = read_record(path, "the run was trained on the data that you give")
    others = {name: facts.pop(name) for name in ("test", "pairs", "source") if name in facts}
    others.pop("pairs", None)
    return {"train": facts} | others if "test" in others else None


@contextmanager
def trained_by_this_run(workdir: Path) -> Iterator[None]:
    """Keep other runs from training in the workdir during this block.

    Reading the workdir, as evaluation does, is not affected. Process 0 holds the lock for all
    processes of a run.

    Raises:
        UserError: another run is training in the workdir.
    """
    with ExitStack() as stack:
        owner = None
        if jax.process_index() == 0:
            me = f"process {os.getpid()} on {socket.gethostname()}"
            owner = stack.enter_context(owned(workdir / "lock", me))
        if not everywhere(owner is None):
            allowed = (
                f"{owner or 'another run'} is training in it; wait, stop that, or give another"
            )
            raise UserError("--workdir", str(workdir), allowed)
        yield


def has_checkpoint(workdir: Path) -> bool:
    """Test whether the workdir has a finished checkpoint."""
    folder = workdir / "checkpoints"
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def user_cache() -> Path:
    """Return the cache folder for compiled programs and statistics of datasets.

    Without a home directory it is in the system's folder for temporary files.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        folder = Path(tempfile.gettempdir())
    return folder / "flowmatch_jax"


def use_compilation_cache() -> None:
    """Cache compiled programs in the user's cache folder, unless JAX has another one set."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(user_cache() / "jax"))


def read_record(path: Path, if_sure: str) -> dict[str, Any]:
    """Read a record of a run, config.json or data.json.

    Args:
        path: path of the file.
        if_sure: completes "delete that file if you are sure that ..." in the error message.

    Raises:
        UserError: the file is truncated, empty or not a record.
    """
    try:
        record = read_json(path)
        if isinstance(record, dict):
            return record
        reason = "it is no record of a run"
    except Unreadable as error:
        reason = error.reason
    allowed = f"{path.name} in it cannot be read ({reason}); delete that file if you are sure that "
    raise UserError("--workdir", str(path.parent), allowed + if_sure)


def write_config(workdir: Path, config: dict[str, Any]) -> None:
    """Record the config of the run as config.json."""
    write_json(workdir / "config.json", config)


def add_changes(workdir: Path, step: int, changed: dict[str, tuple[Any, Any]]) -> None:
    """Append the fields that change at a step to config_changes.jsonl."""
    with (workdir / "config_changes.jsonl").open("a") as file:
        for field, (before, after) in changed.items():
            line = {"step": step, "field": field, "before": before, "after": after}
            file.write(json.dumps(line) + "\n")


def check_data(
    workdir: Path,
    facts: dict[str, Any],
    pairs: dict[str, Any] | None = None,
    source: dict[str, Any] | None = None,
) -> None:
    """Raise UserError if the run was trained on other data than these.

    The config does not determine the data: a folder of images may have changed or been moved.

    Args:
        workdir: folder of the run.
        facts: `Dataset.facts` of the training set.
        pairs: those of the pairs that it is trained on in place of them.
        source: those of the dataset that samples start from.
    """
    path = workdir / "data.json"
    if has_checkpoint(workdir) and path.exists():
        before = read_record(path, "the run was trained on the data that you give")
        if not same_data(before, facts):
            allowed = (
                f"the run in {workdir} was trained on other {before['name']} data (version "
                f"{before['version']}, {before['items']} items); give another --workdir"
            )
            raise UserError("config.data", f"{facts['name']} {facts['version']}", allowed)
        if pairs and before.get("pairs", pairs)["sha256"] != pairs["sha256"]:
            allowed = f"the run in {workdir} was trained on other pairs; give another --workdir"
            raise UserError("config.data.pairs", f"{pairs['name']} {pairs['version']}", allowed)
        known = before.get("source", {}).get("train")
        if (known and known["sha256"]) != (source and source["sha256"]):
            got = f"{source['name']} {source['version']}" if source else "noise"
            allowed = f"the run in {workdir} has another source; give that, or another --workdir"
            raise UserError("config.source", got, allowed)


def same_data(before: dict[str, Any], facts: dict[str, Any]) -> bool:
    """Test whether data are those of a record; without a hash in it, whether they may be."""
    if before["sha256"] is not None:
        return before["sha256"] == facts["sha256"]
    known = ["shape", "levels"] + (["num_classes"] if before["num_classes"] is not None else [])
    return all(before[name] == facts[name] for name in known)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the measurements of a metrics.jsonl; invalid or truncated lines are skipped."""
    lines, torn = [], 0
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            record["step"] + 0
            lines.append(record)
        except (ValueError, KeyError, TypeError):
            torn += 1
    if torn:
        logger.warning("%s: %d lines that are no measurements are left out", path, torn)
    return lines


def write_data(
    workdir: Path,
    train: dict[str, Any],
    test: dict[str, Any],
    **others: dict[str, Any],
) -> None:
    """Record the data of the run as data.json.

    Args:
        workdir: folder of the run.
        train, test: the facts of both splits.
        **others: "pairs", the facts of the pairs that it is trained on, and "source", those of both
            splits of the dataset that samples start from.
    """
    write_json(workdir / "data.json", train | {"test": test} | others)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON file atomically, creating its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=2) + "\n")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows with equal keys to a CSV file atomically, creating its folder if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
