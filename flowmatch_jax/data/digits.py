"""Handwritten digits, 8 x 8 with 17 grey levels: real images that scikit-learn carries."""

from __future__ import annotations

import numpy as np

from flowmatch_jax.data.dataset import Dataset

TRAIN_SIZE = 1500


def digits(split: str) -> Dataset:
    """The optical recognition set of the UCI repository (its test part, 1,797 images).

    A fixed permutation is split into 1,500 images for training and 297 for testing.
    """
    # Imported here: scikit-learn takes a second to load, and only this set needs it.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # RandomState's streams are frozen by NumPy's policy; those of default_rng may change.
    order = np.random.RandomState(0).permutation(len(bunch.images))
    chosen = {"train": order[:TRAIN_SIZE], "test": order[TRAIN_SIZE:]}[split]
    return Dataset(
        name="digits",
        version="uci-optdigits",
        split=split,
        x=bunch.images[chosen, :, :, None].astype(np.uint8),
        label=bunch.target[chosen].astype(np.int32),
        levels=17,
        num_classes=10,
    )
