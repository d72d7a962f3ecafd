"""The fields that cannot change during a run, and a check that a workdir belongs to this run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flowmatch_jax.config.field import Of, at, flat, plain, select
from flowmatch_jax.config.fields import FIELDS, default_config
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.workdir import has_checkpoint, read_record


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that cannot change during a run, by full path.

    All others (steps, optimiser, solver, evaluation) may change between starts. The batch size
    may not, because the position in the data is counted in batches.
    """
    unset = {name: plain(field.default) for name, field in flat(FIELDS) if Of.RUN in field.of}
    return unset | dict(flat(select(FIELDS, config, Of.RUN)))


def fitted_to(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a solver that is fitted to a model depends on: the run and its guidance."""
    guidance = select(FIELDS, config, Of.SCORES)["guidance"]
    return {"guidance": guidance, "run": select(FIELDS, config, Of.RUN)}


def check_identity(workdir: Path, config: ConfigDict) -> None:
    """Raise UserError unless the workdir has no checkpoints or they belong to this config's run."""
    path = workdir / "config.json"
    if not (has_checkpoint(workdir) and path.exists()):
        return
    was = identity(read_record(path, "the run is by the config that you give"))
    now = identity(config)
    differing = [name for name in now if was[name] != now[name]]
    if differing:
        first, *others = differing
        more = "".join(f", config.{name} = {was[name]!r}" for name in others)
        allowed = f"the run in {workdir} has {was[first]!r}{more}; go on with that, or give another"
        raise UserError(f"config.{first}", now[first], f"{allowed} --workdir")


def changes(workdir: Path, config: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Return the fields that differ from the run's record: full path -> (before, now)."""
    path = workdir / "config.json"
    if not path.exists():
        return {}
    before = dict(flat(read_record(path, "the run is by the config that you give")))
    now = dict(flat(record(config)))
    return {
        f"config.{name}": (before[name], value)
        for name, value in now.items()
        if name in before and before[name] != value
    }


def record(config: ConfigDict) -> dict[str, Any]:
    """Convert a config to the content of config.json."""
    return json.loads(config.to_json())


def from_record(values: Mapping[str, Any]) -> ConfigDict:
    """Create a config from the content of config.json.

    Fields that are missing in an older record get the value that was in effect then, or their
    default.

    Raises:
        UserError: the record has an unknown field.
    """
    config = default_config()
    for name, value in flat(values):
        try:
            at(FIELDS, name)
        except KeyError:
            allowed = "there is no such field in this version of flowmatch_jax"
            raise UserError(f"config.{name}", value, allowed) from None
        if isinstance(value, Mapping):
            value = {option: _tuples(x) for option, x in value.items()}
        config.update_from_flattened_dict({name: _tuples(value)})
    older = set(dict(flat(FIELDS))) - set(dict(flat(values)))
    for name in older:
        before = at(FIELDS, name).before
        if before is not None:
            config.update_from_flattened_dict({name: before})
    return config


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
