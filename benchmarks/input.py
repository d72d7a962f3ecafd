"""Images per second of the input pipeline, by storage of the dataset.

    python -m benchmarks.input [--data_dir=data]

Batches are 128 images of the prepared Fashion-MNIST or, without --data_dir, random images of its
shape that are prepared in a temporary folder. "plain Grain" reads the same memory-mapped array item
by item and batches the items, as in Grain's own documentation.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags
from PIL import Image

from benchmarks.timing import Row, compared, interleaved, rates, write_rows
from flowmatch_jax.data.dataset import Dataset
from flowmatch_jax.data.images import records
from flowmatch_jax.data.pipeline import train_batches
from flowmatch_jax.data.prepare.layouts import LAYOUTS
from flowmatch_jax.data.sets import Options, open_dataset

NAME, BATCH, BATCHES = "fashion_mnist", 128, 60


def plain_grain(source: Dataset) -> Iterator[Any]:
    """Iterate endlessly over batches that are read item by item."""
    dataset = grain.MapDataset.source(source).seed(0).shuffle().repeat(None)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(dataset.batch(BATCH, drop_remainder=True).to_iter_dataset(options))


def prepare_random(data_dir: Path, count: int = 2 * records.SHARD) -> None:
    """Write a dataset of random images in place of Fashion-MNIST with the package's writer."""
    layout = LAYOUTS[NAME]
    final = records.set_folder(data_dir, NAME, layout.version)
    partial = final.with_name(f"{final.name}.partial")
    (partial / records.DONE).mkdir(parents=True)
    features = records.make_features(layout.shape, layout.num_classes)
    rng = np.random.RandomState(0)

    def examples() -> Iterator[records.Example]:
        for _ in range(count):
            image = rng.randint(0, 256, layout.shape, np.uint8)
            png = io.BytesIO()
            Image.fromarray(image[..., 0]).save(png, "PNG")
            yield records.Example(image, png.getvalue(), int(rng.randint(layout.num_classes)))

    def split(name: str) -> list[records.Shard]:
        path = partial / records.shard_name(NAME, name, 0, 1)
        return [records.write_shard(path, examples(), features)]

    splits = {name: split(name) for name in layout.splits}
    records.finish(partial, final, splits, features, {"archives": {}})


def measure(data_dir: str, rounds: int) -> list[Row]:
    """Measure images per second of each storage, compared with plain Grain."""
    memory = open_dataset(Options(NAME, data_dir=data_dir), "train")
    encoded = open_dataset(Options(NAME, data_dir=data_dir, storage="records"), "train")
    streams = {
        "plain Grain": plain_grain(memory),
        "memory": train_batches(memory, BATCH, 0),
        "device (indices)": train_batches(memory, BATCH, 0, indices_only=True),
        "records, 1 thread": train_batches(encoded, BATCH, 0, threads=1),
        "records, 2 threads": train_batches(encoded, BATCH, 0, threads=2),
        "records, 2 workers": train_batches(encoded, BATCH, 0, threads=1, workers=2),
    }

    def take(batches: Iterator[Any]) -> Callable[[], None]:
        def call() -> None:
            for _ in range(BATCHES):
                next(batches)

        return call

    seconds = interleaved({name: take(batches) for name, batches in streams.items()}, rounds)
    images = {name: rates(BATCH * BATCHES, times) for name, times in seconds.items()}
    plain = images.pop("plain Grain")
    return [
        compared(f"{name}: plain Grain, in memory", "images/s", rate, plain, f"batch {BATCH}")
        for name, rate in images.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", help="folder with the prepared Fashion-MNIST")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes ask for them
    command = "python -m benchmarks.input"
    if given.data_dir:
        rows = measure(given.data_dir, given.rounds)
        command += f" --data_dir={given.data_dir}"
    else:
        with tempfile.TemporaryDirectory() as folder:
            prepare_random(Path(folder))
            rows = measure(folder, given.rounds)
    write_rows("input", command, given.rounds, rows)


if __name__ == "__main__":
    main()
