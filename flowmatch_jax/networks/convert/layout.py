"""Tensors of PyTorch's layers as parameters of `unet.UNet`, and the other way.

PyTorch has the kernels of convolutions as [out, in, height, width] and those of dense layers as
[out, in], with a height and width of 1 where a dense layer is written as a convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flowmatch_jax.arrays import Params
from flowmatch_jax.networks.convert.tensors import Tensor
from flowmatch_jax.networks.unet import UNet
from flowmatch_jax.runtime.errors import UserError

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


@dataclass(frozen=True)
class Leaf:
    """Where one of our parameters is in a state dict.

    Attributes:
        names: names of the tensors, which are joined along their outputs.
        shape: shape of the joined tensor, as PyTorch has it.
        change: what remains to be done to the joined tensor before `from_torch`.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    change: Callable[[np.ndarray], np.ndarray] = lambda tensor: tensor


def shapes_of(network: UNet, side: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Return the shapes of a network's parameters by path."""
    sizes = ((1, side, side, network.condition_channels), (1, side, side, network.out_channels))
    condition, x = (jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes)
    inputs = {"condition": condition} if network.condition_channels else {}
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), t, x, **inputs)["params"]
    return {path: leaf.shape for path, leaf in flatten_dict(params).items()}


def torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in PyTorch of a parameter with this path and shape."""
    if path[-1] != "kernel":
        return shape
    *window, inputs, outputs = shape
    return (outputs, inputs, *window)


def from_torch(path: tuple[str, ...], tensor: np.ndarray) -> np.ndarray:
    """Convert a tensor to our parameter at this path, float32."""
    kernel = np.moveaxis(tensor, (0, 1), (-1, -2)) if path[-1] == "kernel" else tensor
    return np.ascontiguousarray(kernel, np.float32)


def to_torch(path: tuple[str, ...], parameter: np.ndarray) -> np.ndarray:
    """Convert our parameter at this path to a tensor."""
    if path[-1] != "kernel":
        return np.asarray(parameter)
    return np.ascontiguousarray(np.moveaxis(parameter, (-1, -2), (0, 1)))


def read_params(
    source: Path, state: Mapping[str, Tensor], leaves: Mapping[tuple[str, ...], Leaf]
) -> Params:
    """Read the parameters of a network from a state dict, one after another.

    Args:
        source: file of the state dict, for messages.
        state: the state dict.
        leaves: where each parameter is, by its path.

    Raises:
        UserError: a tensor is missing, superfluous, of another shape or not of floating point.
    """

    def refuse(what: str) -> UserError:
        return UserError("SOURCE", str(source), f"these are weights of another network: {what}")

    left = dict(state)
    for leaf in leaves.values():
        found = [left.pop(name, None) for name in leaf.names]
        if None in found:
            raise refuse(f"{leaf.names[found.index(None)]} is missing")
        shape = (sum(t.shape[0] for t in found if t.shape), *found[0].shape[1:])
        if _squeezed(shape) != _squeezed(leaf.shape):
            raise refuse(f"{leaf.names[0]} has shape {shape} instead of {leaf.shape}")
    if left:
        raise refuse(f"{next(iter(left))} is superfluous")
    for name, tensor in state.items():
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise refuse(f"{name} has the dtype {tensor.dtype}")

    def read(path: tuple[str, ...], leaf: Leaf) -> np.ndarray:
        tensors = [state[name].read() for name in leaf.names]
        tensor = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
        return from_torch(path, leaf.change(tensor.reshape(leaf.shape)))

    return unflatten_dict({path: read(path, leaf) for path, leaf in leaves.items()})


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without the height and width 1 of a dense layer."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def heads_first(network: UNet) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that orders q, k and v of all heads as those of each head in turn.

    Our attention splits its 3 C features into heads, and then each head's into q, k and v, as ADM's
    "legacy" attention does. Its newer one, and diffusers, split them into q, k and v first.
    """

    def change(tensor: np.ndarray) -> np.ndarray:
        width, each = len(tensor) // 3, network.head_channels
        heads = network.heads if each is None else width // each
        parts = tensor.reshape(3, heads, -1, *tensor.shape[1:])
        return np.swapaxes(parts, 0, 1).reshape(tensor.shape)

    return change
