"""Bits/dim of simple densities on the digits, as baselines for flows.

python -m benchmarks.digits_baselines
"""

from __future__ import annotations

import jax
import numpy as np
from sklearn.mixture import GaussianMixture

from benchmarks.timing import write
from flowmatch_jax.data.digits import digits
from flowmatch_jax.likelihood import bits_per_dim
from flowmatch_jax.pixels import dequantise


def histogram_bits(train: np.ndarray, test: np.ndarray, levels: int) -> float:
    """Score a histogram per pixel, with one count added to each level."""
    counts = np.stack([np.bincount(pixel, minlength=levels) + 1 for pixel in train.T])
    probabilities = counts / counts.sum(axis=1, keepdims=True)
    return float(-np.log2(probabilities[np.arange(train.shape[1]), test]).mean())


def mixture_bits(train: np.ndarray, test: np.ndarray, levels: int, components: int) -> float:
    """Score a mixture of full-covariance Gaussians fitted to five dequantisations (K = 1)."""
    keys = jax.random.split(jax.random.key(0), 6)
    x = np.concatenate([dequantise(key, train, levels) for key in keys[1:]])
    mixture = GaussianMixture(components, reg_covar=1e-4, random_state=0).fit(x)
    log_prob = mixture.score(np.asarray(dequantise(keys[0], test, levels)))
    return float(bits_per_dim(log_prob, test.shape[1], levels))


def main() -> None:
    source = digits("train")
    train, test = source.x.reshape(1500, 64), digits("test").x.reshape(297, 64)
    write(
        "digits_baselines",
        {
            "histogram_for_each_pixel": histogram_bits(train, test, source.levels),
            "one_gaussian": mixture_bits(train, test, source.levels, 1),
            "mixture_of_10_gaussians": mixture_bits(train, test, source.levels, 10),
        },
    )


if __name__ == "__main__":
    main()
