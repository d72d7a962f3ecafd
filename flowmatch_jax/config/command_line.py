"""Configs from the command line: an experiment's file and overrides of its fields.

--config=configs/digits_ot.py --config.train.steps=100
"""

from __future__ import annotations

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from flowmatch_jax.config.experiments import experiment_config
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
    # The last value of a field wins; config_flags would concatenate tuples instead.
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
    """Raise UserError for the override that caused an error of the flag parser, if one did."""
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
