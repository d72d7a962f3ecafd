"""How a field of the configuration is declared, and what can be asked of the declarations.

A declaration holds everything that is known of a field: its default, its type, its range, and what
its value identifies. Sections are dicts of fields and of further sections.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Flag, auto
from functools import reduce
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from flowmatch_jax.runtime.errors import UserError

# (the field's name, its value): raises UserError where the value is not allowed
Check = Callable[[str, Any], None]


class Of(Flag):
    """What a value identifies, so that two different values belong to two different things."""

    NOTHING = 0
    RUN = auto()  # a run keeps the value from its first step to its last
    ROW = auto()  # runs with different values have different rows in a table
    SCORES = auto()  # the scores of an evaluation depend on it, besides the weights
    FIGURES = auto()  # so do the figures of a run


TRAINED = Of.RUN | Of.ROW
EVERYTHING = TRAINED | Of.SCORES


@dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
        default: its value where an experiment's file sets none. Its type is the field's type.
        help: what it means, with its unit.
        check: what the value must satisfy on its own; rules between fields are in `rules`.
        of: what the value identifies.
        kind: the type of a field whose default is None.
        before: the value that runs used which are older than the field.
    """

    default: Any
    help: str
    check: Check | None = None
    of: Of = Of.NOTHING
    kind: type | None = None
    before: Any = None


def owned(
    owner: Callable[..., Any],
    name: str,
    help: str,
    check: Check | None = None,
    of: Of = TRAINED,
    kind: type | None = None,
    before: Any = None,
) -> Field:
    """A field whose default is that of the argument ``name`` of a function or class."""
    default = inspect.signature(owner).parameters[name].default
    return Field(default, help, check, of, kind, before)


Section = Mapping[str, "Field | Section"]


def defaults(section: Section) -> ConfigDict:
    """A configuration with every field at its default."""
    config = ConfigDict()
    for name, entry in section.items():
        if isinstance(entry, Mapping):
            config[name] = defaults(entry)
        else:
            config[name] = entry.default if entry.kind is None else placeholder(entry.kind)
    return config


def check(section: Section, config: Mapping[str, Any], prefix: str = "config") -> None:
    """Raise UserError for a value that its declaration does not allow, by the field's full path."""
    for name, entry in section.items():
        if isinstance(entry, Mapping):
            check(entry, config[name], f"{prefix}.{name}")
        elif entry.check is not None and config[name] is not None:
            try:
                entry.check(name, config[name])
            except UserError as error:
                raise UserError(f"{prefix}.{name}", error.got, error.allowed) from error


def select(section: Section, config: Mapping[str, Any], of: Of) -> dict[str, Any]:
    """The values of a configuration that identify something, in sections as they are declared.

    Of alternatives, such as `config.path.ot` and `config.path.vp`, the one that is named counts.

    Args:
        config: a ConfigDict, or a record of one, which may be older than some of the fields.
    """
    chosen: dict[str, Any] = {}
    for name, entry in section.items():
        if isinstance(entry, Mapping):
            is_other = "name" in section and config["name"] != name
            inner = {} if is_other or name not in config else select(entry, config[name], of)
            chosen |= {name: inner} if inner else {}
        elif of in entry.of:
            if name in config:
                chosen[name] = plain(config[name])
            elif entry.before is not None:
                chosen[name] = entry.before
    return chosen


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(full path, value) of the values of `select`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def at(section: Section, path: str) -> Field | Section:
    """The declaration with a full path such as "train.steps"; KeyError where there is none."""
    return reduce(lambda node, name: node[name], path.split("."), section)


def plain(value: Any) -> Any:
    """A value as JSON returns it: tuples become lists."""
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value
