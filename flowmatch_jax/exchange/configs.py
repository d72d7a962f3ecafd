"""The config of a run that begins with a network of another project."""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from flowmatch_jax.config.field import copied
from flowmatch_jax.networks.convert.kinds import Converted
from flowmatch_jax.predictions import STEP_INPUTS

SCHEDULES = ("linear", "cosine")

# Fields of config.network.unet that a converted network decides.
UNET = (
    "channels",
    "multipliers",
    "depth",
    "attention_sides",
    "heads",
    "head_channels",
    "scale_shift_norm",
    "residual_resampling",
    "conv_resampling",
    "time_scale",
    "conventions",
)


def with_network(
    base: ConfigDict, converted: Converted, low_resolution: int | None, schedule: str
) -> ConfigDict:
    """Return a config with the network of another project, and what it was trained for.

    A network that predicts the velocity keeps the path of the config: those of torchcfm and
    flow_matching run from noise at t = 0 to data at t = 1 too. One that predicts the noise of a
    diffusion gets the VP path between the first and the last of its noise levels, on which its
    time input is the number of the step with the same signal-to-noise ratio.

    Args:
        base: the config of an experiment: its data, training, solver and evaluation are kept.
        converted: the network.
        low_resolution: side of the low-resolution images that it is given; None: it is given none.
        schedule: noise levels of a diffusion, "linear" or "cosine".
    """
    config = copied(base)
    network, kind = converted.network, converted.kind
    config.network.name, config.network.two_times = "unet", False
    for name in UNET:
        config.network.unet[name] = getattr(network, name)
    config.condition.labels = network.num_classes is not None
    config.condition.low_resolution = low_resolution
    config.condition.max_noise = 0.0
    if low_resolution is not None:  # as ADM's upsamplers are trained
        config.condition.filter, config.condition.enlarging = "box", "bilinear"
    if not kind.noise:
        config.network.time_input = "t"
        config.objective.name, config.objective.predicts = "flow_matching", "velocity"
        return config
    config.condition.label_dropout = 0.0  # such networks are not trained without a label
    config.network.time_input = f"{schedule}_steps"
    config.objective.name, config.objective.predicts = "ddpm", "noise"
    config.path.name = "vp"
    config.path.vp.beta_max, config.path.vp.eps = _vp_ends(schedule, config.path.vp.beta_min)
    return config


def _vp_ends(schedule: str, beta_min: float) -> tuple[float, float]:
    """Return beta_max and eps with which the VP path has the noise levels of the schedule's ends.

    T(s) = s beta_min + s^2 (beta_max - beta_min) / 2 is log(1 + exp(-2 lambda)) at the ends.
    """
    steps = STEP_INPUTS[f"{schedule}_steps"]()
    first, last = (float(np.logaddexp(0, -2 * steps[i])) for i in (0, -1))
    beta_max = 2 * last - beta_min
    slope = beta_max - beta_min
    return beta_max, float((np.sqrt(beta_min**2 + 2 * slope * first) - beta_min) / slope)
