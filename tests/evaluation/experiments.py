"""Experiments whose network is a closed form, so that samples and their cost are known."""

import dataclasses
import functools

import jax.numpy as jnp

from configs import checkerboard_ot, digits_ot
from flowmatch_jax.experiment import build


@functools.cache
def points(rate=0.5, **fields):
    """dx/dt = rate x in the plane: samples are exp(rate) times the noise."""
    return _experiment(checkerboard_ot, rate, fields)


@functools.cache
def images(rate=0.0, **fields):
    """The same for 8 x 8 images; ``apply`` may be another closed form."""
    return _experiment(digits_ot, rate, fields)


def exact_map(params, t, x, end=None, **_):
    """The average velocity of dx/dt = x / 2 in the plane, for a network with two times."""
    h = (0.0 if end is None else end - t) * jnp.ones_like(t)
    growth = jnp.where(h == 0, 0.5, jnp.expm1(0.5 * h) / jnp.where(h == 0, 1, h))
    return params * growth[:, None] * x


def regression(**fields):
    """Of 4 x 4 pixels to 8 x 8: what it makes of its condition is the condition, at t = 0."""
    return images(
        apply=_condition,
        condition__low_resolution=4,
        objective__name="regression",
        objective__predicts="data",
        **fields,
    )


def _condition(params, t, x, condition, key=None):
    return condition + t[:, None, None, None]


def _experiment(module, rate, fields):
    apply = fields.pop("apply", lambda params, t, x, **_: params * rate * x)
    config = module.get_config()
    config.update_from_flattened_dict(
        {
            "evaluate.samples": 8,
            "figures.seeds": 20,
            "figures.generated": 12,
            "figures.nfe": (4, 8, 10),
            "figures.reference_nfe": 200,
            **{name.replace("__", "."): value for name, value in fields.items()},
        }
    )
    return dataclasses.replace(build(config), apply=apply)
