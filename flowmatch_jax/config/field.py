"""Declarations of the configuration's fields, and functions over them.

A declaration states a field's default, type, range, and what its value identifies. Sections are
dicts of fields and of nested sections. A field whose default is {} is free-form: its value is a
dict with names of the user's choice. Its own name is `options`, or ends in `_options`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Flag, auto
from functools import reduce
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import placeholder

from flowmatch_jax.runtime.errors import UserError

OPTIONS = "options"  # end of the names of free-form fields
# (the field's name, its value): raises UserError where the value is not allowed
Check = Callable[[str, Any], None]


class Of(Flag):
    """What a value identifies: different values mean different runs, rows, scores or figures."""

    NOTHING = 0
    RUN = auto()  # the value cannot change during a run
    ROW = auto()  # runs with different values are different rows of a table
    SCORES = auto()  # the scores of an evaluation depend on it
    FIGURES = auto()  # the figures of a run depend on it


TRAINED = Of.RUN | Of.ROW
EVERYTHING = TRAINED | Of.SCORES


@dataclass(frozen=True)
class Field:
    """One field of the configuration.

    Attributes:
        default: value where an experiment's file sets none; its type is the field's type.
        help: meaning of the field, with its unit.
        check: check of the value on its own; rules between fields are in `rules`.
        of: what the value identifies.
        kind: type of a field whose default is None.
        before: value in effect in runs that are older than the field.
        omit_unset: whether `select` leaves the field out while it has its default, as if the run
            were older than the field.
    """

    default: Any
    help: str
    check: Check | None = None
    of: Of = Of.NOTHING
    kind: type | None = None
    before: Any = None
    omit_unset: bool = False


def owned(
    owner: Callable[..., Any],
    name: str,
    help: str,
    check: Check | None = None,
    of: Of = TRAINED,
    kind: type | None = None,
    before: Any = None,
    omit_unset: bool = False,
) -> Field:
    """Declare a field whose default is that of the argument ``name`` of a function or class."""
    default = inspect.signature(owner).parameters[name].default
    return Field(default, help, check, of, kind, before, omit_unset)


Section = Mapping[str, "Field | Section"]


def defaults(section: Section) -> ConfigDict:
    """Create a configuration with every field at its default."""
    config = ConfigDict()
    for name, entry in section.items():
        if isinstance(entry, Mapping):
            config[name] = defaults(entry)
        else:
            config[name] = entry.default if entry.kind is None else placeholder(entry.kind)
    return config


def check(section: Section, config: Mapping[str, Any], prefix: str = "config") -> None:
    """Raise UserError, with the field's full path, for a value that its declaration forbids."""
    for name, entry in section.items():
        if isinstance(entry, Mapping):
            check(entry, config[name], f"{prefix}.{name}")
        elif entry.check is not None and config[name] is not None:
            try:
                entry.check(name, config[name])
            except UserError as error:
                raise UserError(f"{prefix}.{name}", error.got, error.allowed) from error


def select(section: Section, config: Mapping[str, Any], of: Of) -> dict[str, Any]:
    """Select the values of a configuration that identify ``of``, nested in their sections.

    Of alternative sections, such as `config.path.ot` and `config.path.vp`, only the one that
    `name` selects is included. Free-form fields are included unless they are empty.

    Args:
        section: the declarations.
        config: a ConfigDict or a recorded one, which may be older than some of the fields.
        of: what the values identify.
    """
    chosen: dict[str, Any] = {}
    for name, entry in section.items():
        if isinstance(entry, Mapping):
            is_other = "name" in section and config["name"] != name
            inner = {} if is_other or name not in config else select(entry, config[name], of)
            chosen |= {name: inner} if inner else {}
        elif of in entry.of:
            if name in config:
                value = plain(config[name])
                is_unset = value == plain(entry.default)
                is_empty = value == {} or (is_unset and entry.omit_unset)
                chosen |= {} if is_empty else {name: value}
            elif entry.before is not None:
                chosen[name] = entry.before
    return chosen


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten the result of `select` into pairs (full path, value); options are one value."""
    for name, value in values.items():
        if isinstance(value, Mapping) and not name.endswith(OPTIONS):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def at(section: Section, path: str) -> Field | Section:
    """Return the declaration at a full path such as "train.steps"; raises KeyError."""
    return reduce(lambda node, name: node[name], path.split("."), section)


def plain(value: Any) -> Any:
    """Convert a value to what JSON returns: tuples become lists."""
    if isinstance(value, ConfigDict | Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def copied(config: ConfigDict | FrozenConfigDict) -> ConfigDict:
    """Return a copy whose fields can be set; ConfigDict(config) would share them."""
    return ConfigDict(copy.deepcopy(config))
