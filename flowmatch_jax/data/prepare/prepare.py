"""Prepare a published dataset once, from its archives.

The archives are found or downloaded, verified, and converted into the dataset's folder
(`records`). An interrupted preparation resumes at the shard where it stopped.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import math
import os
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flowmatch_jax.data.images import records
from flowmatch_jax.data.images.decode import decode, encode, square
from flowmatch_jax.data.prepare.archives import Archive, Item, Layout, Split
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.files import locked, read_json, write_atomically

TIMEOUT = 10  # seconds without a response from a server
BLOCK = 1 << 20  # bytes per read
AHEAD = 64  # images that are decoded concurrently


def prepare(layout: Layout, data_dir: Path, archives_dir: Path | None = None) -> Path:
    """Prepare a dataset unless it is already prepared; returns its folder.

    Args:
        layout: the dataset.
        data_dir: folder of prepared datasets.
        archives_dir: folder in which archives are found, or into which they are downloaded; by
            default <data_dir>/downloads/manual, as in tensorflow-datasets.

    Raises:
        UserError: archives are missing or differ from the published ones, they hold another number
            of images, a label is out of range, or the disk is full.
    """
    final = records.set_folder(data_dir, layout.name, layout.version)
    archives_dir = archives_dir or data_dir / "downloads" / "manual"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with locked(final.with_name(f"{final.name}.lock")):
            if final.is_dir():
                for split in layout.splits:
                    records.open_records(data_dir, layout.name, layout.version, split)
            else:
                _prepare(layout, final, archives_dir)
    except OSError as error:
        allowed = f"{error}; fix that and run the same command to continue"
        raise UserError("--data_dir", str(data_dir), allowed) from error
    return final


def _prepare(layout: Layout, final: Path, archives_dir: Path) -> None:
    paths = _find_archives(layout, archives_dir)
    partial = final.with_name(f"{final.name}.partial")
    done = partial / records.DONE
    done.mkdir(parents=True, exist_ok=True)
    _check_archives(paths, layout.origin, done / "checked.json")
    features = records.make_features(layout.shape, layout.num_classes)
    splits = {
        name: _write_split(layout, name, [paths[a] for a in split.archives], partial, features)
        for name, split in layout.splits.items()
    }
    checksums = {archive.file: archive.sha256 for archive in layout.archives}
    records.finish(partial, final, splits, features, {"archives": checksums})


def _find_archives(layout: Layout, folder: Path) -> dict[Archive, Path]:
    """Find each archive; missing archives with a public address are downloaded."""
    places = [folder, *map(Path, layout.found)]
    found, missing = {}, []
    for archive in layout.archives:
        path = next((p / archive.file for p in places if (p / archive.file).is_file()), None)
        if path is None:
            missing.append(archive)
        else:
            found[archive] = path
    for archive in missing:
        found[archive] = folder / archive.file
        try:
            if archive.url is None:
                raise urllib.error.URLError("it has no free download")
            _download(archive, found[archive])
        except (urllib.error.URLError, TimeoutError, http.client.HTTPException) as error:
            files = ", ".join(archive.file for archive in missing)
            allowed = f"put {files} there ({getattr(error, 'reason', error)}); from {layout.origin}"
            raise UserError("--archives", str(folder), allowed) from error
    return found


def _download(archive: Archive, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    answering = urllib.request.urlopen(archive.url, timeout=TIMEOUT)
    with answering as answer, partial.open("wb") as file:
        size = int(answer.headers.get("Content-Length", 0))
        with _bar(size, f"downloading {path.name}", "B") as bar:
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
    if _sha256(partial, archive.decompressed) != archive.sha256:
        partial.unlink()
        raise urllib.error.URLError("what was downloaded is not it, or broke off")
    partial.rename(path)


def _check_archives(paths: dict[Archive, Path], origin: str, remembered: Path) -> None:
    """Compare checksums; archives that were verified and have not changed are not read again."""
    try:
        checked = dict(read_json(remembered))
    except (OSError, ValueError, TypeError):  # missing or truncated: verify all archives again
        checked = {}
    for archive, path in paths.items():
        stat = path.stat()
        mark = [str(path), stat.st_size, stat.st_mtime_ns]
        if checked.get(archive.file) == mark:
            continue
        sha256 = _sha256(path, archive.decompressed)
        if sha256 != archive.sha256:
            allowed = (
                f"its sha256 is {sha256}, the published file's is {archive.sha256}: it is "
                f"truncated or another one; get it again from {origin}"
            )
            raise UserError("--archives", str(path), allowed)
        checked[archive.file] = mark
        write_atomically(remembered, json.dumps(checked))


def _sha256(path: Path, decompressed: bool) -> str:
    digest = hashlib.sha256()
    with _bar(path.stat().st_size, f"checking {path.name}", "B") as bar, path.open("rb") as raw:
        file = gzip.GzipFile(fileobj=raw) if decompressed else raw
        try:
            while block := file.read(BLOCK):
                digest.update(block)
                bar.update(raw.tell() - bar.n)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            return f"that of no whole gzip file ({error})"
    return digest.hexdigest()


def _write_split(
    layout: Layout, name: str, paths: Sequence[Path], folder: Path, features: Any
) -> list[records.Shard]:
    """Write the shards of a split that are not finished yet."""
    split = layout.splits[name]
    items = _checked(layout, split, paths)
    count = math.ceil(split.images / records.SHARD)
    shards = []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        _bar(split.images, f"{layout.name} {name}", "image") as bar,
    ):
        for i in range(count):
            path = folder / records.shard_name(layout.name.partition("/")[0], name, i, count)
            part = islice(items, records.SHARD)
            shard = records.finished_shard(path)
            if shard is None:
                shard = records.write_shard(path, _examples(pool, part, layout.shape), features)
            else:
                deque(part, maxlen=0)  # skip the items without loading them
            shards.append(shard)
            bar.update(len(shard.labels))
        deque(items, maxlen=0)  # raises if there are further items
    return shards


def _checked(layout: Layout, split: Split, paths: Sequence[Path]) -> Iterator[Item]:
    """Iterate over the items of a split and check their labels and, at the end, their number."""
    count = 0
    try:
        for item in split.walk(paths):
            count += 1
            if item.label is not None and not 0 <= item.label < layout.num_classes:
                allowed = f"{item.name} has the label {item.label} of {layout.num_classes} classes"
                raise UserError("--archives", str(paths[0]), allowed)
            yield item
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, KeyError, IndexError) as error:
        allowed = f"it is not laid out as {layout.name} is published: {error}"
        raise UserError("--archives", str(paths[0]), allowed) from error
    if count != split.images:
        allowed = f"it holds {count} images, {layout.name} has {split.images}"
        raise UserError("--archives", str(paths[0]), allowed)


def _examples(
    pool: ThreadPoolExecutor, items: Iterable[Item], shape: tuple[int, int, int]
) -> Iterator[records.Example]:
    """Decode, crop and encode items in the pool; yields them in order."""
    waiting: deque[Future[records.Example]] = deque()
    for item in items:
        waiting.append(pool.submit(_example, item.name, item.load(), item.label, shape))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _example(
    name: str, data: np.ndarray | bytes, label: int | None, shape: tuple[int, int, int]
) -> records.Example:
    try:
        image = square(decode(data, shape[-1]), shape[0]) if isinstance(data, bytes) else data
    except Exception as error:  # decoders raise errors of any type for damaged data
        raise UserError("--archives", name, f"it cannot be read: {error}") from error
    if image.shape != shape:
        raise UserError("--archives", name, f"its shape is {image.shape}, the set's is {shape}")
    return records.Example(image, encode(image), label)


def _bar(total: int, desc: str, unit: str) -> tqdm:
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, desc=desc, unit=unit, unit_scale=True, mininterval=interval)
