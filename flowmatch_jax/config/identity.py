"""The fields that cannot change during a run, and a check that a workdir belongs to this run."""

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
    """Return the values that cannot change during a run, by full path.

    All others (steps, optimiser, solver, evaluation) may change between starts. The batch size
    may not, because the position in the data is counted in batches.
    """
    return dict(flat(select(FIELDS, config, Of.RUN)))


def check_identity(workdir: Path, config: ConfigDict) -> None:
    """Raise UserError unless the workdir has no checkpoints or they belong to this config's run."""
    path = workdir / "config.json"
    if not (has_checkpoint(workdir) and path.exists()):
        return
    was = identity(read_record(path, "the run is by the config that you give"))
    for name, value in identity(config).items():
        if was.get(name, value) != value:
            allowed = f"the run in {workdir} has {was[name]!r}; go on with that, or give another"
            raise UserError(f"config.{name}", value, f"{allowed} --workdir")


def record(config: ConfigDict) -> dict[str, Any]:
    """Convert a config to the content of config.json."""
    return json.loads(config.to_json())
