"""The methods that any dataset can be trained with, besides flow matching with the OT path.

Each changes the config of flow matching with OT into its own: its path and objective, and nothing
else. `tuned` is another recipe for the same method, and `class_conditional` another model.
"""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict


def vp(config: ConfigDict) -> ConfigDict:
    """Flow matching with the VP path, "FM w/ Diffusion"."""
    config.path.name = "vp"
    return config


def ddpm(config: ConfigDict) -> ConfigDict:
    """DDPM: noise matching on the VP path."""
    config.objective.name = "ddpm"
    config.objective.predicts = "noise"
    return vp(config)


def score(config: ConfigDict) -> ConfigDict:
    """Score matching with lambda = sigma^2 on the VP path, by a network that predicts the score.

    With the usual noise output, S_t = -eps_t / sigma_t, its loss is DDPM's, and so is its row.
    """
    config.method = "Score Matching, score output"
    config.objective.name = "score_matching"
    config.objective.predicts = "score"
    return vp(config)


def scoreflow(config: ConfigDict) -> ConfigDict:
    """ScoreFlow: score matching with lambda = beta on the VP path, t drawn by that weight."""
    config.objective.name = "scoreflow"
    config.objective.predicts = "noise"
    config.objective.time = "importance"
    return vp(config)


def ve(config: ConfigDict) -> ConfigDict:
    """Flow matching with the VE path.

    The target's size changes 5,000-fold over the path; a network that predicts the data makes the
    loss log(sigma_max / sigma_min)^2 ||x_1 - output||^2, the same at all times.
    """
    config.path.name = "ve"
    config.objective.predicts = "data"
    return config


def regression(config: ConfigDict) -> ConfigDict:
    """The network's mean prediction in one call, for super-resolution alone; it has no path."""
    config.objective.name = "regression"
    config.objective.predicts = "data"
    return config


def sr3(config: ConfigDict) -> ConfigDict:
    """SR3: noise matching at noise levels of the VP path, ancestral sampling."""
    config.objective.name = "sr3"
    config.objective.predicts = "noise"
    return vp(config)


def tuned(config: ConfigDict) -> ConfigDict:
    """Flow matching with OT, by what has been found to help since: clipping, dropout.

    The average of the weights is kept for all methods alike. Flips are left to the data set: they
    belong where a picture's mirror image could be one of the set.
    """
    config.method = "FM w/ OT, tuned"
    config.network.unet.dropout = 0.1
    config.optimizer.clip_norm = 1.0
    return config


def class_conditional(config: ConfigDict) -> ConfigDict:
    """The network is given the label, and a tenth of the labels are left out for guidance."""
    config.condition.labels = True
    return config


METHODS: dict[str, Callable[[ConfigDict], ConfigDict]] = {
    "vp": vp,
    "ddpm": ddpm,
    "score": score,
    "scoreflow": scoreflow,
    "ve": ve,
    "regression": regression,
    "sr3": sr3,
    "tuned": tuned,
    "class": class_conditional,
}
