"""Classifier-free guidance (Ho & Salimans 2022) of vector fields.

A network that was trained with label dropout has a conditional and an unconditional field. Samples
follow

    v(t, x) = v(t, x | none) + scale (v(t, x | label) - v(t, x | none))

in an interval of t, and v(t, x | label) outside of it (Kynkäänniemi et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from flowmatch_jax.arrays import NO_LABEL, Array, Field, Inputs
from flowmatch_jax.runtime.errors import UserError, at_least
from flowmatch_jax.sampling.piecewise import Stretch


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance settings; the default applies none.

    Attributes:
        scale: guidance scale; 1 is the conditional field, with one network call; 0 is the
            unconditional field.
        interval: interval of t in which guidance is applied, within [0, 1].
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __bool__(self) -> bool:
        return self.scale != 1

    def validate(self, labels: bool, label_dropout: float) -> None:
        """Raise UserError unless a model trained with these settings supports this guidance.

        Args:
            labels: whether the network is conditioned on labels.
            label_dropout: probability with which labels were dropped in training.
        """
        at_least("scale", self.scale, 0)
        times = self.interval
        are_numbers = all(isinstance(t, int | float) for t in times)
        if not are_numbers or len(times) != 2 or not 0 <= times[0] < times[1] <= 1:
            raise UserError("interval", times, "it takes two times, 0 <= from < to <= 1")
        if self and not labels:
            allowed = "the model is given no labels (config.condition.labels): leave it 1"
            raise UserError("scale", self.scale, allowed)
        if self and not label_dropout:
            allowed = (
                "the model knows no field without label, being trained with "
                "config.condition.label_dropout = 0: leave it 1"
            )
            raise UserError("scale", self.scale, allowed)


def guided(field_given: Callable[..., Field], inputs: Inputs, scale: float) -> Field:
    """Create v(none) + scale (v(label) - v(none)); it calls the network with twice the batch.

    Args:
        field_given: (**inputs) -> vector field with these conditioning inputs.
        inputs: conditioning inputs of the samples, which include "label" int32 [B].
        scale: guidance scale.
    """
    # The copies of a sample are adjacent, so that a sharded batch is not moved between devices.
    pairs = jax.tree.map(_twice, inputs)
    both = field_given(**pairs | {"label": pairs["label"].at[1::2].set(NO_LABEL)})

    def field(t: Array, x: Array) -> Array:
        v = both(_twice(jnp.broadcast_to(t, x.shape[:1])), _twice(x))
        given, without = v[::2], v[1::2]
        return without + scale * (given - without)

    return field


def stretches(
    field_given: Callable[..., Field], inputs: Inputs, guidance: Guidance
) -> list[Stretch]:
    """Return the guided field from noise to data, for `piecewise.follow`.

    Args:
        field_given, inputs: as in `guided`.
        guidance: guidance settings.
    """
    begin, end = guidance.interval
    plain = field_given(**inputs)
    if guidance.scale == 0:
        inside = Stretch(end, field_given(**_without_label(inputs)))
    else:
        inside = Stretch(end, guided(field_given, inputs, guidance.scale), calls=2)
    return [Stretch(begin, plain), inside, Stretch(1.0, plain)]


def whole_field(field_given: Callable[..., Field], inputs: Inputs, guidance: Guidance) -> Field:
    """Create the guided field as one function of all times, for solvers that take one field.

    Args:
        field_given, inputs: as in `guided`.
        guidance: guidance settings.
    """
    if not guidance:
        return field_given(**inputs)
    outside, inside, _ = (part.field for part in stretches(field_given, inputs, guidance))
    begin, end = guidance.interval
    return lambda t, x: jax.lax.cond((begin <= t) & (t < end), inside, outside, t, x)


def network_calls(times: Array, guidance: Guidance) -> Array:
    """Count the network calls of `whole_field` at these times."""
    begin, end = guidance.interval
    twice = (begin <= times) & (times < end) & (guidance.scale not in (0, 1))
    return (1 + twice).sum().astype(jnp.int32)


def _without_label(inputs: Inputs) -> Inputs:
    return inputs | {"label": jnp.full_like(inputs["label"], NO_LABEL)}


def _twice(x: Array) -> Array:
    return jnp.repeat(x, 2, axis=0)
