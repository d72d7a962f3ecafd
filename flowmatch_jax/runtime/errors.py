"""Mistakes of the user's, and ends of a run that are nobody's mistake, told in one line each.

``main.py`` prints a :class:`UserError` without a traceback and exits with code 2, a
:class:`RunStopped` with code 1. Inside the library they are a plain ``ValueError`` and a plain
``RuntimeError``.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Iterable, Iterator
from typing import NoReturn


class UserError(ValueError):
    """A value the user can mend: which field, what it got, what it may be.

    Attributes:
        field: the argument's name, or its full path in the config (``config.solver.steps``).
        got: the value given.
        allowed: what the field may be, and how to go on.
    """

    def __init__(self, field: str, got: object, allowed: str) -> None:
        super().__init__(f"{field}: got {got!r}; {allowed}")
        self.field, self.got, self.allowed = field, got, allowed


class RunStopped(RuntimeError):
    """A run that cannot go on for a reason outside its config; the message says how to go on."""


class ArgumentParser(argparse.ArgumentParser):
    """Raises UserError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError("argument", " ".join(sys.argv[1:]), message)


def tell(error: Exception) -> None:
    """Print an error to standard error, in one line."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


@contextlib.contextmanager
def section(prefix: str) -> Iterator[None]:
    """Name the section of the config that the checks in this block belong to.

    ``with section("config.solver")`` turns an error on ``steps`` into one on
    ``config.solver.steps``.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{prefix}.{error.field}", error.got, error.allowed) from error


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
    """Raise UserError unless ``got >= least``, and finite."""
    if not least <= got < math.inf:
        raise UserError(field, got, f"it must be {least} or more, and finite")


def positive(field: str, got: float) -> None:
    """Raise UserError unless ``got > 0``, and finite."""
    if not 0 < got < math.inf:
        raise UserError(field, got, "it must be greater than 0, and finite")


def whole_numbers(field: str, got: Iterable[object], least: int) -> None:
    """Raise UserError unless each element is an integer of ``least`` or more."""
    for element in got:
        if not isinstance(element, int) or isinstance(element, bool) or element < least:
            allowed = f"it takes whole numbers of {least} or more"
            raise UserError(field, element, allowed)


def seed(field: str, got: int) -> None:
    """Raise UserError unless keys tell ``got`` from every other seed: they have 32 bits of it."""
    if not 0 <= got < 2**32:
        raise UserError(field, got, "it must be in [0, 2^32)")
