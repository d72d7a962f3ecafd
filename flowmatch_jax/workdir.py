"""The folder of a run: where things lie, and whether it is this experiment's.

config.json  metrics.jsonl  tensorboard/  checkpoints/<step>/  samples/<step>.png
evaluation/<step>.json
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flowmatch_jax.errors import UserError

# A run keeps these from its first step to its last. The rest (steps, optimiser, solver, what is
# evaluated) may change between starts.
IDENTITY = ("seed", "data.name", "path", "objective", "network")
NETWORK_IRRELEVANT = ("dtype", "remat", "dropout")


def open_workdir(workdir: Path, config: ConfigDict) -> None:
    """Make the folder where it does not exist, and check that it can be written and is this run's.

    Raises:
        UserError: it cannot be written, or holds checkpoints of another experiment. Nothing in it
            is changed.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        allowed = f"it cannot be written ({error.strerror}); give another --workdir"
        raise UserError("--workdir", str(workdir), allowed) from error
    if (workdir / "checkpoints").exists() and (workdir / "config.json").exists():
        before = json.loads((workdir / "config.json").read_text())
        _check_identity(workdir, before, json.loads(config.to_json()))


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Record the config of the run as config.json."""
    write_json(workdir / "config.json", json.loads(config.to_json()))


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON file at once or not at all, its folder where that is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(path)


def _check_identity(workdir: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    was, flat = _flatten(before), _flatten(now)
    for name in sorted(was.keys() | flat.keys()):
        if not name.startswith(IDENTITY) or name.endswith(NETWORK_IRRELEVANT):
            continue
        if was.get(name) != flat.get(name):
            raise UserError(
                f"config.{name}",
                flat.get(name),
                f"the run in {workdir} has {was.get(name)!r}; go on with that, or give another "
                "--workdir",
            )


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
