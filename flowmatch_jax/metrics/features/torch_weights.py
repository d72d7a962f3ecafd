"""Read PyTorch weight files without PyTorch, and fold batch norms into convolutions.

A state dict is a pickle of names and tensors. A tensor is stored as the name of a rebuilding
function, its sizes, and a reference to a storage. Since torch 1.6 the storages are members of a zip
archive; before, they followed the pickle in the same file. The unpickler allows these functions
only, so that a file cannot run code.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flowmatch_jax.arrays import Params
from flowmatch_jax.runtime.errors import UserError

STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
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
    try:
        with open(path, "rb") as file:
            state = _read_zip(file) if file.peek(4)[:4] == b"PK\3\4" else _read_legacy(file)
    except Exception as error:  # damaged pickles raise errors of any kind
        raise UserError(
            "path", str(path), f"{ALLOWED} ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, np.ndarray) for name, value in state.items()
    ):
        raise UserError("path", str(path), f"{ALLOWED} (it holds something else)")
    return dict(state)


def checked_sha256(path: Path, expected: str | None) -> str:
    """Compute a file's sha256 in hexadecimal digits and compare it with the expected one, if any.

    Raises:
        UserError: the file cannot be read, or has another hash than expected.
    """
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError("path", str(path), f"it cannot be read: {error.strerror}") from error
    if expected is not None and found != expected:
        allowed = f"its sha256 must be {expected}, and is {found}"
        raise UserError("path", str(path), allowed)
    return found


def folded_params(
    path: Path,
    shapes: Params,
    names: Callable[[str], tuple[str, str | None]],
    epsilon: float = 1e-3,
) -> Params:
    """Read the parameters of a Flax module of convolutions and dense layers from PyTorch's file.

    A convolution and the batch norm after it become one convolution with a bias. The
    num_batches_tracked entries are ignored.

    Args:
        path: file of the state dict.
        shapes: shapes of the Flax module's parameters, a "kernel" and a "bias" for each layer.
        names: maps a layer's path in the Flax module, joined by dots, to PyTorch's names of the
            layer and of its batch norm (None: the layer has its own bias).
        epsilon: epsilon of the batch norms.

    Returns:
        float32 parameters of those shapes: kernels [height, width, in, out] or [in, out].

    Raises:
        UserError: `read_torch` fails, or a tensor is missing, superfluous or of another shape.
    """
    tensors, params = _Tensors(path), {}
    for (*layer, part), expected in flatten_dict(shapes).items():
        if part != "kernel":
            continue
        name, norm = names(".".join(layer))
        *window, inputs, outputs = expected.shape
        weight = tensors.take(f"{name}.weight", outputs, inputs, *window)
        if norm is None:
            gain, bias = np.ones(outputs), tensors.take(f"{name}.bias", outputs)
        else:
            mean, variance = (tensors.take(f"{norm}.running_{m}", outputs) for m in ("mean", "var"))
            gain = tensors.take(f"{norm}.weight", outputs) / np.sqrt(variance + epsilon)
            bias = tensors.take(f"{norm}.bias", outputs) - mean * gain
        kernel = np.moveaxis(weight, (0, 1), (-1, -2)) * gain
        params[(*layer, "kernel")] = kernel.astype(np.float32)
        params[(*layer, "bias")] = bias.astype(np.float32)
    if tensors.left:
        raise tensors.refuse(f"{min(tensors.left)} is superfluous")
    return unflatten_dict(params)


class _Tensors:
    """The tensors of a PyTorch file, each of which is taken once."""

    def __init__(self, path: Path) -> None:
        self._path, self._state = path, read_torch(path)
        self.left = {name for name in self._state if not name.endswith(".num_batches_tracked")}

    def refuse(self, what: str) -> UserError:
        return UserError("path", str(self._path), f"these are weights of another net: {what}")

    def take(self, name: str, *shape: int) -> np.ndarray:
        """Return a tensor of this shape in float64; raises UserError if there is none."""
        if name not in self.left:
            raise self.refuse(f"{name} is missing")
        if self._state[name].shape != shape:
            raise self.refuse(f"{name} has shape {self._state[name].shape} instead of {shape}")
        self.left.remove(name)
        return self._state[name].astype(np.float64)


class _Unpickler(pickle.Unpickler):
    """Unpickle tensors as arrays over storages that are filled later.

    Attributes:
        most_bytes: maximum size of a storage.
        storages: key in the file -> array of the storage's items.
    """

    def __init__(self, file: BinaryIO, most_bytes: int) -> None:
        super().__init__(file)
        self.most_bytes = most_bytes
        self.storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return name
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed, plain tensors are")
        return KNOWN[module, name]

    def persistent_load(self, pid: tuple) -> np.ndarray:
        """Return the storage for ("storage", class, key, device, number of items, ...)."""
        kind, storage, key, _, count, *view = pid
        if kind != "storage" or view not in ([], [None]):
            raise pickle.UnpicklingError(f"a {kind} that is not a whole storage")
        if key not in self.storages:
            dtype = np.dtype(STORAGES[storage])
            if count * dtype.itemsize > self.most_bytes:
                raise EOFError(f"storage {key} is larger than the file")
            self.storages[key] = np.empty(count, dtype)
        return self.storages[key]


def _rebuild_tensor(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> np.ndarray:
    reach = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min(offset, *shape, *strides, 0) < 0 or (0 not in shape and offset + reach >= len(storage)):
        raise ValueError("a tensor reaches beyond its storage")
    in_bytes = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, in_bytes)


def _rebuild_parameter(tensor: np.ndarray, *_: Any) -> np.ndarray:
    return tensor


KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = name.removesuffix("data.pkl")
        if archive.namelist().count(f"{root}byteorder"):
            _check_little_endian(archive.read(f"{root}byteorder") == b"little")
        unpickler = _Unpickler(io.BytesIO(archive.read(name)), _size(file))
        state = unpickler.load()
        for key, storage in unpickler.storages.items():
            _fill(storage, archive.read(f"{root}data/{key}"))
    return state


def _read_legacy(file: BinaryIO) -> Any:
    def header() -> Any:
        return _Unpickler(file, most_bytes=0).load()

    if (header(), header()) != (LEGACY_MAGIC, LEGACY_PROTOCOL):
        raise ValueError("not a file of torch.save")
    _check_little_endian(header()["little_endian"])
    unpickler = _Unpickler(file, _size(file))
    state = unpickler.load()
    for key in header():
        storage = unpickler.storages[key]
        if struct.unpack("<q", file.read(8)) != storage.shape:
            raise ValueError(f"storage {key} has another length")
        _fill(storage, file.read(storage.nbytes))
    return state


def _fill(storage: np.ndarray, data: bytes) -> None:
    if len(data) != storage.nbytes:
        raise EOFError(f"a storage of {storage.nbytes} bytes has {len(data)}")
    storage[:] = np.frombuffer(data, storage.dtype)


def _check_little_endian(little: bool) -> None:
    if not little:
        raise ValueError("big-endian")


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size
