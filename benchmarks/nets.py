"""The networks of the benchmarks, in this package and in torchcfm."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import digits_ot, imagenet64_ot
from flowmatch_jax.arrays import Apply, Params
from flowmatch_jax.networks import pure_apply
from flowmatch_jax.networks.unet import UNet
from flowmatch_jax.parts.network import COMPUTING_DTYPES

STD = 0.02  # standard deviation of noise on the parameters, so that zero layers are not special


@dataclass(frozen=True)
class Net:
    """A network in the benchmarks.

    Attributes:
        name: name in tables.
        shape: shape of an image, (H, W, C).
        unet: fields of our UNet.
        torchcfm: arguments of torchcfm's UNetModel besides ``dim``, for the same network.
        parameters: number of parameters in both.
        batch: batch size on CPUs.
        gpu_batch: batch size on GPUs.
    """

    name: str
    shape: tuple[int, int, int]
    unet: dict[str, Any]
    torchcfm: dict[str, Any]
    parameters: int
    batch: int
    gpu_batch: int

    @property
    def module(self) -> UNet:
        return UNet(out_channels=self.shape[-1], **self.unet)

    def apply(self, dtype: str = "float32") -> Apply:
        """Return the network as a function that computes in a dtype; parameters are float32."""
        return pure_apply(self.module.clone(dtype=COMPUTING_DTYPES[dtype]))

    def init(self, key: jax.Array) -> Params:
        """Initialise float32 parameters with added noise, so that the field is not zero."""
        init_key, key = jax.random.split(key)
        params = self.module.init(init_key, jnp.zeros(1), jnp.zeros((1, *self.shape)))["params"]
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        return tree.unflatten(
            p + STD * jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)
        )

    def images(self, count: int) -> np.ndarray:
        """Draw random images, uint8 [count, H, W, C]."""
        return np.random.RandomState(0).randint(0, 256, (count, *self.shape), np.uint8)


def _of_config(config: Any) -> dict[str, Any]:
    """Return the config's network without rematerialisation, which these batches do not need."""
    return dict(config.network.unet) | {"remat": False}


NETS = {
    "cifar10": Net(
        "35.7M CIFAR-10 net",
        (32, 32, 3),
        {
            "channels": 128,
            "multipliers": (1, 2, 2, 2),
            "depth": 2,
            "attention_sides": (16,),
            "head_channels": 64,
            "scale_shift_norm": False,
        },
        {
            "num_channels": 128,
            "num_res_blocks": 2,
            "channel_mult": [1, 2, 2, 2],
            "num_heads": 4,
            "num_head_channels": 64,
            "attention_resolutions": "16",
        },
        parameters=35_746_307,
        batch=16,
        gpu_batch=128,
    ),
    "small": Net(
        "1.1M 28-px net",
        (28, 28, 1),
        {
            "channels": 32,
            "multipliers": (1, 2, 2),
            "depth": 1,
            "attention_sides": (28,),
            "heads": 1,
            "scale_shift_norm": False,
        },
        # Its default attention_resolutions "16" means 28 // 16 = 1: the first level.
        {"num_channels": 32, "num_res_blocks": 1},
        parameters=1_075_361,
        batch=64,
        gpu_batch=64,
    ),
    "digits": Net(
        "digits net",
        (8, 8, 1),
        _of_config(digits_ot.get_config()),
        {
            "num_channels": 32,
            "num_res_blocks": 1,
            "channel_mult": [1, 2],
            "attention_resolutions": "4",
            "num_heads": 4,
            "use_scale_shift_norm": True,
        },
        parameters=755_009,
        batch=128,
        gpu_batch=128,
    ),
    "imagenet64": Net(
        "ImageNet-64's net",
        (64, 64, 3),
        _of_config(imagenet64_ot.get_config()),
        {
            "num_channels": 192,
            "num_res_blocks": 3,
            "channel_mult": [1, 2, 3, 4],
            "attention_resolutions": "32,16,8",
            "num_head_channels": 64,
            "use_scale_shift_norm": True,
            "resblock_updown": True,
        },
        parameters=295_131_267,
        batch=2,
        gpu_batch=32,
    ),
}


def parameter_shapes(net: Net) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Map paths to shapes of our parameters, in the order in which the network uses its layers."""
    shapes = {}

    def init(key: jax.Array) -> None:
        params = net.module.init(key, jnp.zeros(1), jnp.zeros((1, *net.shape)))["params"]
        shapes.update({path: leaf.shape for path, leaf in _in_order(params)})

    jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    return shapes


def _in_order(params: Params, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in params.items():
        if isinstance(value, dict):
            yield from _in_order(value, (*path, name))
        else:
            yield (*path, name), value


def has_torch() -> bool:
    """Test whether the packages of requirements-bench.txt are installed."""
    return all(map(importlib.util.find_spec, ("torch", "torchcfm", "torchdiffeq")))


def torch_device() -> str:
    """Return the device on which PyTorch runs."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_net(net: Net, params: Params | None = None) -> Any:
    """Create torchcfm's module on its device.

    Args:
        net: the network.
        params: our parameters as NumPy arrays, to copy; None: its initialisation with noise.

    Raises:
        ValueError: it has another number of parameters.
    """
    import torch
    from torchcfm.models.unet import UNetModel

    torch.manual_seed(0)
    height, width, channels = net.shape
    module = UNetModel(dim=(channels, height, width), **net.torchcfm)
    count = sum(p.numel() for p in module.parameters())
    if count != net.parameters:
        raise ValueError(f"torchcfm's {net.name} has {count} parameters, ours {net.parameters}")
    with torch.no_grad():
        if params is None:
            for p in module.parameters():
                p.add_(STD * torch.randn_like(p))
        else:
            # Both list their layers in the order of use, so that no table of names is needed.
            for path, p in zip(parameter_shapes(net), module.parameters(), strict=True):
                p.copy_(torch.from_numpy(_torch_layout(_at(params, path), p.ndim)))
    return module.to(torch_device())


def _at(params: Params, path: tuple[str, ...]) -> np.ndarray:
    for name in path:
        params = params[name]
    return params


def _torch_layout(array: np.ndarray, ndim: int) -> np.ndarray:
    """Transpose a kernel [(H, W,) in, out] to [out, in (, H, W)], padded to ndim with axes of 1."""
    if array.ndim > 1:
        array = np.moveaxis(array, (-1, -2), (0, 1))
    return np.array(array.reshape(*array.shape, *(1,) * (ndim - array.ndim)))
