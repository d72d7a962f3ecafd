"""The networks that are timed, as ours and as torchcfm's: the same layers, as many parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Params
from flowmatch_jax.networks.unet import UNet

SPREAD = 0.02  # of what is added to initial parameters, since outputs start at zero


@dataclass(frozen=True)
class Net:
    """A network for images.

    Attributes:
        shape: [H, W, C] of its images.
        batch: images in a step on a CPU; on a GPU gpu_batch.
        peer: arguments of torchcfm's UNetModel.
    """

    unet: UNet
    shape: tuple[int, int, int]
    batch: int
    gpu_batch: int
    peer: dict[str, Any]

    def init(self) -> Params:
        """Parameters away from where they start."""
        x = jnp.zeros((1, *self.shape))
        start = self.unet.init(jax.random.key(0), jnp.zeros(1), x)["params"]
        draw = np.random.default_rng(0)
        return jax.tree.map(
            lambda p: p + SPREAD * draw.standard_normal(p.shape).astype(p.dtype), start
        )

    def torch_module(self) -> Any:
        """torchcfm's, with parameters away from where they start too."""
        import torch
        from torchcfm.models.unet import UNetModel

        torch.manual_seed(0)
        height, width, channels = self.shape
        module = UNetModel(dim=(channels, height, width), **self.peer)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(SPREAD * torch.randn_like(parameter))
        return module.to("cuda" if torch.cuda.is_available() else "cpu")


NETS = {
    "28 px, 1.1M": Net(
        UNet(
            out_channels=1,
            channels=32,
            multipliers=(1, 2, 2),
            depth=1,
            attention_sides=(28,),
            scale_shift_norm=False,
        ),
        (28, 28, 1),
        batch=64,
        gpu_batch=512,
        peer={"num_channels": 32, "num_res_blocks": 1},
    ),
    "CIFAR-10, 35.7M": Net(
        UNet(
            out_channels=3,
            channels=128,
            multipliers=(1, 2, 2, 2),
            depth=2,
            attention_sides=(16,),
            head_channels=64,
            scale_shift_norm=False,
        ),
        (32, 32, 3),
        batch=16,
        gpu_batch=128,
        peer={
            "num_channels": 128,
            "num_res_blocks": 2,
            "channel_mult": [1, 2, 2, 2],
            "num_heads": 4,
            "num_head_channels": 64,
            "attention_resolutions": "16",
        },
    ),
    "ImageNet-64, 295M": Net(
        UNet(
            out_channels=3,
            channels=192,
            multipliers=(1, 2, 3, 4),
            depth=3,
            attention_sides=(32, 16, 8),
            head_channels=64,
            residual_resampling=True,
        ),
        (64, 64, 3),
        batch=2,
        gpu_batch=64,
        peer={
            "num_channels": 192,
            "num_res_blocks": 3,
            "channel_mult": [1, 2, 3, 4],
            "num_head_channels": 64,
            "attention_resolutions": "32,16,8",
            "use_scale_shift_norm": True,
            "resblock_updown": True,
        },
    ),
}
