"""Checks of single fields: functions of a field's name and value that raise UserError."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from flowmatch_jax.config.field import Check, Field, Of
from flowmatch_jax.runtime.errors import UserError, at_least, one_of, whole_numbers
from flowmatch_jax.runtime.own import one_of_or_own


def least(n: float) -> Check:
    """Check that a number is ``n`` or more."""
    return partial(at_least, least=n)


def zero_or_least(n: float) -> Check:
    """Check that a number is 0, or ``n`` or more."""

    def check(name: str, got: float) -> None:
        if got != 0 and not n <= got < math.inf:
            raise UserError(name, got, f"it must be 0, or {n} or more")

    return check


def among(choices: Collection[str]) -> Check:
    """Check that a value is one of the choices."""
    return partial(one_of, choices=choices)


def among_or_own(choices: Collection[str]) -> Check:
    """Check that a value is one of the choices, or a user's own part: module:function."""
    return partial(one_of_or_own, choices=choices)


def own_options(name: str, got: Mapping[str, Any]) -> None:
    """Check that options of a user's own part can be recorded as they are."""
    for option, value in got.items():
        for element in value if isinstance(value, tuple | list) else (value,):
            if not isinstance(element, bool | int | float | str | None):
                allowed = f"{option} may be a number, a text, True, False, None, or a tuple of them"
                raise UserError(name, value, allowed)


def all_among(choices: Collection[str]) -> Check:
    """Check that every element of a tuple is one of the choices."""

    def check(name: str, got: tuple[str, ...]) -> None:
        for element in got:
            one_of(name, element, choices)

    return check


def some_among(choices: Collection[str]) -> Check:
    """Check that a tuple is not empty and that every element is one of the choices."""

    def check(name: str, got: tuple[str, ...]) -> None:
        if not got:
            raise UserError(name, got, f"give at least one of: {', '.join(choices)}")
        all_among(choices)(name, got)

    return check


def counts(what: str) -> Check:
    """Check that a tuple is not empty and that every element is an integer of 1 or more.

    Args:
        what: name of an element, for the message.
    """

    def check(name: str, got: tuple[int, ...]) -> None:
        if not got:
            raise UserError(name, got, f"give at least one {what}")
        whole_numbers(name, got, 1)

    return check


def even_calls(name: str, got: int | tuple[int, ...]) -> None:
    """Check that numbers of network calls are even, as the midpoint method needs."""
    numbers = got if isinstance(got, tuple) else (got,)
    counts("number of calls")(name, numbers)
    if any(n % 2 for n in numbers):
        raise UserError(name, got, "midpoint makes two calls in each step: give even numbers")


def factor(name: str, got: float) -> None:
    """Check that a factor is finite and not 0."""
    if not math.isfinite(got) or got == 0:
        raise UserError(name, got, "it must be finite, and not 0")


def training_steps(name: str, got: int) -> None:
    """Check that a number of training steps fits a 32-bit integer."""
    if not 1 <= got < 2**31:
        raise UserError(name, got, "it must be 1 or more, and below 2^31")


def tile_overlap(name: str, got: float) -> None:
    """Check that neighbouring tiles overlap by at most half of their side."""
    if not 0 <= got <= 0.5:
        raise UserError(name, got, "it must be in [0, 0.5]")


def options_of(part: str, of: Of) -> Field:
    """Declare the free-form options of a user's own part."""
    return Field({}, f"Keyword arguments of your own {part} (module:function).", own_options, of)
