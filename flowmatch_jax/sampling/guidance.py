"""Classifier-free guidance (Ho & Salimans 2022) of vector fields.

A network that was trained with some of its labels left out has two fields, given the label and
without it, and samples follow

    v(t, x) = v(t, x | none) + scale (v(t, x | label) - v(t, x | none))

in an interval of t, v(t, x | label) outside of it (Kynkäänniemi et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from flowmatch_jax.arrays import NO_LABEL, Array, Field, Inputs
from flowmatch_jax.runtime.errors import UserError, at_least
from flowmatch_jax.sampling.piecewise import Stretch


@dataclass(frozen=True)
class Guidance:
    """How far samples are drawn towards their label; by default no further than the model does.

    Attributes:
        scale: 1 is the field given the label, at one call of the network; 0 that without it.
        interval: the times from and to which it is applied, within [0, 1].
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __bool__(self) -> bool:
        return self.scale != 1

    def settings(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"scale": self.scale, "interval": list(self.interval)}

    def validate(self, labels: bool, label_dropout: float) -> None:
        """Raise UserError unless models that are trained like that can be guided like this.

        Args:
            labels: whether the network is given labels.
            label_dropout: the probability that it was trained without one.
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
    """v(none) + scale (v(label) - v(none)); a call of it is one of twice the batch.

    Args:
        field_given: (**inputs) -> the vector field given them.
        inputs: of the samples, {"label": int32 [B]} among them.
    """
    # Each sample beside itself, so that a batch that is split over devices stays where it is.
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
    """The field from noise to data, for `piecewise.follow`.

    Args:
        field_given, inputs: as of `guided`.
    """
    begin, end = guidance.interval
    plain = field_given(**inputs)
    if guidance.scale == 0:
        inside = Stretch(end, field_given(**_without_label(inputs)))
    else:
        inside = Stretch(end, guided(field_given, inputs, guidance.scale), calls=2)
    return [Stretch(begin, plain), inside, Stretch(1.0, plain)]


def _without_label(inputs: Inputs) -> Inputs:
    return inputs | {"label": jnp.full_like(inputs["label"], NO_LABEL)}


def _twice(x: Array) -> Array:
    return jnp.repeat(x, 2, axis=0)
