"""Handwritten digits, 8 x 8 with 17 grey levels, shipped with scikit-learn."""

from __future__ import annotations

import functools

import numpy as np

from flowmatch_jax.data.dataset import Dataset

TRAIN_SIZE = 1500


def digits(split: str) -> Dataset:
    """Load the UCI optical recognition of handwritten digits dataset (its test part, 1,797 images).

    A fixed permutation is split into 1,500 training and 297 test images.
    """
    images, labels = _load()
    # NumPy guarantees RandomState's streams; those of default_rng may change between versions.
    order = np.random.RandomState(0).permutation(len(images))
    chosen = {"train": order[:TRAIN_SIZE], "test": order[TRAIN_SIZE:]}[split]
    return Dataset(
        name="digits",
        version="uci-optdigits",
        split=split,
        x=images[chosen],
        label=labels[chosen],
        levels=17,
        num_classes=10,
    )


@functools.cache  # the text file takes a tenth of a second to parse
def _load() -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 [1797, 8, 8, 1], and the labels, int32."""
    # Imported here: scikit-learn takes a second to load, and only this dataset needs it.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images[..., None].astype(np.uint8), bunch.target.astype(np.int32)
