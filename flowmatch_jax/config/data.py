"""The fields that describe the data and the conditioning inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from flowmatch_jax.config.checks import among, among_or_own, least, options_of
from flowmatch_jax.config.field import EVERYTHING, TRAINED, Field, Of, Section, owned
from flowmatch_jax.data import sets
from flowmatch_jax.data.conditioning import Conditioning
from flowmatch_jax.data.images.resolution import FILTERS
from flowmatch_jax.data.pairs import PairOptions
from flowmatch_jax.dequantisation import DEQUANTISATIONS
from flowmatch_jax.runtime.errors import whole_numbers

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
    "classes": owned(
        sets.Options,
        "classes",
        "Numbers of the classes whose items are used; empty: all.",
        partial(whole_numbers, least=0),
        EVERYTHING,
        omit_unset=True,
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


def _omitted_unless_set(section: Section) -> Section:
    return {
        name: _omitted_unless_set(entry)
        if isinstance(entry, Mapping)
        else replace(entry, omit_unset=True)
        for name, entry in section.items()
    }


_CHOICE = ("options", "version", "size", "classes", "folder", "arrays")
SOURCE: Section = _omitted_unless_set(
    {
        "name": Field(
            None,
            "Samples start from this dataset in place of noise; it is named as config.data.name. "
            "The other fields are those of config.data, for the source.",
            among_or_own(sets.NAMES),
            EVERYTHING,
            str,
        ),
        "paired": Field(
            False,
            "Item n of the source belongs to item n of the data; otherwise they are independent, "
            "or paired by the coupling minibatch_ot.",
            of=TRAINED,
        ),
        "noise": Field(
            0.0,
            "Largest standard deviation of noise between the two ends, in model space.",
            least(0),
            TRAINED,
        ),
        **{name: DATA[name] for name in _CHOICE},
    }
)

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
