"""Guidance of vector fields by a weaker field, which samples are moved away from.

Samples follow

    v(t, x) = v_weak(t, x) + scale (v(t, x) - v_weak(t, x))

in an interval of t, and v(t, x) outside of it (Kynkäänniemi et al. 2024). The weaker field is

- of the same network without the label: classifier-free guidance (Ho & Salimans 2022). The network
  was trained with label dropout, so that it has a conditional and an unconditional field.
- of a weaker model with the same inputs: autoguidance (Karras et al. 2024, 2406.02507). It is an
  earlier checkpoint, or a smaller network that was trained for the same task, with or without
  labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowmatch_jax.arrays import NO_LABEL, Array, Field, Inputs, Params
from flowmatch_jax.runtime.errors import UserError, at_least
from flowmatch_jax.sampling.piecewise import Stretch

FieldGiven = Callable[..., Field]  # (**inputs) -> vector field with these conditioning inputs


class Fields(NamedTuple):
    """The vector fields of a model, and of a weaker model if one guides it."""

    of: FieldGiven
    weak: FieldGiven | None = None

    def map(self, change: Callable[[Field], Field]) -> Fields:
        """Return the fields after a change of each."""
        made = (each and (lambda each=each, **inputs: change(each(**inputs))) for each in self)
        return Fields(*made)


class GuidedParams(NamedTuple):
    """Parameters of a model, and of the weaker model that guides its samples."""

    params: Params
    weak: Params


@dataclass(frozen=True)
class Guidance:
    """Guidance settings; the default applies none.

    Attributes:
        scale: guidance scale; 1 is the model's field, with one network call; 0 is the weaker field.
        interval: interval of t in which guidance is applied, within [0, 1]; a time 1 is included.
        by_weak_model: autoguidance; otherwise classifier-free guidance.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    by_weak_model: bool = False

    def __bool__(self) -> bool:
        return self.scale != 1

    @property
    def label(self) -> str:
        """Part of file names: "_guidance2", "_autoguidance2", or "" without guidance."""
        kind = "autoguidance" if self.by_weak_model else "guidance"
        return f"_{kind}{self.scale:g}" if self else ""

    def applies(self, times: Array) -> Array:
        """Test at which times guidance applies: begin <= t < end, or t <= 1 if the end is 1."""
        begin, end = self.interval
        # The last call of Heun's and of the classical method is at t = 1, within the last step.
        return (begin <= times) & ((times < end) | (end == 1))

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
        if not self or self.by_weak_model:
            return
        instead = "leave it 1, or set config.guidance.weak_step for guidance by a weaker model"
        if not labels:
            allowed = f"the model is given no labels (config.condition.labels): {instead}"
            raise UserError("scale", self.scale, allowed)
        if not label_dropout:
            allowed = (
                "the model knows no field without label, being trained with "
                f"config.condition.label_dropout = 0: {instead}"
            )
            raise UserError("scale", self.scale, allowed)


def guided(fields: Fields, inputs: Inputs, scale: float) -> Field:
    """Create v_weak + scale (v - v_weak).

    Args:
        fields: the vector fields. Without a weak model, the weaker field is that without label, and
            both are computed in one call of the network with twice the batch.
        inputs: conditioning inputs of the samples, which include "label" int32 [B] then.
        scale: guidance scale.
    """
    if fields.weak is None:
        both = _with_and_without_label(fields.of, inputs)
    else:
        strong, weak = (field(**inputs) for field in fields)
        both = lambda t, x: (strong(t, x), weak(t, x))  # noqa: E731

    def field(t: Array, x: Array) -> Array:
        v, v_weak = both(t, x)
        return v_weak + scale * (v - v_weak)

    return field


def stretches(fields: Fields, inputs: Inputs, guidance: Guidance) -> list[Stretch]:
    """Return the guided field from noise to data, for `piecewise.follow`.

    Args:
        fields, inputs: as in `guided`.
        guidance: guidance settings.
    """
    begin, end = guidance.interval
    plain = fields.of(**inputs)
    if guidance.scale == 0:
        weak = fields.of(**_without_label(inputs)) if fields.weak is None else fields.weak(**inputs)
        inside = Stretch(end, weak)
    else:
        inside = Stretch(end, guided(fields, inputs, guidance.scale), calls=2)
    return [Stretch(begin, plain), inside, Stretch(1.0, plain)]


def whole_field(fields: Fields, inputs: Inputs, guidance: Guidance) -> Field:
    """Create the guided field as one function of all times, for solvers that take one field.

    Guidance applies by the time of the call, and not, as in `piecewise.follow`, by the start of the
    step.

    Args:
        fields, inputs: as in `guided`.
        guidance: guidance settings.
    """
    if not guidance:
        return fields.of(**inputs)
    outside, inside, _ = (part.field for part in stretches(fields, inputs, guidance))
    return lambda t, x: jax.lax.cond(guidance.applies(t), inside, outside, t, x)


def network_calls(times: Array, guidance: Guidance) -> Array:
    """Count the network calls of `whole_field` at these times."""
    twice = guidance.applies(times) & (guidance.scale not in (0, 1))
    return (1 + twice).sum().astype(jnp.int32)


def _with_and_without_label(
    field_given: FieldGiven, inputs: Inputs
) -> Callable[[Array, Array], tuple[Array, Array]]:
    """Create (v(t, x | label), v(t, x | none)) by one call of the network with twice the batch."""
    # The copies of a sample are adjacent, so that a sharded batch is not moved between devices.
    pairs = jax.tree.map(_twice, inputs)
    field = field_given(**pairs | {"label": pairs["label"].at[1::2].set(NO_LABEL)})

    def both(t: Array, x: Array) -> tuple[Array, Array]:
        v = field(_twice(jnp.broadcast_to(t, x.shape[:1])), _twice(x))
        return v[::2], v[1::2]

    return both


def _without_label(inputs: Inputs) -> Inputs:
    return inputs | {"label": jnp.full_like(inputs["label"], NO_LABEL)}


def _twice(x: Array) -> Array:
    return jnp.repeat(x, 2, axis=0)
