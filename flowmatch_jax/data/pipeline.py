"""The stream of training batches, by Grain."""

from __future__ import annotations

import grain
import jax
import numpy as np

from flowmatch_jax.data.digits import digits
from flowmatch_jax.data.sources import Source
from flowmatch_jax.data.toy2d import checkerboard

# name -> function (split: "train" | "test") -> Source
SOURCES = {"digits": digits, "checkerboard": checkerboard}


def train_batches(
    source: Source, batch_size: int, seed: int, threads: int = 2
) -> grain.DatasetIterator:
    """Endless batches for this process: {"x": [b, ...], "label": [b]}, b = batch_size / processes.

    Each process reads a disjoint part of the source, in a new order each epoch. The iterator's
    state goes into the checkpoint (`get_state`, `set_state`); batches after a restore are the ones
    that would have come.

    Args:
        batch_size: over all processes.
        seed: of the order.
        threads: that read ahead.
    """
    processes = jax.process_count()
    dataset = (
        grain.MapDataset.source(source)
        .seed(seed)[jax.process_index() :: processes]
        .shuffle()
        .repeat(None)
        .batch(batch_size // processes, drop_remainder=True)
    )
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(dataset.to_iter_dataset(options))


def ordered_batches(source: Source, batch_size: int, limit: int | None = None) -> list[np.ndarray]:
    """x of a split in order, [batch_size, ...] each; the last one is shorter, or all there is."""
    x = source.x[:limit]
    return [x[i : i + batch_size] for i in range(0, len(x), batch_size)]
