"""The U-Net of ADM (guided-diffusion), which torchcfm and flow_matching have too, by its names.

The names give its structure. Its blocks are numbered through: input_blocks.0 is the first
convolution, and each level has its residual blocks and, but for the last, one that halves the side.
output_blocks have one residual block more per level, and the last of a level doubles the side.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from flowmatch_jax.arrays import Params
from flowmatch_jax.networks.convert.layout import LEAVES, to_torch
from flowmatch_jax.networks.convert.structure import Shapes, Structure
from flowmatch_jax.networks.unet import UNet

# Our layers of a residual block, an attention block and a resampling layer.
LAYERS = {
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "embedding": "emb_layers.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
    "conv_skip": "skip_connection",
    "norm": "norm",
    "qkv": "qkv",
    "proj": "proj_out",
}
ENDS = {
    "time_0": "time_embed.0",
    "time_1": "time_embed.2",
    "label": "label_emb",
    "conv_in": "input_blocks.0.0",
    "middle_0": "middle_block.0",
    "middle_attention": "middle_block.1",
    "middle_1": "middle_block.2",
    "norm_out": "out.0",
    "conv_out": "out.2",
}


def read_structure(shapes: Shapes) -> Structure:
    """Read the structure of a network off the names and shapes of its tensors.

    Raises:
        Misfit: a tensor is missing, or the widths are not whole multiples.
    """
    _, channels = shapes.matrix("time_embed.0.weight")
    blocks = shapes.count("input_blocks.{}.", start=1)
    halvings, residual, convolving = _halvings(shapes, blocks)
    depth = (halvings[0] if halvings else blocks) - 1
    starts = [1, *(i + 1 for i in halvings)]
    first = [f"input_blocks.{i}.0.in_layers.2.weight" for i in starts]
    widths = [shapes.matrix(name)[0] for name in first]
    attended = [f"input_blocks.{i}.1.qkv.weight" in shapes for i in starts]
    scaled = "input_blocks.1.0.emb_layers.1.weight"
    unet = {
        "channels": channels,
        "multipliers": shapes.multiples("time_embed.0.weight", channels, widths),
        "depth": depth,
        "scale_shift_norm": shapes.matrix(scaled)[0] == 2 * widths[0],
        "residual_resampling": residual,
        "conv_resampling": convolving,
    }
    return Structure(
        unet=unet,
        attended=tuple(attended),
        inputs=shapes.matrix("input_blocks.0.0.weight")[1],
        outputs=shapes.matrix("out.2.weight")[0],
        classes=shapes.rows("label_emb.weight"),
    )


def _halvings(shapes: Shapes, blocks: int) -> tuple[list[int], bool, bool]:
    """Return the input blocks that halve the side, and whether they are residual or convolve."""
    convolving = [i for i in range(1, blocks) if f"input_blocks.{i}.0.op.weight" in shapes]
    if convolving:
        return convolving, False, True
    # A block without parameters averages.
    averaging = [i for i in range(1, blocks) if not shapes.has_any(f"input_blocks.{i}.")]
    if averaging:
        return averaging, False, False
    doubling = [
        i
        for i in range(blocks)
        if any(f"output_blocks.{i}.{k}.in_layers.0.weight" in shapes for k in (1, 2))
    ]
    if not doubling:
        return [], False, True
    return [i + 1 for i in doubling], True, True


def torch_layers(structure: Structure) -> dict[str, str]:
    """Return the prefix of each of our layers, by its path joined with "/"."""
    unet, attended = structure.unet, structure.attended
    blocks = dict(ENDS)
    levels, depth = len(unet["multipliers"]), unet["depth"]
    resampling = "" if unet["residual_resampling"] else "/conv"
    numbers = count(1)
    for level in range(levels):
        for i in range(depth):
            blocks |= _with_attention(f"down_{level}_{i}", f"input_blocks.{next(numbers)}")
        if level < levels - 1:
            prefix = f"input_blocks.{next(numbers)}.0"
            blocks[f"down_{level}_halve{resampling}"] = prefix + (".op" if resampling else "")
    numbers = count()
    for level in reversed(range(levels)):
        for i in range(depth + 1):
            prefix = f"output_blocks.{next(numbers)}"
            blocks |= _with_attention(f"up_{level}_{i}", prefix)
        if level > 0:
            place = f"{prefix}.{1 + attended[level]}"
            blocks[f"up_{level}_double{resampling}"] = place + (".conv" if resampling else "")
    return blocks


def _with_attention(name: str, prefix: str) -> dict[str, str]:
    return {name: f"{prefix}.0", f"{name}_attention": f"{prefix}.1"}


def torch_name(path: tuple[str, ...], layers: Mapping[str, str]) -> str:
    """Return the name in the state dict of our parameter at a path."""
    *layer, leaf = path
    whole = "/".join(layer)
    if whole in layers:
        return f"{layers[whole]}.{LEAVES[leaf]}"
    block, part = layer
    return f"{layers[block]}.{LAYERS[part]}.{LEAVES[leaf]}"


def torch_arguments(network: UNet, side: int) -> dict[str, Any]:
    """Return the arguments of torchcfm's UNetModel for a network and images with this side."""
    return {
        "image_size": side,
        "in_channels": network.out_channels,
        "model_channels": network.channels,
        "out_channels": network.out_channels,
        "num_res_blocks": network.depth,
        "attention_resolutions": [side // attended for attended in network.attention_sides],
        "dropout": network.dropout,
        "channel_mult": list(network.multipliers),
        "conv_resample": network.conv_resampling,
        "num_classes": network.num_classes,
        "num_heads": network.heads,
        "num_head_channels": network.head_channels or -1,
        "use_scale_shift_norm": network.scale_shift_norm,
        "resblock_updown": network.residual_resampling,
    }


def torch_tensors(network: UNet, side: int, params: Params) -> dict[str, np.ndarray]:
    """Return the parameters as the state dict of torchcfm's UNetModel.

    Args:
        network: the network.
        side: side of the images.
        params: its parameters, as arrays of NumPy.
    """
    levels = range(len(network.multipliers))
    attended = tuple(side >> level in network.attention_sides for level in levels)
    layers = torch_layers(Structure(vars(network), attended, 0, 0, None))

    def tensor(path: tuple[str, ...], parameter: np.ndarray) -> np.ndarray:
        # Attention has its dense layers as convolutions of one dimension.
        is_convolution = path[-2] in ("qkv", "proj") and path[-1] == "kernel"
        return to_torch(path, parameter)[..., None] if is_convolution else to_torch(path, parameter)

    return {torch_name(path, layers): tensor(path, p) for path, p in flatten_dict(params).items()}
