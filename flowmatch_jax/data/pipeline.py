"""The input pipeline for training batches, built on Grain.

Grain shuffles indices, and each batch is read by its indices at once. The content of batch n
depends on the seed and n only, not on the number of threads or processes that read ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import grain
import jax
import numpy as np

from flowmatch_jax.data.dataset import Dataset, Images, Items
from flowmatch_jax.data.images.encoded import CorruptCount, CorruptImage
from flowmatch_jax.data.pairing import Pairing
from flowmatch_jax.runtime.errors import UserError

Batch = dict[str, np.ndarray]


def train_batches(
    source: Dataset,
    batch_size: int,
    seed: int,
    *,
    threads: int = 2,
    workers: int = 0,
    max_corrupt: int = 0,
    indices_only: bool = False,
    start: int = 0,
    pairing: Pairing | None = None,
) -> Iterator[Batch]:
    """Iterate endlessly over this process's part of the training batches.

    Batches are {"x": [b, ...], "label": [b]} with b = batch_size / processes, and with items in
    pairs or a pairing also "x0", where their way begins. All processes use the same order of the
    data, which is reshuffled in each epoch, and each reads its own part of each batch; the content
    of a batch, except for the x0 of a pairing, does not depend on their number.

    Args:
        source: the training set.
        batch_size: batch size over all processes; their number must divide it.
        seed: seed of the order.
        threads: threads that read ahead, in each worker.
        workers: processes that read ahead; 0: only this one. Absl's flags must be parsed.
        max_corrupt: maximum number of unreadable images; each is replaced by the next image.
        indices_only: return {"index": [b], "label": [b]} without x, for images on the device.
        start: number of the first batch; a run that resumes after n steps starts at n.
        pairing: draws the x0 of a batch, in the threads that read ahead.

    Raises:
        UserError: there are more unreadable images than ``max_corrupt``.
    """
    at_once = pairing.batches if pairing else 1  # batches that are read together
    first, skipped = divmod(start, at_once)
    order = _order(len(source), batch_size, seed, at_once)[first:]
    read = order.map(_Read(None if indices_only else source.x, source.label, source.x0))
    if pairing:
        read = read.map_with_index(_AddStart(pairing, first, source.x if indices_only else None))
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    batches = read.to_iter_dataset(ahead)
    if workers:
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    together = iter(batches.map(_CountCorrupt(max_corrupt)))
    return islice(split_batches(together, batch_size // jax.process_count()), skipped, None)


def _order(items: int, batch_size: int, seed: int, at_once: int) -> grain.MapDataset:
    """Return the indices of this process's part of ``at_once`` batches, one after the other."""
    size = batch_size // jax.process_count()
    part = slice(size * jax.process_index(), size * (jax.process_index() + 1))
    return (
        grain.MapDataset.range(items)
        .seed(seed)[:]  # [:] only advances Grain's chain of seeds; old runs need it to resume
        .shuffle()
        .repeat(None)
        .batch(at_once * batch_size, drop_remainder=True)
        .map(lambda indices: indices.reshape(at_once, batch_size)[:, part].ravel())
    )


def split_batches(batches: Iterator[Batch], size: int) -> Iterator[Batch]:
    """Split each batch into batches of ``size`` items."""
    for batch in batches:
        for i in range(0, len(next(iter(batch.values()))), size):
            yield {name: x[i : i + size] for name, x in batch.items()}


def ordered_batches(
    source: Dataset, batch_size: int, limit: int | None = None, max_corrupt: int = 0
) -> Iterator[Batch]:
    """Iterate over a split once in order, in batches {"x": [batch_size, ...], "label"}.

    The last batch may be shorter. Unreadable images are left out, which makes a batch shorter, and
    counted as in `train_batches`.

    Args:
        source: the split.
        batch_size: batch size.
        limit: use only the first ``limit`` items; None: all.
        max_corrupt: maximum number of unreadable images.

    Raises:
        UserError: there are more unreadable images than ``max_corrupt``, or none is readable.
    """
    count, end = CorruptCount(max_corrupt), min(len(source), limit or len(source))
    found = 0
    for start in range(0, end, batch_size):
        batch = read_items(source, np.arange(start, min(start + batch_size, end)), count)
        found += len(batch["x"])
        if len(batch["x"]):
            yield batch
    if not found:
        allowed = f"none of the first {end} images of the {source.split} split can be read"
        raise UserError("max_corrupt", max_corrupt, allowed)


def read_items(source: Dataset, indices: np.ndarray, count: CorruptCount) -> Batch:
    """Read the items with these indices; unreadable images are left out and counted."""
    if isinstance(source.x, np.ndarray | Items):
        return _with_labels({"x": source.x[indices]}, source.label, indices)
    images = [_read_or_error(source.x, i) for i in indices]
    count.add({i.name: i.reason for i in images if isinstance(i, CorruptImage)})
    readable = [not isinstance(image, CorruptImage) for image in images]
    x = [image for image, ok in zip(images, readable, strict=True) if ok]
    x = np.stack(x) if x else np.zeros((0, *source.shape), np.uint8)
    return _with_labels({"x": x}, source.label, indices[readable])


def items_at(source: Dataset, indices: np.ndarray, max_corrupt: int = 0) -> Batch:
    """Read one item per index; as in `train_batches`, unreadable images are replaced."""
    return _CountCorrupt(max_corrupt).map(_Read(source.x, source.label, source.x0).map(indices))


@dataclass(frozen=True)
class _Read(grain.transforms.Map):
    """Read the batch of indices [b]; "corrupt" has the names and reasons of unreadable images."""

    x: np.ndarray | Images | Items | None
    label: np.ndarray | None
    x0: np.ndarray | Items | None = None

    def map(self, indices: np.ndarray) -> Batch:
        corrupt: dict[str, str] = {}
        if self.x is None:
            batch = {"index": indices.astype(np.int32)}
        elif isinstance(self.x, np.ndarray | Items):
            batch = {"x": self.x[indices]}
        else:
            indices, images = zip(*(self._first_readable(i, corrupt) for i in indices), strict=True)
            batch = {"x": np.stack(images)}
        if self.x0 is not None:
            batch["x0"] = self.x0[np.asarray(indices)]
        return _with_labels(batch, self.label, list(indices)) | {"corrupt": corrupt}

    def _first_readable(self, i: int, corrupt: dict[str, str]) -> tuple[int, np.ndarray]:
        for j in range(i, i + len(self.x)):
            image = _read_or_error(self.x, j % len(self.x))
            if not isinstance(image, CorruptImage):
                return j % len(self.x), image
            corrupt[image.name] = image.reason
        raise UserError("name", len(self.x), "none of so many images can be read")


@dataclass(frozen=True)
class _AddStart(grain.transforms.MapWithIndex):
    """Add "x0" to the batches from number ``first`` on; ``x``: items, if only indexed."""

    pairing: Pairing
    first: int
    x: np.ndarray | None

    def map_with_index(self, i: int, batch: Batch) -> Batch:
        stored = batch["x"] if self.x is None else self.x[batch["index"]]
        return batch | {"x0": self.pairing.draw(self.first + i, stored, batch.get("label"))}


class _CountCorrupt(grain.transforms.Map):
    """Count unreadable images in the main process, over the batches of all workers."""

    def __init__(self, limit: int) -> None:
        self._count = CorruptCount(limit)

    def map(self, batch: Batch) -> Batch:
        self._count.add(batch.pop("corrupt"))
        return batch


def _with_labels(batch: Batch, label: np.ndarray | None, indices: Sequence[int]) -> Batch:
    return batch if label is None else batch | {"label": label[indices]}


def _read_or_error(x: Images, i: int) -> np.ndarray | CorruptImage:
    try:
        return x[i]
    except CorruptImage as error:
        return error
