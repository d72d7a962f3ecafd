"""PyTorch's weights of feature extractors: hashes, and batch norms folded into convolutions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flowmatch_jax.arrays import Params
from flowmatch_jax.networks.convert.torch_files import read_torch
from flowmatch_jax.runtime.errors import UserError


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
