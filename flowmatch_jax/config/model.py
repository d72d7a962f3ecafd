"""The fields that describe the data, the model and the objective."""

from __future__ import annotations

from functools import partial

from flowmatch_jax.config.checks import among, among_or_own, least, own_options
from flowmatch_jax.config.field import EVERYTHING, TRAINED, Field, Of, Section, owned
from flowmatch_jax.couplings import COUPLINGS, MinibatchOT
from flowmatch_jax.data import sets
from flowmatch_jax.data.conditioning import Conditioning
from flowmatch_jax.data.images.resolution import FILTERS
from flowmatch_jax.data.pairs import PairOptions
from flowmatch_jax.dequantisation import DEQUANTISATIONS
from flowmatch_jax.map_objectives import MAP_OBJECTIVES, MapOptions
from flowmatch_jax.objectives import OBJECTIVES
from flowmatch_jax.paths import PATHS
from flowmatch_jax.predictions import FROM_DATA_AND_NOISE
from flowmatch_jax.sampling.guidance import Guidance
from flowmatch_jax.times import TIMES

SAMPLED = Of.SCORES | Of.FIGURES


def options_of(part: str, of: Of) -> Field:
    """Declare the free-form options of a user's own part."""
    return Field({}, f"Keyword arguments of your own {part} (module:function).", own_options, of)


DATA: Section = {
    "name": Field(
        "digits",
        f"The dataset, one of: {', '.join(sets.NAMES)}, or your own: module:function.",
        among_or_own(sets.NAMES),
        TRAINED,
    ),
    "options": options_of("dataset", TRAINED),
    "version": owned(
        sets.Options, "version", "imagenet32 and imagenet64: antialiased or old.", kind=str
    ),
    "data_dir": owned(
        sets.Options,
        "data_dir",
        "Folder of prepared datasets; unset: $TFDS_DATA_DIR, or ~/tensorflow_datasets.",
        of=Of.NOTHING,
        kind=str,
    ),
    "size": owned(
        sets.Options, "size", "Images become squares with this side; folder: required.", kind=int
    ),
    "dequantisation": Field(
        "uniform",
        "From grey levels to model space: uniform (noise in each bin) | truncated_normal (the "
        "path's own noise; the path ends where that fits the bins).",
        among(DEQUANTISATIONS),
        EVERYTHING,
        before="uniform",
    ),
    "flip": Field(False, "Mirror each training image with probability 1/2.", of=Of.ROW),
    "storage": owned(
        sets.Options,
        "storage",
        "memory: decoded once into a memory-mapped file | device: decoded once, with a full copy "
        "on each device | records: decoded on access.",
        of=Of.NOTHING,
    ),
    "max_corrupt": owned(
        sets.Options,
        "max_corrupt",
        "Maximum number of unreadable images that are skipped.",
        least(0),
        Of.NOTHING,
    ),
    "threads": Field(2, "Threads that read ahead.", least(1)),
    "workers": Field(0, "Processes that read ahead; 0: only this one.", least(0)),
    "folder": {
        "path": owned(
            sets.FolderOptions,
            "path",
            "A folder of PNG, JPEG and WebP files; its subfolders are classes.",
            of=Of.NOTHING,
            kind=str,
        ),
        "channels": owned(sets.FolderOptions, "channels", "3: RGB | 1: grey."),
        "background": owned(
            sets.FolderOptions, "background", "Colour behind transparent pixels: name or #rrggbb."
        ),
        "test_fraction": owned(
            sets.FolderOptions, "test_fraction", "Fraction of the images in the test split."
        ),
        "exclude": owned(
            sets.FolderOptions, "exclude", 'Patterns of files to leave out, such as "*-thumb.*".'
        ),
    },
    "arrays": {
        "train": owned(
            sets.ArrayOptions,
            "train",
            "A .npy or .npz file: images uint8 [N, H, W, C] or points [N, D].",
            of=Of.NOTHING,
            kind=str,
        ),
        "test": owned(
            sets.ArrayOptions,
            "test",
            "The same of the test split; unset: test_fraction of the first file.",
            of=Of.NOTHING,
            kind=str,
        ),
        "test_fraction": owned(
            sets.ArrayOptions, "test_fraction", "Fraction of the items in the test split."
        ),
        "levels": owned(sets.ArrayOptions, "levels", "Grey levels of images, from 0."),
    },
    "pairs": {
        "folder": owned(
            PairOptions,
            "folder",
            "Folder of pairs of noise and samples that --mode=generate_pairs wrote, for the "
            "coupling paired. config.data stays the data of the run that made them.",
            of=Of.NOTHING,
            kind=str,
        ),
        "drop_most_distant": owned(
            PairOptions,
            "drop_most_distant",
            "Share of the pairs with the largest distance, which are left out.",
            of=Of.ROW,
            omit_unset=True,
        ),
        "held_out": owned(
            PairOptions,
            "held_out",
            "Share of the other pairs that only measure the validation loss.",
            of=Of.ROW,
            omit_unset=True,
        ),
    },
}

CONDITION: Section = {
    "labels": owned(Conditioning, "labels", "The network is given the class.", of=EVERYTHING),
    "label_dropout": owned(
        Conditioning,
        "label_dropout",
        "Fraction of the labels dropped in training, for classifier-free guidance.",
    ),
    "low_resolution": owned(
        Conditioning,
        "low_resolution",
        "The network is given the image downscaled to this side: super-resolution.",
        of=EVERYTHING,
        kind=int,
    ),
    "filter": owned(
        Conditioning,
        "filter",
        f"Downscaling filter, one of: {', '.join(FILTERS)}.",
        of=EVERYTHING,
    ),
    "enlarging": owned(
        Conditioning,
        "enlarging",
        "Filter that enlarges the low-resolution image again, another of these.",
        of=EVERYTHING,
        omit_unset=True,
    ),
    "max_noise": owned(
        Conditioning,
        "max_noise",
        "In training the low-resolution image gets noise with a standard deviation drawn from "
        "U(0, max_noise), in model space; the network is given the level. 0: no noise.",
        before=0.0,
    ),
}

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
