"""Configs from the command line: an experiment's file, and the fields that are given otherwise.

--config=configs/digits_ot.py --config.train.steps=100
"""

from __future__ import annotations

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from flowmatch_jax.config.experiments import experiment_config
from flowmatch_jax.runtime.errors import UserError


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(overrides, the other arguments); an override is --config.field=value or takes two words."""
    overrides, others, rest = [], [], iter(arguments)
    for argument in rest:
        is_override = argument.lstrip("-").startswith("config.") and argument.startswith("-")
        if is_override and "=" not in argument:
            argument = f"{argument}={next(rest, '')}"
        (overrides if is_override else others).append(argument)
    return overrides, others


def load_config(path: str, overrides: list[str]) -> FrozenConfigDict:
    """The config of an experiment, with fields overridden.

    Args:
        path: as `experiment_config` takes it.
        overrides: --config.field=value, as `split_overrides` leaves them.

    Raises:
        UserError: no such file, no such field, a value of another type.
    """
    config = experiment_config(path)
    # Of a field that is given twice the last value counts; tuples would be added up.
    overrides = list({o.partition("=")[0].lstrip("-"): o for o in overrides}.values())
    arguments = ["", *overrides]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        values(arguments)
        return FrozenConfigDict(values.config)
    except (flags.Error, AttributeError, KeyError) as error:
        _explain(error, experiment_config(path), overrides)
        raise UserError("--config", path, str(error)) from error


def _explain(error: Exception, defaults: ConfigDict, overrides: list[str]) -> None:
    """Raise the mistake behind an error of the flag parser's, if it is one of the overrides."""
    for override in overrides:
        name, _, value = override.lstrip("-").partition("=")
        node = defaults
        for field in name.split(".")[1:]:
            if not isinstance(node, ConfigDict) or field not in node:
                fields = ", ".join(node) if isinstance(node, ConfigDict) else "none"
                raise UserError(f"--{name}", value, f"no such field; there are: {fields}")
            section, node = node, node[field]
        if f"--{name}={value}:" in str(error):
            kind = section.get_type(field).__name__
            raise UserError(f"--{name}", value, f"it takes a value of type {kind}")
