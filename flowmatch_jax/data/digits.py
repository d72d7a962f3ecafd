"""Handwritten digits, 8 x 8 with 17 grey levels, shipped with scikit-learn."""

from __future__ import annotations

import numpy as np

from flowmatch_jax.data.dataset import Dataset

TRAIN_SIZE = 1500


def digits(split: str) -> Dataset:
    """Load the UCI optical recognition of handwritten digits dataset (its test part, 1,797 images).

    A fixed permutation is split into 1,500 training and 297 test images.
    """
    # Imported here: scikit-learn takes a second to load, and only this dataset needs it.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # NumPy guarantees RandomState's streams; those of default_rng may change between versions.
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
