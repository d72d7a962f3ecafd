"""The networks of other projects: what each of them is in this package's terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from flowmatch_jax.arrays import Params
from flowmatch_jax.networks.convert import adm, diffusers
from flowmatch_jax.networks.convert.layout import (
    Leaf,
    heads_first,
    read_params,
    shapes_of,
    torch_shape,
)
from flowmatch_jax.networks.convert.structure import Misfit, Shapes, Structure
from flowmatch_jax.networks.convert.tensors import Tensor
from flowmatch_jax.networks.unet import UNet
from flowmatch_jax.runtime.errors import UserError, renamed

ORDERS = ("legacy", "new")
CHANNELS = (1, 3)  # of pictures


@dataclass(frozen=True)
class Kind:
    """A project's network.

    Attributes:
        order: order of q, k and v in attention, see `heads_first`; a file does not tell it.
        null_row: the class embedding has a last row for "no class", which is zero.
        noise: the network predicts the noise of a diffusion of 1,000 steps, at the number of the
            step, and maybe its variance too; otherwise it predicts the velocity at t in [0, 1].
    """

    order: str = "legacy"
    null_row: bool = False
    noise: bool = False


KINDS = {
    "torchcfm": Kind(),
    "flow_matching": Kind(order="new", null_row=True),
    "adm": Kind(noise=True),
    "diffusers": Kind(order="new", noise=True),
}


@dataclass(frozen=True)
class Told:
    """What a file does not tell, and a user does.

    Attributes:
        side: side of the images.
        heads: number of attention heads.
        head_channels: channels per head, instead of ``heads``.
        order: overrides `Kind.order`.
        is_conditional: the network is given a low-resolution image beside x.
        settings: config.json beside a file of diffusers.
    """

    side: int
    heads: int | None = None
    head_channels: int | None = None
    order: str | None = None
    is_conditional: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Converted:
    """A network of another project in this package's terms.

    Attributes:
        kind: the project's network.
        network: the same network here.
        params: its parameters.
    """

    kind: Kind
    network: UNet
    params: Params


def convert(name: str, source: Path, state: Mapping[str, Tensor], told: Told) -> Converted:
    """Convert the state dict of a network of another project.

    Args:
        name: the project, a key of KINDS.
        source: file of the state dict, for messages.
        state: the state dict, whose tensors are read one after another.
        told: what the file does not tell.

    Raises:
        UserError: the weights are of another network, with the first name that does not fit, or
            something that they do not tell is missing.
    """
    kind = KINDS[name]
    shapes = Shapes({name: tensor.shape for name, tensor in state.items()})
    try:
        if name == "diffusers":
            diffusers.check_settings(told.settings)
            structure = diffusers.read_structure(shapes, told.settings)
        else:
            structure = adm.read_structure(shapes)
    except Misfit as misfit:
        allowed = f"these are weights of another network: {misfit}"
        raise UserError("SOURCE", str(source), allowed) from misfit
    network = _network(kind, structure, told)
    names = _names(name, structure, shapes)
    leaves = {}
    for path, shape in shapes_of(network, told.side).items():
        leaf = Leaf(names(path), torch_shape(path, shape))
        leaves[path] = _changed(leaf, path, kind, structure, network, told)
    return Converted(kind, network, read_params(source, state, leaves))


def _names(
    name: str, structure: Structure, shapes: Shapes
) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    """Return the function from a parameter's path to the names of its tensors."""
    if name == "diffusers":
        layers = diffusers.torch_layers(structure)
        return lambda path: diffusers.torch_names(path, layers, shapes)
    layers = adm.torch_layers(structure)
    return lambda path: (adm.torch_name(path, layers),)


def _network(kind: Kind, structure: Structure, told: Told) -> UNet:
    """Return the network; raises UserError if its channels or its attention do not fit."""
    channels = structure.inputs // (1 + told.is_conditional)
    outputs = (channels, 2 * channels) if kind.noise else (channels,)
    if channels not in CHANNELS or structure.outputs not in outputs:
        allowed = (
            f"the network has {structure.inputs} channels in and {structure.outputs} out, and "
            "pictures have 1 or 3; --low_resolution=SIDE is for a network that takes a smaller "
            "picture beside x"
        )
        raise UserError("SOURCE", f"{structure.inputs} to {structure.outputs}", allowed)
    if told.heads is None and told.head_channels is None:
        allowed = (
            "the file does not tell the attention heads; give their number, or --head_channels"
        )
        raise UserError("--heads", None, allowed)
    network = UNet(
        **structure.unet,
        out_channels=channels,
        heads=told.heads or 1,
        head_channels=told.head_channels,
        attention_sides=tuple(
            told.side >> level for level, has_it in enumerate(structure.attended) if has_it
        ),
        num_classes=None if structure.classes is None else structure.classes - kind.null_row,
        condition_channels=channels if told.is_conditional else 0,
        time_scale=1.0,
    )
    with renamed("--{}"):
        network.validate((told.side, told.side))
    return network


def _changed(
    leaf: Leaf, path: tuple[str, ...], kind: Kind, structure: Structure, network: UNet, told: Told
) -> Leaf:
    """Return where a parameter is, with the change from the project's tensor to PyTorch's layer."""
    if path[-2] == "qkv" and (told.order or kind.order) == "new":
        return replace(leaf, change=heads_first(network))
    if path == ("time_0", "kernel") and not told.settings.get("flip_sin_to_cos", True):
        return replace(leaf, change=_cosines_first)
    if path[0] == "label" and kind.null_row:
        rows, width = leaf.shape
        return replace(leaf, shape=(rows + 1, width), change=_without_null_row)
    if path[0] == "conv_out" and structure.outputs > network.out_channels:
        noise, *window = leaf.shape
        return replace(leaf, shape=(2 * noise, *window), change=lambda tensor: tensor[:noise])
    return leaf


def _cosines_first(tensor: np.ndarray) -> np.ndarray:
    """Exchange the halves of a layer's inputs, the sines and cosines of the time."""
    return np.roll(tensor, tensor.shape[1] // 2, axis=1)


def _without_null_row(table: np.ndarray) -> np.ndarray:
    if table[-1].any():
        allowed = "the last row of the class embedding, for no class, must be zero"
        raise UserError("SOURCE", "another row", allowed)
    return table[:-1]
