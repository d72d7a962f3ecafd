"""Files that samples are written to: a folder with one PNG file each, or one npz file.

Both know which samples they hold, so that a stopped command goes on, and refuse samples that were
made with other settings.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.files import Unreadable, move_folder, read_json
from flowmatch_jax.runtime.workdir import write_json

SETTINGS = "settings.json"
OTHER = "it holds samples of another model or other settings; give another folder or file"


class Item(NamedTuple):
    """One sample: the seed of its noise and its class, which is None for models without classes."""

    seed: int
    label: int | None


class Output(Protocol):
    """A place for a list of samples."""

    def present(self) -> np.ndarray:
        """Return which samples of the list are there already, bool [N]."""

    def add(self, rows: np.ndarray, x: np.ndarray) -> None:
        """Write the samples at ``rows`` of the list: uint8 [n, H, W, C] or points [n, D]."""

    def finish(self) -> None:
        """Complete the output when all samples are there."""


class Pictures:
    """A folder with one PNG file per sample, <seed>.png, in a subfolder for each class.

    Further seeds and classes of the same model and settings can be added later.

    Args:
        folder: the folder.
        items: the samples.
        settings: what the samples depend on, kept in settings.json.
        classes: names of the classes, where they are known.

    Raises:
        UserError: the folder cannot be created or holds samples with other settings.
    """

    def __init__(
        self,
        folder: Path,
        items: Iterable[Item],
        settings: dict[str, Any],
        classes: Sequence[str] | None = None,
    ) -> None:
        self._folder, self._items, self._classes = folder, list(items), classes
        _make(folder, folder)
        _check_settings(folder, settings, folder)

    def path(self, item: Item) -> Path:
        """Return the file of a sample."""
        if item.label is None:
            return self._folder / f"{item.seed:06d}.png"
        name = self._classes[item.label] if self._classes else ""
        safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
        folder = f"{item.label}_{safe}" if safe else str(item.label)
        return self._folder / folder / f"{item.seed:06d}.png"

    def present(self) -> np.ndarray:
        """Return which samples have a file."""
        return np.array([self.path(item).exists() for item in self._items])

    def add(self, rows: np.ndarray, x: np.ndarray) -> None:
        """Write a file for each sample."""
        for row, image in zip(rows, x, strict=True):
            path = self.path(self._items[row])
            path.parent.mkdir(exist_ok=True)
            partial = path.with_suffix(".partial")
            pixels = image[:, :, 0] if image.shape[-1] == 1 else image
            Image.fromarray(pixels).save(partial, format="png")
            partial.replace(path)

    def finish(self) -> None:
        """Do nothing: each file is complete."""


class Archive:
    """One npz file: "images" uint8 [N, H, W, C] or "points" float32 [N, D], "seed", "label".

    Until all samples are there, the arrays grow in a folder <name>.partial beside the file, so that
    memory holds one batch at a time.

    Args:
        path: the npz file.
        items: the samples.
        settings: what the samples depend on; the file holds them as JSON text, "settings".
        shape: shape of one sample.
        is_image: whether the samples are images.

    Raises:
        UserError: the file exists and holds other samples, or cannot be created.
    """

    def __init__(
        self,
        path: Path,
        items: Iterable[Item],
        settings: dict[str, Any],
        shape: tuple[int, ...],
        is_image: bool,
    ) -> None:
        self._path, self._folder = path, path.with_name(f"{path.name}.partial")
        self._items, self._name = list(items), "images" if is_image else "points"
        seeds, labels = (np.array(column) for column in zip(*self._items, strict=True))
        self._known = {"seed": seeds.astype(np.uint32)}
        if labels.dtype != object:
            self._known["label"] = labels.astype(np.int32)
        self._settings = settings | {"samples": [list(item) for item in self._items]}
        self._is_complete = path.exists()
        if self._is_complete:
            self._check_file()
            return
        _make(self._folder, path)
        _check_settings(self._folder, self._settings, path)
        dtype = np.dtype(np.uint8 if is_image else np.float32)
        self._x = self._open(self._name, (len(self._items), *shape), dtype)
        self._done = self._open("done", (len(self._items),), np.dtype(bool))

    def present(self) -> np.ndarray:
        """Return which samples are in the file, or in its folder of parts."""
        return np.ones(len(self._items), bool) if self._is_complete else np.array(self._done)

    def add(self, rows: np.ndarray, x: np.ndarray) -> None:
        """Write samples to the arrays of the folder."""
        self._x[rows] = x
        self._x.flush()
        self._done[rows] = True
        self._done.flush()

    def finish(self) -> None:
        """Make the npz file of the arrays, which is a zip archive of npy files."""
        if self._is_complete:
            return
        text = np.array(json.dumps(self._settings))
        for name, array in (self._known | {"settings": text}).items():
            np.save(self._folder / f"{name}.npy", array)
        whole = self._folder / "whole.npz"
        with zipfile.ZipFile(whole, "w") as archive:
            for name in (self._name, *self._known, "settings"):
                archive.write(self._folder / f"{name}.npy", f"{name}.npy")
        move_folder(whole, self._path)
        shutil.rmtree(self._folder)

    def _open(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
        """Open an array of the folder, which is created with zeros."""
        path = self._folder / f"{name}.npy"
        if not path.exists():
            return np.lib.format.open_memmap(path, "w+", dtype, shape)
        try:
            array = np.lib.format.open_memmap(path, "r+")
            if (array.shape, array.dtype) == (shape, dtype):
                return array
        except ValueError:  # no npy file
            pass
        raise UserError("--output", str(self._path), f"{path} is damaged; remove its folder")

    def _check_file(self) -> None:
        try:
            with np.load(self._path) as archive:
                settings = json.loads(str(archive["settings"]))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            allowed = "it exists and holds no samples of this command; give another file"
            raise UserError("--output", str(self._path), allowed) from error
        if settings != self._settings:
            raise UserError("--output", str(self._path), OTHER)


def _make(folder: Path, output: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        allowed = f"it cannot be created ({error.strerror}); give another"
        raise UserError("--output", str(output), allowed) from error


def _check_settings(folder: Path, settings: dict[str, Any], output: Path) -> None:
    """Record the settings in the folder; raise UserError if it has others."""
    path = folder / SETTINGS
    if not path.exists():
        if any(folder.iterdir()):
            raise UserError("--output", str(output), "it has other files; give a new folder")
        write_json(path, settings)
        return
    try:
        known = read_json(path)
    except Unreadable as error:
        allowed = f"its {SETTINGS} is damaged; give another"
        raise UserError("--output", str(output), allowed) from error
    if known != settings:
        raise UserError("--output", str(output), OTHER)
