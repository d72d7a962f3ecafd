"""A user's own parts: functions that the config names as module:function.

The module is imported from the current folder, from the folder of the config's file, or from what
is installed. Whatever goes wrong in a user's function is a `UserError` of the field that names it.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from flowmatch_jax.runtime.errors import UserError

Part = TypeVar("Part", bound=Callable[..., Any])


def is_own(name: str) -> bool:
    """Test whether a name in the config is that of a user's own function."""
    return ":" in name


def one_of_or_own(field: str, got: str, choices: object) -> None:
    """Raise UserError unless ``got`` is in ``choices`` or has the form module:function."""
    module, colon, function = got.partition(":")
    if not colon and got not in choices:
        allowed = f"it may be one of: {', '.join(sorted(choices))}, or your own: module:function"
        raise UserError(field, got, allowed)
    is_named = all(name.isidentifier() for name in (*module.split("."), function))
    if colon and (not is_named or module.endswith(".py")):
        allowed = "your own is module:function, such as mine:make for the function make in mine.py"
        raise UserError(field, got, allowed)


def add_folder(folder: Path) -> None:
    """Let modules be imported from a folder, unless they are found elsewhere."""
    if str(folder.absolute()) not in sys.path:
        sys.path.append(str(folder.absolute()))


def resolve(
    field: str, name: str, table: Mapping[str, Part], options: Mapping[str, Any] | None = None
) -> Part:
    """Look up a part by its name: in a table or, if it is module:function, in that module.

    Args:
        field: the field that names the part, for errors.
        name: a name in the table, or module:function.
        table: the parts of this package.
        options: keyword arguments that the function is given in each call.

    Raises:
        UserError: there is no such module or function, or the module cannot be imported.
    """
    if not is_own(name):
        return partial(table[name], **options) if options else table[name]
    module_name, _, function_name = name.partition(":")
    module = _imported(field, name, module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        source = getattr(module, "__file__", None) or f"the folder {module_name}"
        raise UserError(field, name, f"there is no function {function_name} in {source}")
    return partial(function, **(options or {}))


def _imported(field: str, name: str, module_name: str) -> ModuleType:
    add_folder(Path.cwd())
    importlib.invalidate_caches()  # the file may be new
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{module_name}.".startswith(f"{missing}."):
            not_users = (__file__, importlib.__file__)
            told = _in_one_line(error, lambda f: not f.startswith("<") and f not in not_users)
            allowed = f"its module cannot be imported: {told}"
        else:
            allowed = (
                f"there is no module {missing} in {Path.cwd()}, beside the config, or installed; "
                f"go to the folder of {missing}.py, or add it to PYTHONPATH"
            )
        raise UserError(field, name, allowed) from error


@contextmanager
def blamed(field: str, name: str) -> Iterator[None]:
    """Turn an exception in this block, which calls a user's own function, into UserError.

    Exceptions are not changed if ``name`` is not module:function.
    """
    try:
        yield
    except Exception as error:
        if not is_own(name):
            raise
        source = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None)
        told = _in_one_line(error, lambda file: file == source)
        raise UserError(field, name, f"it raised {told}") from error


def _in_one_line(error: BaseException, is_users: Callable[[str], bool]) -> str:
    """Describe an exception by its type, its message, and its line in the user's files."""
    told = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
    if not frames:
        return told
    return f"{told} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
