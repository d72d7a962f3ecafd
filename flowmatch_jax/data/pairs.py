"""Pairs of noise x_0 and the sample x_1 that a model makes of it, as a dataset for reflow.

A folder of pairs has two files. pairs.bin holds a record for each pair: x_0 and x_1 in model space,
float32, and the label, int32, if the model has classes. pairs.json describes them and has the hash
of each chunk of records. Chunks are appended one after another, so that a stopped command goes on
after the last one.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowmatch_jax.data.dataset import Dataset, Items, RecordedDataset, Splits
from flowmatch_jax.runtime.errors import UserError, fraction
from flowmatch_jax.runtime.files import Unreadable, read_json
from flowmatch_jax.runtime.progress import progress_bar
from flowmatch_jax.runtime.workdir import write_json

logger = logging.getLogger(__name__)

RECORDS, ABOUT = "pairs.bin", "pairs.json"
MAKE = "--mode=generate_pairs writes them to the folder pairs of a run"


@dataclass(frozen=True)
class PairOptions:
    """Options of pairs as training data; the class of config.data.pairs.

    Attributes:
        folder: folder of the pairs.
        drop_most_distant: share of the pairs with the largest distance ||x_1 - x_0||, which are
            left out.
        held_out: share of the other pairs that only measure the validation loss.
    """

    folder: str | None = None
    drop_most_distant: float = 0.0
    held_out: float = 0.05

    def validate(self) -> None:
        """Raise UserError for invalid options, as far as they can be checked without files."""
        fraction("drop_most_distant", self.drop_most_distant)
        fraction("held_out", self.held_out)


class PairFolder:
    """A folder that pairs are written to, chunk by chunk.

    Args:
        folder: the folder, which is created if it does not exist.
        facts: what the pairs depend on, as JSON values. Among them are "shape" of an item,
            "chunk", the pairs of a chunk, and "labels", whether pairs have labels.
        count: number of pairs. The last chunk may have more; a folder with fewer is completed.

    Raises:
        UserError: the folder holds other pairs, or cannot be created.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], count: int) -> None:
        self._folder, self._facts, self._count = folder, facts, count
        self._type = _record_type(facts["shape"], facts["labels"])
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            allowed = f"its folder {folder} cannot be created ({error.strerror})"
            raise UserError("--mode", "generate_pairs", allowed) from error
        self._hashes = self._known() if (folder / ABOUT).exists() else []
        self._write_about()

    @property
    def done(self) -> int:
        """Number of chunks that are there."""
        return len(self._hashes)

    def append(self, x0: np.ndarray, x1: np.ndarray, label: np.ndarray | None) -> None:
        """Write the next chunk: x_0 and x_1 [chunk, ...] in model space, and labels [chunk]."""
        records = np.empty(len(x0), self._type)
        records["x0"], records["x1"] = x0, x1
        if label is not None:
            records["label"] = label
        path = self._folder / RECORDS
        with path.open("r+b" if path.exists() else "wb") as file:
            file.seek(self.done * records.nbytes)
            file.write(records.tobytes())
            file.flush()
            os.fsync(file.fileno())
        self._hashes.append(_hash(records))
        self._write_about()

    def _write_about(self) -> None:
        about = self._facts | {"count": self._count, "sha256": self._hashes}
        write_json(self._folder / ABOUT, about)

    def _known(self) -> list[str]:
        """Return the hashes of the chunks that are there, up to the first that has changed."""
        about = _read_about(self._folder, "--mode")
        if {name: about.get(name) for name in self._facts} != self._facts:
            allowed = f"{self._folder} has pairs of another step or other settings; move it away"
            raise UserError("--mode", "generate_pairs", allowed)
        chunks = _chunks(self._folder, self._type, about["chunk"])
        pairs = zip(about["sha256"], chunks, strict=False)
        return [sha256 for sha256, _ in itertools.takewhile(lambda p: p[0] == _hash(p[1]), pairs)]


def open_pairs(options: PairOptions, data: Dataset | RecordedDataset, labels: bool) -> Splits:
    """Open pairs as the training set and the held-out set of a run; all chunks are checked.

    Args:
        options: the options, with a folder.
        data: the training set of the run, which must be that of the model that made the pairs.
        labels: whether the run needs labels.

    Raises:
        UserError: there are no pairs, not all of them, or pairs of other data, without the labels,
            or with a chunk that has changed; or too few are left.
    """
    folder = Path(options.folder).expanduser()
    about = _read_about(folder, "folder")
    _check_kind(folder, about, data, labels)
    records, distance = _checked(folder, about)
    nearest = np.argsort(distance, kind="stable")
    kept = np.sort(nearest[: len(nearest) - round(options.drop_most_distant * len(nearest))])
    held_out = round(options.held_out * len(kept))
    if held_out == len(kept) or (options.held_out and not held_out):
        allowed = f"of {len(kept)} pairs it holds out {held_out}: some are for each use"
        raise UserError("held_out", options.held_out, allowed)
    sha256 = hashlib.sha256(repr([about["sha256"], len(records), len(kept), held_out]).encode())

    def split(name: str, chosen: np.ndarray) -> Dataset:
        return Dataset(
            name=f"pairs of {data.name}",
            version=sha256.hexdigest()[:16],
            split=name,
            x=Items(records["x1"], chosen),
            x0=Items(records["x0"], chosen),
            label=records["label"][chosen] if labels else None,
            num_classes=data.num_classes if labels else None,
            sha256=sha256.hexdigest(),
        )

    return Splits(split("train", kept[held_out:]), split("test", kept[:held_out]))


def _check_kind(
    folder: Path, about: dict[str, Any], data: Dataset | RecordedDataset, labels: bool
) -> None:
    """Raise UserError unless the pairs were made by a model of these data, with labels."""
    if tuple(about["shape"]) != data.shape:
        got = f"{folder}: items of shape {tuple(about['shape'])}"
        raise UserError("folder", got, f"{data.name} has items of shape {data.shape}")
    if about["data"]["sha256"] != data.content_hash:
        got = f"{folder}: of {about['data']['name']} {about['data']['version']}"
        allowed = f"the run has {data.name} {data.version}: give the data of the model's run"
        raise UserError("folder", got, allowed)
    if labels and not about["labels"]:
        allowed = "its pairs have no labels: leave config.condition.labels off"
        raise UserError("folder", str(folder), allowed)


def _checked(folder: Path, about: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the records [count], in their file, and the distances ||x_1 - x_0|| [count].

    Raises UserError if there are fewer, or a chunk has changed.
    """
    count, size, hashes = about["count"], about["chunk"], about["sha256"]
    if len(hashes) * size < count:
        allowed = (
            f"{len(hashes) * size} of {count} pairs are there: run --mode=generate_pairs again"
        )
        raise UserError("folder", str(folder), allowed)
    kind, distances = _record_type(about["shape"], about["labels"]), []
    chunks = _chunks(folder, kind, size)
    for n, sha256 in enumerate(progress_bar(hashes, desc="checking pairs")):
        records = next(chunks, None)
        if records is None or _hash(records) != sha256:
            allowed = f"chunk {n} of {RECORDS} is not what was written: generate the pairs again"
            raise UserError("folder", str(folder), allowed)
        way = (records["x1"] - records["x0"]).reshape(size, -1)
        distances.append(np.linalg.norm(way, axis=1))
    records = np.memmap(folder / RECORDS, kind, "r", shape=(len(hashes) * size,))
    return records[:count], np.concatenate(distances)[:count]


def _read_about(folder: Path, field: str) -> dict[str, Any]:
    try:
        about = read_json(folder / ABOUT)
        _record_type(about["shape"], about["labels"])
        _ = about["data"]["sha256"], about["chunk"], about["count"], len(about["sha256"])
        return about
    except OSError as error:
        allowed = f"{ABOUT} cannot be read there ({error.strerror}); {MAKE}"
        raise UserError(field, str(folder), allowed) from error
    except (Unreadable, KeyError, TypeError) as error:
        allowed = f"its {ABOUT} is damaged; {MAKE}"
        raise UserError(field, str(folder), allowed) from error


def _record_type(shape: tuple[int, ...], labels: bool) -> np.dtype:
    fields = [("x0", "<f4", tuple(shape)), ("x1", "<f4", tuple(shape))]
    return np.dtype(fields + ([("label", "<i4")] if labels else []))


def _chunks(folder: Path, kind: np.dtype, size: int) -> Iterator[np.ndarray]:
    """Iterate over the whole chunks of records in the file."""
    path = folder / RECORDS
    if path.exists():
        with path.open("rb") as file:
            while len(records := np.fromfile(file, kind, size)) == size:
                yield records


def _hash(records: np.ndarray) -> str:
    return hashlib.sha256(records.tobytes()).hexdigest()
