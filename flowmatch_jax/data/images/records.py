"""Prepared sets: ArrayRecord files as tensorflow-datasets reads them, and a manifest.

<data_dir>/<name>/<version>/
    manifest.json                              what the set is, checked whenever it is opened
    <name>-train.array_record-00000-of-00013   PNG and label, by index
    labels-train.npy                           the labels alone, int32
    dataset_info.json  features.json           for `tfds.builder_from_directory`
    decoded/                                   images decoded once (`encoded.decoded`)

A set is written into <version>.partial and moved when whole, so that a half-written one is never
found. Shards are written one by one, and those that are done are kept over an interruption.
TensorFlow is not needed.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import io
import json
import os
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowmatch_jax.data.images.encoded import CorruptImage
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.files import move_folder, write_atomically

SHARD = 4096  # images in a file
DONE = "done"  # folder of what an interrupted preparation knows


def default_data_dir() -> Path:
    """Where sets are unless said otherwise: tensorflow-datasets' own folder."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def set_folder(data_dir: Path, name: str, version: str) -> Path:
    """Where a prepared set is."""
    return data_dir / name / version


def prepare_command(name: str, data_dir: Path) -> str:
    """What a user types to prepare a set."""
    return f"python -m flowmatch_jax.data.prepare {name} --data_dir={shlex.quote(str(data_dir))}"


class Example(NamedTuple):
    """An image uint8 [H, W, C], the same as PNG, and its label or None."""

    image: np.ndarray
    png: bytes
    label: int | None


@dataclass(frozen=True)
class Shard:
    """A finished file of a split.

    Attributes:
        file: its name.
        bytes: its size.
        labels: of its images; None for each without.
        sha256: of pixels and labels.
    """

    file: str
    bytes: int
    labels: list[int | None]
    sha256: str


def shard_name(name: str, split: str, index: int, shards: int) -> str:
    """The name that tensorflow-datasets expects."""
    return f"{name}-{split}.array_record-{index:05d}-of-{shards:05d}"


def write_shard(path: Path, examples: Iterable[Example], features: Any) -> Shard:
    """Write one file and count its records; it has its name only when it is whole.

    Args:
        features: of `make_features`.

    Raises:
        OSError: what was written is not what can be read (a full disk).
    """
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    partial = path.with_name(f"{path.name}.partial")
    serializer = ExampleSerializer(features.get_serialized_info())
    digest, labels = hashlib.sha256(), []
    try:
        writer = ArrayRecordWriter(str(partial), "group_size:1")
        for example in examples:
            values = {"image": io.BytesIO(example.png), "label": example.label}
            encoded = features.encode_example({name: values[name] for name in features})
            writer.write(serializer.serialize_example(encoded))
            digest.update(example.image.tobytes())
            labels.append(example.label)
        writer.close()
        reader = ArrayRecordReader(str(partial))
        written = reader.num_records()
        reader.close()
    except RuntimeError as error:  # so ArrayRecord says that the disk is full
        raise OSError(errno.EIO, str(error)) from error
    if written != len(labels):
        raise OSError(errno.EIO, f"{partial} holds {written} of {len(labels)} images")
    digest.update(json.dumps(labels).encode())
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    shard = Shard(path.name, partial.stat().st_size, labels, digest.hexdigest())
    partial.rename(path)
    write_atomically(_facts_of(path), json.dumps(vars(shard)))
    return shard


def finished_shard(path: Path) -> Shard | None:
    """A shard that an earlier start has written, or None."""
    try:
        shard = Shard(**json.loads(_facts_of(path).read_text()))
        return shard if path.stat().st_size == shard.bytes else None
    except (OSError, ValueError):
        return None


def make_features(shape: tuple[int, ...], num_classes: int | None) -> Any:
    """What tensorflow-datasets is told of an example."""
    import tensorflow_datasets as tfds

    image = {"image": tfds.features.Image(shape=shape, encoding_format="png")}
    label = {"label": tfds.features.ClassLabel(num_classes=num_classes)} if num_classes else {}
    return tfds.features.FeaturesDict(image | label)


def finish(
    partial: Path,
    final: Path,
    splits: dict[str, list[Shard]],
    features: Any,
    facts: dict[str, Any],
) -> None:
    """Turn a folder of finished shards into a set: metadata, labels, manifest; then move it.

    Args:
        partial, final: the folder as it is and as it will be called.
        splits: name -> shards, in order.
        features: of `make_features`.
        facts: what else the manifest says (archives and their checksums).
    """
    name = splits["train"][0].file.partition("-")[0]
    _write_metadata(partial, final.name, name, splits, features)
    for split, shards in splits.items():
        labels = [label for shard in shards for label in shard.labels]
        if "label" in features:
            np.save(partial / f"labels-{split}.npy", np.array(labels, np.int32))
    manifest = {
        "name": name,
        "version": final.name,
        "shape": list(features["image"].shape),
        "levels": 256,
        "num_classes": features["label"].num_classes if "label" in features else None,
        "splits": {
            split: {
                "images": sum(len(shard.labels) for shard in shards),
                "sha256": hashlib.sha256("".join(s.sha256 for s in shards).encode()).hexdigest(),
                "shards": {shard.file: shard.bytes for shard in shards},
            }
            for split, shards in splits.items()
        },
        **facts,
        "tensorflow-datasets": importlib.metadata.version("tensorflow-datasets"),
    }
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    move_folder(partial, final)
    shutil.rmtree(final / DONE)


def _write_metadata(
    folder: Path, version: str, name: str, splits: dict[str, list[Shard]], features: Any
) -> None:
    """What tensorflow-datasets needs to open the set."""
    import tensorflow_datasets as tfds

    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[len(shard.labels) for shard in shards],
            num_bytes=sum(shard.bytes for shard in shards),
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
            ),
        )
        for split, shards in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=infos,
        version=version,
        check_data=False,  # that would take TensorFlow
    )


@dataclass(frozen=True)
class RecordFiles:
    """The encoded pictures of one split of a prepared set; see `encoded.Files`.

    Attributes:
        folder: of the set.
        split: its name.
        label: int32 [N], or None.
        manifest: of the set.
    """

    folder: Path
    split: str
    label: np.ndarray | None
    manifest: dict[str, Any]

    @cached_property
    def _records(self) -> Any:
        import tensorflow_datasets as tfds

        raw = {"image": tfds.decode.SkipDecoding()}
        builder = tfds.builder_from_directory(self.folder)
        return builder.as_data_source(self.split, decoders=raw)

    def __len__(self) -> int:
        return self.manifest["splits"][self.split]["images"]

    def read(self, i: int) -> bytes:
        records = self._records
        try:
            return records[i]["image"]
        except Exception as error:  # what ArrayRecord raises depends on where the damage is
            raise CorruptImage(self.name(i), error) from error

    def name(self, i: int) -> str:
        return f"{self.manifest['name']} {self.split} {i}"


def open_records(data_dir: Path, name: str, version: str, split: str) -> RecordFiles:
    """One split of a prepared set.

    Raises:
        UserError: the set is not there, or not whole; the error says which command prepares it.
    """
    folder, command = set_folder(data_dir, name, version), prepare_command(name, data_dir)
    if not folder.is_dir():
        raise UserError("name", name, f"not prepared; run: {command}")
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        for file, size in manifest["splits"][split]["shards"].items():
            path = folder / file
            if path.stat().st_size != size:
                raise ValueError(f"its size is not {size}")
        label, path = None, folder / f"labels-{split}.npy"
        if manifest["num_classes"]:
            label = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        allowed = f"{path} is damaged ({error}); remove {folder} and run: {command}"
        raise UserError("name", name, allowed) from error
    return RecordFiles(folder, split, label, manifest)


def _facts_of(shard: Path) -> Path:
    return shard.parent / DONE / f"{shard.name}.json"
