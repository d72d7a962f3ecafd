"""A config as text: every field with its value, its meaning, and where the value comes from."""

from __future__ import annotations

from collections.abc import Collection

from ml_collections import ConfigDict

from flowmatch_jax.config.field import at, flat
from flowmatch_jax.config.fields import FIELDS, default_config
from flowmatch_jax.runtime.text import aligned


def show(config: ConfigDict, file: str, overridden: Collection[str]) -> str:
    """Return a table with a row for each field.

    Args:
        config: the config.
        file: the experiment's file, for the fields that it sets.
        overridden: the full paths that the command line sets, such as "config.train.steps".
    """
    usual = dict(flat(default_config().to_dict()))
    rows = [("field", "value", "set by", "meaning")]
    for name, value in flat(config.to_dict()):
        path = f"config.{name}"
        is_overridden = any(f"{given}.".startswith(f"{path}.") for given in overridden)
        by = "command line" if is_overridden else "" if value == usual[name] else file
        rows.append((path, repr(value), by, at(FIELDS, name).help))
    return aligned(rows, right=())
