"""User errors and checks of values, reported in one line each.

``main.py`` prints a `UserError` without a traceback and exits with code 2; for a `RunStopped` it
exits with code 1. In the library they are an ordinary ``ValueError`` and ``RuntimeError``.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn


class UserError(ValueError):
    """A value that the user can correct: the field, its value, and the allowed values.

    Attributes:
        field: name of the argument, or its full path in the config (``config.solver.steps``).
        got: the value.
        allowed: description of the allowed values, or how to proceed.
    """

    def __init__(self, field: str, got: object, allowed: str) -> None:
        super().__init__(f"{field}: got {got!r}; {allowed}")
        self.field, self.got, self.allowed = field, got, allowed


class RunStopped(RuntimeError):
    """A run stopped for a reason outside its config; the message says how to continue it."""


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises UserError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError("argument", " ".join(sys.argv[1:]), message)


def tell(error: Exception) -> None:
    """Print an error to standard error in one line."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


def exit_code(command: Callable[[], None]) -> int:
    """Run a command; returns 0, 2 after a user error, or 1 if it was stopped, told in one line."""
    try:
        command()
    except (UserError, RunStopped) as error:
        tell(error)
        return 1 if isinstance(error, RunStopped) else 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def section(prefix: str) -> Iterator[None]:
    """Prefix the fields of user errors that are raised in this block.

    ``with section("config.solver")`` turns an error about ``steps`` into one about
    ``config.solver.steps``.
    """
    with renamed(f"{prefix}.{{}}"):
        yield


@contextlib.contextmanager
def renamed(pattern: str) -> Iterator[None]:
    """Rename the fields of user errors that are raised in this block; {} stands for a field's name.

    ``with renamed("--{}")`` turns an error about ``scores`` into one about ``--scores``.
    """
    try:
        yield
    except UserError as error:
        raise UserError(pattern.format(error.field), error.got, error.allowed) from error


def one_of(field: str, got: object, choices: object) -> None:
    """Raise UserError unless ``got`` is in ``choices`` (any iterable of names)."""
    names = sorted(choices)
    if got not in names:
        raise UserError(field, got, f"it may be one of: {', '.join(names)}")


def fraction(field: str, got: float) -> None:
    """Raise UserError unless ``got`` is in [0, 1)."""
    if not 0 <= got < 1:
        raise UserError(field, got, "it must be in [0, 1)")


def at_least(field: str, got: float, least: float) -> None:
    """Raise UserError unless ``got >= least`` and is finite."""
    if not least <= got < math.inf:
        raise UserError(field, got, f"it must be {least} or more, and finite")


def positive(field: str, got: float) -> None:
    """Raise UserError unless ``got > 0`` and is finite."""
    if not 0 < got < math.inf:
        raise UserError(field, got, "it must be greater than 0, and finite")


def whole_numbers(field: str, got: Iterable[object], least: int) -> None:
    """Raise UserError unless every element is an integer of ``least`` or more."""
    for element in got:
        if not isinstance(element, int) or isinstance(element, bool) or element < least:
            allowed = f"it takes whole numbers of {least} or more"
            raise UserError(field, element, allowed)


def seed(field: str, got: int) -> None:
    """Raise UserError unless ``got`` is in [0, 2^32), the seeds that give different keys."""
    if not 0 <= got < 2**32:
        raise UserError(field, got, "it must be in [0, 2^32)")
