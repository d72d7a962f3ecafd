"""Sweeps: a run for each combination of values of some fields, and one report of them.

python main.py --config=configs/checkerboard_ot.py --sweep=config.optimizer.learning_rate=1e-3,3e-3
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from flowmatch_jax import modes
from flowmatch_jax.config.command_line import load_config
from flowmatch_jax.config.field import TRAINED, Field
from flowmatch_jax.config.fields import FIELDS
from flowmatch_jax.evaluation.evaluate import settings
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.report.runs import conditions
from flowmatch_jax.runtime.errors import UserError

# A list of values separated by commas; a tuple's own commas are within brackets.
_VALUE = re.compile(r"(?:\([^()]*\)|[^,()])+")


@dataclass(frozen=True)
class Combination:
    """One run of a sweep.

    Attributes:
        config: its config.
        values: value of each swept field, by full path.
    """

    config: FrozenConfigDict
    values: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """The name of its folder, such as learning_rate=0.001_multipliers=1_2."""
        texts = {name: re.sub(r"[^\w.+-]+", "_", str(x)).strip("_") for name, x in self._short()}
        return "_".join(f"{name}={text}" for name, text in texts.items())

    @property
    def row(self) -> str:
        """The name of its row in the report, which runs that differ only in their seed share."""
        return ", ".join(f"{name} = {value}" for name, value in self._short() if name != "seed")

    def _short(self) -> list[tuple[str, Any]]:
        """Return the values by the last part of their paths, or the whole ones if these clash."""
        last = [path.rpartition(".")[2] for path in self.values]
        clash = len(set(last)) < len(last)
        names = [path.removeprefix("config.") for path in self.values] if clash else last
        return list(zip(names, self.values.values(), strict=True))


def sweep(file: str, overrides: list[str], swept: Sequence[str], folder: Path) -> None:
    """Train, evaluate and draw each combination of the swept values, and report all of them.

    Runs are in folder/<field>=<value>_..., the report is in folder/report, with a row for each
    combination. Completed parts are skipped. Figures are drawn for the first seed only.

    Args:
        file: path of the experiment's file.
        overrides: fields that all runs share, as `load_config` takes them.
        swept: texts config.section.field=value,value; several fields make a grid.
        folder: folder of the sweep.

    Raises:
        UserError: a value or a combination is invalid; nothing is trained before all are checked.
    """
    runs = {folder / run.folder: run for run in combinations(file, overrides, parse(swept))}
    configs = {workdir: run.config for workdir, run in runs.items()}
    check_comparable(modes.check(*run) for run in configs.items())
    rows = {workdir: run.row for workdir, run in runs.items()}
    drawn = {row: workdir for workdir, row in reversed(rows.items())}.values()
    modes.complete_all(configs, drawn, folder / "report", rows)


def parse(swept: Sequence[str]) -> dict[str, list[str]]:
    """Parse texts config.section.field=value,value; returns the values as text by field.

    Raises:
        UserError: a text has another form, or a field is given twice.
    """
    found: dict[str, list[str]] = {}
    for text in swept:
        field, _, listed = text.partition("=")
        values = _VALUE.findall(listed)
        if not field.startswith("config.") or not values or ",".join(values) != listed:
            allowed = "it is written --sweep=config.section.field=value,value"
            raise UserError("--sweep", text, allowed)
        if field in found:
            raise UserError("--sweep", text, f"give all values of {field} at once, with commas")
        found[field] = values
    return found


def combinations(
    file: str, overrides: list[str], swept: Mapping[str, Sequence[str]]
) -> list[Combination]:
    """Load the config of each combination of values, those of the last field changing fastest.

    Raises:
        UserError: a field does not exist or does not change the training, a value has the wrong
            type, or two values are equal.
    """
    found: dict[str, Combination] = {}
    for texts in product(*swept.values()):
        given = [f"--{field}={text}" for field, text in zip(swept, texts, strict=True)]
        config = load_config(file, [*overrides, *given])
        run = Combination(config, {field: _value(config, field) for field in swept})
        if run.folder in found:
            raise UserError("--sweep", " ".join(given), "another combination has the same values")
        found[run.folder] = run
    for field in swept:
        _check_trained(field)
    return list(found.values())


def _value(config: FrozenConfigDict, field: str) -> Any:
    return reduce(lambda node, name: node[name], field.split(".")[1:], config)


def _check_trained(field: str) -> None:
    """Raise UserError unless the field is one whose values give different trained models."""
    node: Any = FIELDS
    for name in field.split(".")[1:]:
        node = node if isinstance(node, Field) else node[name]  # the names of options are free
    if not isinstance(node, Field) or not node.of & TRAINED:
        allowed = (
            "a sweep trains a model for each value, and this does not change the model: sweep "
            "other fields; solvers and scores are compared with --mode=evaluate"
        )
        raise UserError("--sweep", field, allowed)


def check_comparable(experiments: Iterable[Experiment]) -> None:
    """Raise UserError unless the evaluations of the experiments can share a table."""
    first, *others = (conditions(settings(e, e.config.train.steps, None)) for e in experiments)
    for other in others:
        for name in first | other:
            if first.get(name) != other.get(name):
                allowed = "runs that differ in it cannot share a table; run a sweep for each"
                raise UserError("--sweep", f"{name} = {other.get(name)!r}", allowed)
