"""Loading of experiments by the path of their file, configs/<data>_<method>.py."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flowmatch_jax.config.identity import from_record
from flowmatch_jax.config.methods import METHODS
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.own import add_folder
from flowmatch_jax.runtime.workdir import read_record

PACKAGE = Path(__file__).parents[1]
# Folders of this project's experiments: in an installed package, or beside it in a checkout.
FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")


def experiment_config(path: str) -> ConfigDict:
    """Load the config of an experiment, or of a run by its config.json.

    The file defines a function `get_config`. If <data>_<method>.py does not exist, the config of
    <data>_ot.py, or of <data>.py, is changed by a method: a function in the dict METHODS of that
    file or of `methods`. This project's own files are found from every working directory. A user's
    own parts may be imported from the folder of the file.

    Args:
        path: path of the file, such as configs/digits_ot.py.

    Raises:
        UserError: there is no such file or method, or the file is not a config file.
    """
    add_folder(Path(path).parent)
    file = find(Path(path))
    if file is not None and file.suffix == ".json":
        return from_record(read_record(file, "its run is not needed any more"))
    if file is not None:
        return _get_config(file, _run(file))
    words = Path(path).stem.split("_")
    splits = [("_".join(words[:n]), "_".join(words[n:])) for n in reversed(range(1, len(words)))]
    found = ((base_of(path, data), method) for data, method in splits)
    base, method = next((each for each in found if each[0] is not None), (None, None))
    if base is None:
        raise UserError("--config", path, "there is no such file; see configs/")
    names = _run(base)
    methods = METHODS | names.get("METHODS", {})
    if method not in methods:
        allowed = f"{base.name} has no method {method!r}; there are: ot, {', '.join(methods)}"
        raise UserError("--config", path, allowed)
    return methods[method](_get_config(base, names))


def base_of(path: str, data: str) -> Path | None:
    """Find the file beside ``path`` from which a dataset's methods are derived, if there is one."""
    folder = Path(path).parent
    return find(folder / f"{data}_ot.py") or find(folder / f"{data}.py")


def find(path: Path) -> Path | None:
    """Find the file at a path; for a path in configs/, else this project's file of that name."""
    places = [path]
    if path.parent == Path("configs"):
        places += [folder / path.name for folder in FOLDERS]
    return next((place for place in places if place.is_file()), None)


def _run(file: Path) -> dict[str, Any]:
    try:
        return runpy.run_path(str(file))
    except (SyntaxError, ImportError) as error:
        raise UserError("--config", str(file), f"it is not a config file: {error}") from error


def _get_config(file: Path, names: dict[str, Any]) -> ConfigDict:
    if not callable(names.get("get_config")):
        raise UserError("--config", str(file), "it has no function get_config")
    return names["get_config"]()
