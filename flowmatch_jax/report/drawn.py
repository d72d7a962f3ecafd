"""Reading of the figures of runs: their settings, numbers and arrays."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.files import Unreadable, read_json

Arrays = dict[str, np.ndarray]

# Exceptions that readers raise for truncated or damaged files.
DAMAGE = (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile, zlib.error, csv.Error)


def load_arrays(sources: dict[str, Path], file: str, names: Sequence[str]) -> dict[str, Arrays]:
    """Load the arrays of the runs that have the file; it must have at least these names."""
    paths = {label: source / file for label, source in sources.items()}
    return {label: _arrays(path, names) for label, path in paths.items() if path.exists()}


def _arrays(path: Path, names: Sequence[str]) -> Arrays:
    with _reading(path), np.load(path) as file:
        return {name: file[name] for name in dict.fromkeys((*file.files, *names))}


def read_points(path: Path, x: str, y: str) -> list[dict[str, Any]]:
    """Read the numbers x and y of a curve's rows with their "method", which may be None.

    Rows without y are left out. There are none without the file, as for a model without a flow.

    Raises:
        Unreadable: the file is damaged.
    """
    if not path.exists():
        return []
    with _reading(path):
        return [
            {"method": row.get("method"), x: float(row[x]), y: float(row[y])}
            for row in _table(path)
            if row.get(y)
        ]


def _table(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file; raises ValueError if it is truncated."""
    text = path.read_text()
    if not text.endswith("\n"):
        raise ValueError("its last line is cut")
    return list(csv.DictReader(text.splitlines()))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise Unreadable(path, str(error) or type(error).__name__) from error


def shared_settings(sources: Iterable[Path]) -> dict[str, Any]:
    """Return the settings that the figures in these folders share.

    Each run has its own step and its own fitted solvers.

    Raises:
        UserError: other settings differ.
    """
    settings = {source: _comparable(read_settings(source)) for source in sources}
    first = next(iter(settings))
    for source, values in settings.items():
        for name, got in values.items():
            wanted = settings[first].get(name)
            if got != wanted:
                allowed = (
                    f"its figures were drawn with {name} = {got!r}, those of {first.parent} with "
                    f"{wanted!r}; draw both with the same settings by --mode=figures"
                )
                raise UserError("--runs", str(source.parent), allowed)
    return settings[first]


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    solver = {k: v for k, v in settings.get("solver", {}).items() if k != "sha256"}
    return {k: v for k, v in settings.items() if k not in ("step", "fitted")} | {"solver": solver}


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the settings of the figures in a folder.

    Raises:
        FileNotFoundError: there are no figures.
        Unreadable: the file is damaged.
    """
    settings = read_json(folder / "figures.json")
    if not isinstance(settings, dict) or "extractor" not in settings:
        raise Unreadable(folder / "figures.json", "it holds no settings of figures")
    return settings
