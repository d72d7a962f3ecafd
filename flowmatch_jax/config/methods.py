"""Training methods other than flow matching with the OT path, for any dataset.

Each function turns the config of flow matching with OT into its method's by changing the path and
the objective only. `likelihood` also changes the dequantisation and the inputs of the network,
`tuned` the training recipe instead, and `class_conditional` the model.
"""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from flowmatch_jax.couplings import MINIBATCH_OT, PAIRED


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
    """Score matching with lambda = sigma^2 on the VP path; the network predicts the score.

    With the usual noise output, S_t = -eps_t / sigma_t, the loss and its row in tables would be
    DDPM's.
    """
    config.method = "Score Matching, score output"
    config.objective.name = "score_matching"
    config.objective.predicts = "score"
    return vp(config)


def scoreflow(config: ConfigDict) -> ConfigDict:
    """ScoreFlow: score matching with lambda = beta on the VP path, by importance sampling of t."""
    config.objective.name = "scoreflow"
    config.objective.predicts = "noise"
    config.objective.time = "importance"
    return vp(config)


def ve(config: ConfigDict) -> ConfigDict:
    """Flow matching with the VE path.

    The magnitude of the target changes 5,000-fold over the path. With a network that predicts the
    data, the loss is log(sigma_max / sigma_min)^2 ||x_1 - output||^2, with equal weight at all t.
    """
    config.path.name = "ve"
    config.objective.predicts = "data"
    return config


def minibatch_ot(config: ConfigDict) -> ConfigDict:
    """Flow matching with the OT path and noise that is paired with data by optimal transport."""
    config.objective.coupling = MINIBATCH_OT
    return config


def likelihood(config: ConfigDict) -> ConfigDict:
    """Flow matching with the OT path for likelihood, by truncated normal dequantisation.

    Times are drawn by the likelihood's weight (Zheng et al. 2023, 2305.03935), and the network has
    inputs that resolve the grey levels (Kingma et al. 2021, 2107.00630).
    """
    config.method = "FM w/ OT, for likelihood"
    config.data.dequantisation = "truncated_normal"
    config.objective.time = "likelihood"
    config.objective.time_options.stratified = True
    config.network.level_octaves = 2
    return config


def mean_flow(config: ConfigDict) -> ConfigDict:
    """MeanFlow: a flow map, whose samples need one or a few calls of the network.

    Its evaluation solves the map's vector field; config.solver.method=flow_map calls the map. The
    derivative by time is tame with slow sinusoids alone, hence the time scale. Noise is paired with
    data by optimal transport where the coupling allows it: samples of one to four calls then have
    half the Fréchet distance.
    """
    config.objective.name = "mean_flow"
    if config.condition.low_resolution is None:
        config.objective.coupling = MINIBATCH_OT
    config.network.two_times = True
    config.network.unet.time_scale = 1.0
    config.figures.nfe = (1, 2, *config.figures.nfe)
    return config


def alpha_flow(config: ConfigDict) -> ConfigDict:
    """alpha-Flow: the flow map of `mean_flow`, trained without derivatives of the network."""
    config = mean_flow(config)
    config.objective.name = "alpha_flow"
    return config


def reflow(config: ConfigDict) -> ConfigDict:
    """Flow matching on the pairs of noise and samples of a trained model (Liu et al. 2022)."""
    config.objective.coupling = PAIRED
    config.figures.nfe = (1, 2, *config.figures.nfe)
    return config


def regression(config: ConfigDict) -> ConfigDict:
    """Regression to the mean in one network call, without a path; for super-resolution only."""
    config.objective.name = "regression"
    config.objective.predicts = "data"
    return config


def sr3(config: ConfigDict) -> ConfigDict:
    """SR3: noise matching conditioned on the noise level of the VP path, ancestral sampling."""
    config.objective.name = "sr3"
    config.objective.predicts = "noise"
    return vp(config)


def tuned(config: ConfigDict) -> ConfigDict:
    """Flow matching with OT and a tuned recipe: gradient clipping and dropout.

    All methods keep an exponential moving average of the weights. Flips are set per dataset: they
    are valid only where a mirrored image could be in the dataset.
    """
    config.method = "FM w/ OT, tuned"
    config.network.unet.dropout = 0.1
    config.optimizer.clip_norm = 1.0
    return config


def class_conditional(config: ConfigDict) -> ConfigDict:
    """Class-conditional model; a tenth of the labels are dropped for classifier-free guidance."""
    config.condition.labels = True
    return config


METHODS: dict[str, Callable[[ConfigDict], ConfigDict]] = {
    "vp": vp,
    "ddpm": ddpm,
    "score": score,
    "scoreflow": scoreflow,
    "ve": ve,
    "minibatch_ot": minibatch_ot,
    "likelihood": likelihood,
    "mean_flow": mean_flow,
    "alpha_flow": alpha_flow,
    "reflow": reflow,
    "regression": regression,
    "sr3": sr3,
    "tuned": tuned,
    "class": class_conditional,
}
