"""Prepared datasets: ArrayRecord files that tensorflow-datasets can read, and a manifest.

<data_dir>/<name>/<version>/
    manifest.json                              contents, checked whenever the dataset is opened
    <name>-train.array_record-00000-of-00013   PNG and label by index
    labels-train.npy                           the labels alone, int32
    dataset_info.json  features.json           for `tfds.builder_from_directory`
    decoded/                                   images decoded once (`encoded.decoded`)

A dataset is written into <version>.partial and moved into place when complete, so that an
incomplete one is never opened. Shards are written one by one; finished shards survive an
interruption. TensorFlow is not needed.
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

SHARD = 4096  # images per shard
DONE = "done"  # folder with the progress of an unfinished preparation


def default_data_dir() -> Path:
    """Return the default folder of prepared datasets, which is that of tensorflow-datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def set_folder(data_dir: Path, name: str, version: str) -> Path:
    """Return the folder of a prepared dataset."""
    return data_dir / name / version


def prepare_command(name: str, data_dir: Path) -> str:
    """Return the shell command that prepares a dataset."""
    return f"python -m flowmatch_jax.data.prepare {name} --data_dir={shlex.quote(str(data_dir))}"


class Example(NamedTuple):
    """An image uint8 [H, W, C], its PNG encoding, and its label or None."""

    image: np.ndarray
    png: bytes
    label: int | None


@dataclass(frozen=True)
class Shard:
    """A finished shard of a split.

    Attributes:
        file: file name.
        bytes: file size.
        labels: label of each image, or None.
        sha256: hash of pixels and labels.
    """

    file: str
    bytes: int
    labels: list[int | None]
    sha256: str


def shard_name(name: str, split: str, index: int, shards: int) -> str:
    """Return the file name that tensorflow-datasets expects."""
    return f"{name}-{split}.array_record-{index:05d}-of-{shards:05d}"


def write_shard(path: Path, examples: Iterable[Example], features: Any) -> Shard:
    """Write one shard and verify its number of records; the file gets its name when complete.

    Args:
        path: path of the shard.
        examples: the images in order.
        features: result of `make_features`.

    Raises:
        OSError: the file cannot be written, or holds fewer records than were written (full disk).
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
    except RuntimeError as error:  # ArrayRecord raises it when the disk is full
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
    """Return the shard at this path if an earlier start finished it, else None."""
    try:
        shard = Shard(**json.loads(_facts_of(path).read_text()))
        return shard if path.stat().st_size == shard.bytes else None
    except (OSError, ValueError):
        return None


def make_features(shape: tuple[int, ...], num_classes: int | None) -> Any:
    """Describe an example for tensorflow-datasets."""
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
    """Complete a folder of finished shards with metadata, labels and manifest, and move it.

    Args:
        partial, final: temporary and final path of the folder.
        splits: name -> shards in order.
        features: result of `make_features`.
        facts: additional entries of the manifest (archives and their checksums).
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
    """Write the metadata that tensorflow-datasets needs to open the dataset."""
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
        check_data=False,  # the check needs TensorFlow
    )


@dataclass(frozen=True)
class RecordFiles:
    """The encoded images of one split of a prepared dataset; see `encoded.Files`.

    Attributes:
        folder: folder of the dataset.
        split: name of the split.
        label: int32 [N], or None.
        manifest: the dataset's manifest.
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
        except Exception as error:  # the type depends on which part of the file is damaged
            raise CorruptImage(self.name(i), error) from error

    def name(self, i: int) -> str:
        return f"{self.manifest['name']} {self.split} {i}"


def open_records(data_dir: Path, name: str, version: str, split: str) -> RecordFiles:
    """Open one split of a prepared dataset.

    Raises:
        UserError: the dataset is missing or damaged; the error names the command that prepares it.
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
