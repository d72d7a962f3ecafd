"""Read files of torch.save without PyTorch, tensor by tensor.

Such a file is a pickle of names and tensors. A tensor is stored as the name of a rebuilding
function, its sizes, and a reference to a storage. Since torch 1.6 the storages are members of a zip
archive; before, they followed the pickle in the same file. The unpickler allows these functions
only, so that a file cannot run code. Storages are read when one of their tensors is.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from flowmatch_jax.networks.convert.tensors import Tensor
from flowmatch_jax.runtime.errors import UserError

STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("<i1"),
    "ByteStorage": np.dtype("<u1"),
    "BoolStorage": np.dtype("?"),
}
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
ALLOWED = "it must be a whole file of torch.save with a state dict"


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Read the state dict from a file of torch.save: name -> array of the tensor's shape and dtype.

    Both the zip and the legacy format are supported, little-endian, with dense tensors of the
    `STORAGES`.

    Raises:
        UserError: the file is missing, truncated, damaged or of another format, or its pickle has
            other classes or anything but names of tensors.
    """
    with opened_torch(path) as state:
        if not isinstance(state, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
        ):
            raise UserError("path", str(path), f"{ALLOWED} (it holds something else)")
        return {name: tensor.read() for name, tensor in state.items()}


@contextmanager
def opened_torch(path: Path) -> Iterator[Any]:
    """Open a file of torch.save; yields what it holds, with a `Tensor` for each tensor.

    Tensors can be read as long as the file is open. Settings of a program
    (`argparse.Namespace`) are empty objects.

    Raises:
        UserError: as in `read_torch`, here or when a tensor is read; any content is allowed.
    """
    with _one_line(path):
        file = open(path, "rb")  # noqa: SIM115  closed below
    with file:
        with _one_line(path):
            read = _read_zip if file.peek(4)[:4] == b"PK\3\4" else _read_legacy
            held = read(file)
        yield _with_errors(held, path)


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn any error into a UserError: damaged pickles and archives raise errors of any kind."""
    try:
        yield
    except Exception as error:
        allowed = f"{ALLOWED} ({type(error).__name__}: {error})"
        raise UserError("path", str(path), allowed) from error


def _with_errors(held: Any, path: Path) -> Any:
    """Return the content with tensors whose reading raises UserError."""
    if isinstance(held, dict):
        return {name: _with_errors(value, path) for name, value in held.items()}
    if not isinstance(held, Tensor):
        return held

    def read() -> np.ndarray:
        with _one_line(path):
            return held.read()

    return Tensor(held.shape, held.dtype, read)


class _Storage:
    """A storage of a file: its items, and how to read them."""

    def __init__(self, dtype: np.dtype, count: int) -> None:
        self.dtype, self.count, self.nbytes = dtype, count, count * dtype.itemsize
        self.read: Callable[[], np.ndarray] | None = None  # set when its place is known

    def check(self, nbytes: int) -> None:
        if nbytes != self.nbytes:
            raise EOFError(f"a storage of {self.nbytes} bytes has {nbytes}")


class _Unpickler(pickle.Unpickler):
    """Unpickle tensors over storages whose places in the file are found later.

    Attributes:
        most_bytes: maximum size of a storage.
        storages: key in the file -> storage.
    """

    def __init__(self, file: BinaryIO, most_bytes: int) -> None:
        super().__init__(file)
        self.most_bytes = most_bytes
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return name
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed, plain tensors are")
        return KNOWN[module, name]

    def persistent_load(self, pid: tuple) -> _Storage:
        """Return the storage for ("storage", class, key, device, number of items, ...)."""
        kind, storage, key, _, count, *view = pid
        if kind != "storage" or view not in ([], [None]):
            raise pickle.UnpicklingError(f"a {kind} that is not a whole storage")
        if key not in self.storages:
            dtype = STORAGES[storage]
            if count * dtype.itemsize > self.most_bytes:
                raise EOFError(f"storage {key} is larger than the file")
            self.storages[key] = _Storage(dtype, count)
        return self.storages[key]


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> Tensor:
    reach = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min(offset, *shape, *strides, 0) < 0 or (0 not in shape and offset + reach >= storage.count):
        raise ValueError("a tensor reaches beyond its storage")
    in_bytes = [stride * storage.dtype.itemsize for stride in strides]

    def read() -> np.ndarray:
        return np.lib.stride_tricks.as_strided(storage.read()[offset:], shape, in_bytes)

    return Tensor(tuple(shape), storage.dtype, read)


def _rebuild_parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


class _Settings:
    """Stands for an object of a program's settings, which are not used."""


KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("argparse", "Namespace"): _Settings,
}


def _read_zip(file: BinaryIO) -> Any:
    archive = zipfile.ZipFile(file)
    (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    root = name.removesuffix("data.pkl")
    if archive.namelist().count(f"{root}byteorder"):
        _check_little_endian(archive.read(f"{root}byteorder") == b"little")
    unpickler = _Unpickler(io.BytesIO(archive.read(name)), _size(file))
    state = unpickler.load()

    @lru_cache(maxsize=1)  # consecutive tensors may share a storage
    def content(key: str) -> bytes:
        return archive.read(f"{root}data/{key}")  # compares its checksum

    for key, storage in unpickler.storages.items():
        storage.check(archive.getinfo(f"{root}data/{key}").file_size)
        storage.read = lambda key=key, storage=storage: np.frombuffer(content(key), storage.dtype)
    return state


def _read_legacy(file: BinaryIO) -> Any:
    def header() -> Any:
        return _Unpickler(file, most_bytes=0).load()

    if (header(), header()) != (LEGACY_MAGIC, LEGACY_PROTOCOL):
        raise ValueError("not a file of torch.save")
    _check_little_endian(header()["little_endian"])
    unpickler = _Unpickler(file, _size(file))
    state = unpickler.load()

    @lru_cache(maxsize=1)
    def content(place: int, nbytes: int) -> bytes:
        file.seek(place)
        return file.read(nbytes)

    for key in header():
        storage = unpickler.storages[key]
        if struct.unpack("<q", file.read(8)) != (storage.count,):
            raise ValueError(f"storage {key} has another length")
        place = file.tell()
        storage.check(min(storage.nbytes, _size(file) - place))
        storage.read = lambda place=place, storage=storage: np.frombuffer(
            content(place, storage.nbytes), storage.dtype
        )
        file.seek(place + storage.nbytes)
    return state


def _check_little_endian(little: bool) -> None:
    if not little:
        raise ValueError("big-endian")


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size
