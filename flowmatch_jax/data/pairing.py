"""Starting points x_0 of a batch that are drawn on the host: data, or noise that is paired."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import numpy as np

from flowmatch_jax.couplings import MinibatchOT
from flowmatch_jax.data.dataset import Dataset
from flowmatch_jax.pixels import centres


@dataclass(frozen=True)
class Pairing:
    """Draws x_0 for the items of a batch and, by a plan of transport, permutes it.

    Each process draws for its own part of a batch, for all of its devices and micro-batches.

    Attributes:
        transport: the plan; None: x_0 is independent of the items.
        levels: grey levels of images, which are paired at the centres of their bins; None: points.
        by_label: pair x_0 within the items of each label only.
        seed, process: x_0 depends on them and on the number of the batch.
        source: dataset whose items x_0 are drawn from, with replacement; None: N(0, I).
    """

    transport: MinibatchOT | None
    levels: int | None
    by_label: bool
    seed: int
    process: int = field(default_factory=jax.process_index)
    source: Dataset | None = None

    @property
    def batches(self) -> int:
        """The number of training batches that are drawn at once."""
        return 1 if self.transport is None else self.transport.batches

    def draw(self, n: int, stored: np.ndarray, label: np.ndarray | None) -> np.ndarray:
        """Draw x_0 of batch number n in the order of its items, [B, ...].

        Args:
            n: number of the batch.
            stored: the items as the dataset stores them, [B, ...].
            label: int [B], or None.

        Returns:
            Noise, float32, or items of the source as it stores them.
        """
        rng = np.random.default_rng((self.seed, n, self.process))
        x0 = self._independent(rng, stored.shape)
        if self.transport is None:
            return x0
        levels = None if self.source is None else self.source.levels
        start, end = _in_model_space(x0, levels), _in_model_space(stored, self.levels)
        return x0[self.transport.pair(rng, start, end, label if self.by_label else None)]

    def _independent(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        if self.source is None:
            return rng.standard_normal(shape, np.float32)
        return self.source.x[rng.integers(len(self.source), size=shape[0])]


def _in_model_space(stored: np.ndarray, levels: int | None) -> np.ndarray:
    return stored if levels is None else centres(stored, levels)
