"""Configs from the command line: an experiment's file and overrides of its fields.

--config=configs/digits_ot.py --config.train.steps=100
"""

from __future__ import annotations

import ast
from difflib import get_close_matches
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from flowmatch_jax.config.experiments import experiment_config
from flowmatch_jax.config.field import Field, at
from flowmatch_jax.config.fields import FIELDS
from flowmatch_jax.runtime.errors import UserError


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split arguments into overrides and others; "--config.field value" is an override too."""
    overrides, others, rest = [], [], iter(arguments)
    for argument in rest:
        is_override = argument.lstrip("-").startswith("config.") and argument.startswith("-")
        if is_override and "=" not in argument:
            argument = f"{argument}={next(rest, '')}"
        (overrides if is_override else others).append(argument)
    return overrides, others


def load_config(path: str, overrides: list[str]) -> FrozenConfigDict:
    """Load the config of an experiment and override fields.

    Args:
        path: path of the experiment's file, as in `experiment_config`.
        overrides: --config.field=value, as `split_overrides` returns them.

    Raises:
        UserError: the file or a field does not exist, or a value has the wrong type.
    """
    config = experiment_config(path)
    # Of a field that is given twice the last value counts; tuples would be added up.
    given = {o.partition("=")[0].lstrip("-"): o for o in overrides}
    unset = [name for name, o in given.items() if o.endswith("=None") and _is_optional(name)]
    options = {name: _literal(o) for name, o in given.items() if _is_new_option(name, config)}
    arguments = ["", *(o for name, o in given.items() if name not in {*unset, *options})]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        values(arguments)
        config = values.config
    except (flags.Error, AttributeError, KeyError) as error:
        _explain(error, experiment_config(path), arguments[1:])
        raise UserError("--config", path, str(error)) from error
    apart = {n.removeprefix("config."): v for n, v in (dict.fromkeys(unset) | options).items()}
    with config.unlocked():
        config.update_from_flattened_dict(apart)
    return FrozenConfigDict(config)


def _is_optional(name: str) -> bool:
    """Whether a field may be unset, by its full path."""
    try:
        field = at(FIELDS, name.removeprefix("config."))
    except (KeyError, TypeError):
        return False
    return isinstance(field, Field) and field.kind is not None


def _is_new_option(name: str, config: ConfigDict) -> bool:
    """Whether a full path is that of an option in a free-form field that the config lacks."""
    path, _, option = name.removeprefix("config.").rpartition(".")
    try:
        field, values = at(FIELDS, path), at(config, path)
    except (KeyError, TypeError):
        return False
    return isinstance(field, Field) and field.default == {} and option not in values


def _literal(override: str) -> Any:
    """Return the value of an override: a number, True, None, a tuple, ... or else the text."""
    text = override.partition("=")[2]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, bool | int | float | str | tuple | None) else text


def _explain(error: Exception, defaults: ConfigDict, overrides: list[str]) -> None:
    """Raise UserError for the override that caused an error of the flag parser, if one did."""
    for override in overrides:
        name, _, value = override.lstrip("-").partition("=")
        node = defaults
        for field in name.split(".")[1:]:
            if not isinstance(node, ConfigDict) or field not in node:
                fields = list(node) if isinstance(node, ConfigDict) else []
                near = get_close_matches(field, fields, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                allowed = f"no such field; {hint}there are: {', '.join(fields) or 'none'}"
                raise UserError(f"--{name}", value, allowed)
            section, node = node, node[field]
        if f"--{name}={value}:" in str(error):
            kind = section.get_type(field).__name__
            allowed = f"it takes a value of type {kind}"
            if isinstance(node, ConfigDict):
                allowed = f"it is a section: set one of its fields, --{name}.<field>=..."
            raise UserError(f"--{name}", value, allowed)
