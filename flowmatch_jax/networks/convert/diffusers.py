"""The U-Net UNet2DModel of diffusers, by its names and its config.json.

Its blocks are ADM's where its settings are those of `SETTINGS`. A level is one block, and the
levels of the decoder are numbered from the smallest feature maps on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowmatch_jax.networks.convert.layout import LEAVES
from flowmatch_jax.networks.convert.structure import Misfit, Shapes, Structure
from flowmatch_jax.networks.layers import CONVENTIONS

# Settings with other effects than ADM's, and the values at which they have none.
SETTINGS = {
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "attn_norm_num_groups": (None, 32),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "downsample_type": ("conv",),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2D",),
    "norm_num_groups": (32,),
    "time_embedding_type": ("positional",),
    "upsample_type": ("conv",),
}
# The settings that differ between conventions, in the words of config.json; "adm" has the defaults.
OF_CONVENTIONS = {
    name: {
        "downsample_padding": details.halving[0][0],
        "freq_shift": int(details.reaches_end),
        "norm_eps": details.epsilon,
    }
    for name, details in CONVENTIONS.items()
}
BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D")
LAYERS = {
    "norm_in": ("norm1",),
    "conv_in": ("conv1",),
    "embedding": ("time_emb_proj",),
    "norm_out": ("norm2",),
    "conv_out": ("conv2",),
    "conv_skip": ("conv_shortcut",),
    "norm": ("group_norm",),
    "qkv": ("to_q", "to_k", "to_v"),
    "proj": ("to_out.0",),
}
# Names of attention's layers in older files.
OLDER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
ENDS = {
    "time_0": "time_embedding.linear_1",
    "time_1": "time_embedding.linear_2",
    "label": "class_embedding",
    "conv_in": "conv_in",
    "middle_0": "mid_block.resnets.0",
    "middle_attention": "mid_block.attentions.0",
    "middle_1": "mid_block.resnets.1",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise Misfit for a setting of config.json that this package's U-Net does not have."""
    for name, values in SETTINGS.items():
        if name in settings and settings[name] not in values:
            allowed = " or ".join(map(repr, values))
            raise Misfit(f"its {name} is {settings[name]!r} instead of {allowed}")
    for block in (*settings.get("down_block_types", ()), *settings.get("up_block_types", ())):
        if block not in BLOCKS:
            raise Misfit(f"it has a {block}, and the blocks known are {', '.join(BLOCKS)}")


def conventions_of(settings: Mapping[str, Any]) -> str:
    """Return the conventions of the settings of config.json; raises Misfit for a mixture."""
    defaults = OF_CONVENTIONS["adm"]
    given = {name: settings.get(name, value) for name, value in defaults.items()}
    for name, values in OF_CONVENTIONS.items():
        if given == values:
            return name
    known = " or ".join(str(values) for values in OF_CONVENTIONS.values())
    raise Misfit(f"its settings are {given} instead of {known}")


def read_structure(shapes: Shapes, settings: Mapping[str, Any]) -> Structure:
    """Read the structure of a network off the names and shapes of its tensors.

    Args:
        shapes: the shapes by name.
        settings: config.json, for what they do not tell.

    Raises:
        Misfit: a tensor is missing, or the widths are not whole multiples.
    """
    _, channels = shapes.matrix("time_embedding.linear_1.weight")
    levels = shapes.count("down_blocks.{}.")
    first = [f"down_blocks.{level}.resnets.0.conv1.weight" for level in range(levels)]
    widths = [shapes.matrix(name)[0] for name in first]
    embedding = shapes.matrix("down_blocks.0.resnets.0.time_emb_proj.weight")
    unet = {
        "channels": channels,
        "multipliers": shapes.multiples("time_embedding.linear_1.weight", channels, widths),
        "depth": shapes.count("down_blocks.0.resnets.{}."),
        "scale_shift_norm": embedding[0] == 2 * widths[0],
        "residual_resampling": False,
        "conv_resampling": True,
        "conventions": conventions_of(settings),
    }
    return Structure(
        unet=unet,
        attended=tuple(
            shapes.has_any(f"down_blocks.{level}.attentions.") for level in range(levels)
        ),
        inputs=shapes.matrix("conv_in.weight")[1],
        outputs=shapes.matrix("conv_out.weight")[0],
        classes=shapes.rows("class_embedding.weight"),
    )


def torch_layers(structure: Structure) -> dict[str, str]:
    """Return the prefix of each of our layers, by its path joined with "/"."""
    blocks, unet = dict(ENDS), structure.unet
    levels = len(unet["multipliers"])
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"
        for ours, theirs, depth in (
            (f"down_{level}", down, unet["depth"]),
            (f"up_{level}", up, unet["depth"] + 1),
        ):
            for i in range(depth):
                blocks[f"{ours}_{i}"] = f"{theirs}.resnets.{i}"
                blocks[f"{ours}_{i}_attention"] = f"{theirs}.attentions.{i}"
        blocks[f"down_{level}_halve/conv"] = f"{down}.downsamplers.0.conv"
        blocks[f"up_{level}_double/conv"] = f"{up}.upsamplers.0.conv"
    return blocks


def torch_names(
    path: tuple[str, ...], layers: Mapping[str, str], shapes: Shapes
) -> tuple[str, ...]:
    """Return the names in the state dict of our parameter at a path; q, k and v are apart."""
    *layer, leaf = path
    whole = "/".join(layer)
    if whole in layers:
        return (f"{layers[whole]}.{LEAVES[leaf]}",)
    block, part = layer
    known = LAYERS[part]
    if part in ("qkv", "proj") and f"{layers[block]}.query.weight" in shapes:
        known = tuple(OLDER[name] for name in known)
    return tuple(f"{layers[block]}.{name}.{LEAVES[leaf]}" for name in known)
