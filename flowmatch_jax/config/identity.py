"""What a run keeps from its first step to its last, and whether a workdir's run is this one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flowmatch_jax.config.field import Of, flat, select
from flowmatch_jax.config.fields import FIELDS
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.workdir import has_checkpoint, read_record


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a run keeps, by full path.

    All others (steps, optimiser, solver, what is evaluated) may change between starts. The batch
    size may not: the position in the data counts batches.
    """
    return dict(flat(select(FIELDS, config, Of.RUN)))


def check_identity(workdir: Path, config: ConfigDict) -> None:
    """Raise UserError unless the checkpoints in a workdir, if any, are those of this config."""
    path = workdir / "config.json"
    if not (has_checkpoint(workdir) and path.exists()):
        return
    was = identity(read_record(path, "the run is by the config that you give"))
    for name, value in identity(config).items():
        if was.get(name, value) != value:
            allowed = f"the run in {workdir} has {was[name]!r}; go on with that, or give another"
            raise UserError(f"config.{name}", value, f"{allowed} --workdir")


def record(config: ConfigDict) -> dict[str, Any]:
    """A config as config.json holds it."""
    return json.loads(config.to_json())
