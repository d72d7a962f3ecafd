"""Images a second that the input pipeline gives, by how the set is kept.

    python -m benchmarks.input --data_dir=data

Fashion-MNIST in batches of 128, prepared before. "plain Grain" reads the same mapped array item by
item and batches the items, the way Grain's own documentation does.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import grain
from absl import flags

from benchmarks.timing import interleaved, ratios, write
from flowmatch_jax.data.pipeline import train_batches
from flowmatch_jax.data.sets import Options, open_source
from flowmatch_jax.data.sources import Source

BATCH, BATCHES = 128, 60


def plain_grain(source: Source) -> Iterator[Any]:
    """Endless batches, item by item."""
    dataset = grain.MapDataset.source(source).seed(0).shuffle().repeat(None)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(dataset.batch(BATCH, drop_remainder=True).to_iter_dataset(options))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_dir", required=True)
    data_dir = parser.parse_args().data_dir
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes ask for them

    memory = open_source(Options("fashion_mnist", data_dir=data_dir), "train")
    records = open_source(Options("fashion_mnist", data_dir=data_dir, storage="records"), "train")
    streams = {
        "memory": train_batches(memory, BATCH, 0),
        "memory, plain Grain": plain_grain(memory),
        "device (indices)": train_batches(memory, BATCH, 0, indices_only=True),
        "records, 1 thread": train_batches(records, BATCH, 0, threads=1),
        "records, 2 threads": train_batches(records, BATCH, 0, threads=2),
        "records, 2 workers": train_batches(records, BATCH, 0, threads=1, workers=2),
    }

    def take(batches: Iterator[Any]) -> Callable[[], None]:
        def call() -> None:
            for _ in range(BATCHES):
                next(batches)

        return call

    seconds = interleaved({name: take(batches) for name, batches in streams.items()})
    images = BATCH * BATCHES
    write(
        "input",
        {
            "batch": BATCH,
            "ratio_to_plain_grain": ratios(seconds["memory, plain Grain"], seconds["memory"]),
            "images_per_second": {
                name: {
                    "median": round(images / statistics.median(times)),
                    "min": round(images / max(times)),
                    "max": round(images / min(times)),
                }
                for name, times in seconds.items()
            },
        },
    )


if __name__ == "__main__":
    main()
