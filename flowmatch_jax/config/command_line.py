"""Configs from the command line: an experiment's file, and the fields that are given otherwise.

--config=configs/digits_ot.py --config.train.steps=100
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from flowmatch_jax.config.methods import METHODS
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


def experiment_config(path: str) -> ConfigDict:
    """The config of an experiment, by the path of its file.

    A file has a function `get_config`. Where configs/<data>_<method>.py does not exist, it is
    configs/<data>_ot.py, or configs/<data>.py, changed by a method: a function in the dict METHODS
    of that file or of `methods`.

    Raises:
        UserError: there is no such file or method, or the file is not a config file.
    """
    if Path(path).is_file():
        return _call(path, _run(path).get("get_config"))
    data, _, method = Path(path).stem.rpartition("_")
    base = next((file for file in of_data(path, data) if file.is_file()), None)
    if base is None:
        raise UserError("--config", path, "there is no such file; see configs/")
    names = _run(str(base))
    methods = METHODS | names.get("METHODS", {})
    if method not in methods:
        allowed = f"{base} has no method {method!r}; there are: ot, {', '.join(methods)}"
        raise UserError("--config", path, allowed)
    return methods[method](_call(str(base), names.get("get_config")))


def of_data(path: str, data: str) -> list[Path]:
    """The files that may hold the experiment of a dataset that its methods are derived from."""
    folder = Path(path).parent
    return [folder / f"{data}_ot.py", folder / f"{data}.py"]


def _run(path: str) -> dict[str, Any]:
    try:
        return runpy.run_path(path)
    except (SyntaxError, ImportError) as error:
        raise UserError("--config", path, f"it is not a config file: {error}") from error


def _call(path: str, get_config: Any) -> ConfigDict:
    if not callable(get_config):
        raise UserError("--config", path, "it has no function get_config")
    return get_config()


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
