"""Noise that is paired with the data of a batch on the host."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import numpy as np

from flowmatch_jax.couplings import MinibatchOT
from flowmatch_jax.pixels import centres


@dataclass(frozen=True)
class Pairing:
    """Draws noise x_0 for the items of a batch and permutes it by a plan of transport.

    Each process pairs its own part of a batch, for all of its devices and micro-batches.

    Attributes:
        transport: the plan.
        levels: grey levels of images, which are paired at the centres of their bins; None: points.
        by_label: pair noise within the items of each label only.
        seed, process: the noise depends on them and on the number of the batch.
    """

    transport: MinibatchOT
    levels: int | None
    by_label: bool
    seed: int
    process: int = field(default_factory=jax.process_index)

    def noise(self, n: int, stored: np.ndarray, label: np.ndarray | None) -> np.ndarray:
        """Draw the noise of batch number n in the order of its items; float32 [B, ...].

        Args:
            n: number of the batch.
            stored: the items as the dataset stores them, [B, ...].
            label: int [B], or None.
        """
        rng = np.random.default_rng((self.seed, n, self.process))
        x0 = rng.standard_normal(stored.shape, np.float32)
        x1 = stored if self.levels is None else centres(stored, self.levels)
        return x0[self.transport.pair(rng, x0, x1, label if self.by_label else None)]
