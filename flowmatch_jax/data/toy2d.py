"""Densities in the plane, the paper's 2-D experiments."""

from __future__ import annotations

import math

import numpy as np

from flowmatch_jax.data.sources import Source

SIZES = {"train": 1_000_000, "test": 10_000}
SEEDS = {"train": 0, "test": 1}


def sample_checkerboard(rng: np.random.RandomState, n: int) -> np.ndarray:
    """n points, float32 [n, 2], uniform on the 8 dark squares of a 4 x 4 board on [-4, 4]^2."""
    column = rng.randint(0, 4, n)
    row = 2 * rng.randint(0, 2, n) + column % 2
    corner = 2 * np.stack([column, row], axis=1) - 4
    return (corner + rng.uniform(0, 2, (n, 2))).astype(np.float32)


def checkerboard(split: str) -> Source:
    """The checkerboard of area 32: every point has log-density -log 32 nats."""
    return Source(
        name="checkerboard",
        version="1",
        split=split,
        x=sample_checkerboard(np.random.RandomState(SEEDS[split]), SIZES[split]),
        entropy=math.log(32),
    )
