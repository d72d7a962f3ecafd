"""The fields that describe the path, the objective and the guidance."""

from __future__ import annotations

from functools import partial

from flowmatch_jax.config.checks import among, among_or_own, least, options_of, own_options
from flowmatch_jax.config.field import EVERYTHING, TRAINED, Field, Of, Section, owned
from flowmatch_jax.couplings import COUPLINGS, MinibatchOT
from flowmatch_jax.map_objectives import MAP_OBJECTIVES, MapOptions
from flowmatch_jax.objectives import OBJECTIVES
from flowmatch_jax.paths import PATHS
from flowmatch_jax.predictions import FROM_DATA_AND_NOISE
from flowmatch_jax.sampling.guidance import Guidance
from flowmatch_jax.times import TIMES

SAMPLED = Of.SCORES | Of.FIGURES


GUIDANCE: Section = {
    "scale": owned(
        Guidance,
        "scale",
        "Guidance scale: v(none) + scale (v(label) - v(none)), or the same with the field of a "
        "weaker model; 1: no guidance, one network call instead of two.",
        of=SAMPLED,
    ),
    "interval": owned(Guidance, "interval", "Interval of t with guidance.", of=SAMPLED),
    "weak_step": Field(
        None,
        "Guidance by a weaker model (autoguidance): the step of its checkpoint.",
        least(0),
        SAMPLED,
        int,
        omit_unset=True,
    ),
    "weak_workdir": Field(
        None,
        "Folder of the weaker model's run; unset: the run itself, at an earlier checkpoint.",
        of=SAMPLED,
        kind=str,
        omit_unset=True,
    ),
}

PATH: Section = {
    "name": Field(
        "ot",
        "The conditional path p_t(x | x_1): ot | vp | ve | cosine, or your own: module:function.",
        among_or_own(PATHS),
        EVERYTHING,
    ),
    "options": options_of("path", EVERYTHING),
    "ot": {
        "sigma_min": owned(PATHS["ot"], "sigma_min", "Standard deviation at t = 1.", of=EVERYTHING)
    },
    "vp": {
        "beta_min": owned(PATHS["vp"], "beta_min", "Noise rate at the data.", of=EVERYTHING),
        "beta_max": owned(PATHS["vp"], "beta_max", "Noise rate at the noise.", of=EVERYTHING),
        "eps": owned(PATHS["vp"], "eps", "The path ends at t = 1 - eps.", of=EVERYTHING),
    },
    "ve": {
        "sigma_min": owned(PATHS["ve"], "sigma_min", "Standard deviation at t = 1.", of=EVERYTHING),
        "sigma_max": owned(PATHS["ve"], "sigma_max", "Standard deviation at t = 0.", of=EVERYTHING),
    },
    "cosine": {
        "eps": owned(PATHS["cosine"], "eps", "The path ends at t = 1 - eps.", of=EVERYTHING)
    },
}

OBJECTIVE: Section = {
    "name": Field(
        "flow_matching",
        "flow_matching | ddpm | score_matching | scoreflow | maximum_likelihood; for flow maps: "
        "mean_flow | alpha_flow; for super-resolution, without a vector field: regression | sr3; "
        "or your own: module:function.",
        among_or_own((*OBJECTIVES, *MAP_OBJECTIVES, "maximum_likelihood", "regression", "sr3")),
        EVERYTHING,
    ),
    "options": options_of("objective", EVERYTHING),
    "predicts": Field(
        "velocity",
        "The network's output: velocity | noise | score | data.",
        among(FROM_DATA_AND_NOISE),
        EVERYTHING,
    ),
    "coupling": Field(
        "independent",
        "Coupling of noise and data in a batch: independent | minibatch_ot | paired (the pairs of "
        "config.data.pairs), or your own: module:function.",
        among_or_own(COUPLINGS),
        EVERYTHING,
    ),
    "coupling_options": options_of("coupling", EVERYTHING),
    "time": Field(
        "uniform",
        "Distribution of t: uniform | skewed (towards the data) | logit_normal | likelihood (by "
        "the weight of the velocity's error in a likelihood bound) | importance (by scoreflow's "
        "weight), or your own: module:function.",
        among_or_own((*TIMES, "importance")),
        EVERYTHING,
    ),
    "time_options": Field(
        {},
        "Arguments of the distribution of t: stratified (True: spread evenly over the batch) | "
        "mean and std of logit_normal | those of your own.",
        own_options,
        EVERYTHING,
    ),
}

_of_transport = partial(owned, MinibatchOT, of=TRAINED, omit_unset=True)
MINIBATCH_OT: Section = {
    "method": _of_transport(
        "method", "exact (an assignment) | sinkhorn (draws from the entropic plan)."
    ),
    "regularisation": _of_transport(
        "regularisation",
        "Weight of sinkhorn's entropy, in standard deviations of x_0 . x_1 over the pairs.",
    ),
    "batches": _of_transport(
        "batches", "Training batches whose noise and data are paired at once."
    ),
}

_of_maps = partial(owned, MapOptions, of=Of.ROW, omit_unset=True)
FLOW_MAP: Section = {
    "tangent": _of_maps(
        "tangent", "Velocity along which mean_flow differentiates: conditional | predicted."
    ),
    "alpha": _of_maps("alpha", "alpha of alpha_flow; 1 is flow matching."),
    "anneal": _of_maps(
        "anneal", "Shares of config.train.steps between which alpha falls from 1 to its value."
    ),
    "equal": _of_maps("equal", "Share of the samples whose two times are equal."),
    "start": _of_maps(
        "start", "Mean and standard deviation of log(sigma_t / alpha_t) at the first time, t."
    ),
    "end": _of_maps(
        "end", "The same at the second time, s, which is t where it would be before it."
    ),
    "power": _of_maps("power", "The error e of a sample is divided by (e + eps)^power."),
    "eps": _of_maps("eps", "See power."),
    "guidance": _of_maps("guidance", "Guidance scale that the map learns; 1: none."),
}

SR3: Section = {
    "levels": Field(2000, "Noise levels of the training schedule.", least(1), Of.ROW | Of.SCORES),
    "steps": Field(100, "Steps of ancestral sampling, one network call each.", least(1), Of.SCORES),
}
