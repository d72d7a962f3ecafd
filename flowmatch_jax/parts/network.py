"""Functions that build the network and its inputs from their sections of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from ml_collections import ConfigDict

from flowmatch_jax import predictions
from flowmatch_jax.arrays import Array
from flowmatch_jax.data.conditioning import Conditioning
from flowmatch_jax.data.dataset import Dataset
from flowmatch_jax.networks import Features, Network, computing_in, is_network, takes
from flowmatch_jax.networks.mlp import MLP
from flowmatch_jax.networks.unet import UNet
from flowmatch_jax.objectives import WITHOUT_FIELD
from flowmatch_jax.paths import GaussianPath, log_snr
from flowmatch_jax.runtime.errors import UserError, section
from flowmatch_jax.runtime.own import blamed, is_own, resolve
from flowmatch_jax.sampling import ancestral

COMPUTING_DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}


def make_network(config: ConfigDict, data: Dataset, conditioning: Conditioning) -> Network:
    """Create the network, with computations in float32."""
    with section("config.network"):
        if is_own(config.name):
            return _own_network(config)
        kind = "unet" if data.is_image else "mlp"
        if config.name != kind:
            what = "images" if data.is_image else "points"
            raise UserError("name", config.name, f"{data.name} is a set of {what}: use {kind}")
        if kind == "mlp" and conditioning.labels:
            allowed = "it takes no label: leave config.condition.labels off, or name your own"
            raise UserError("name", kind, allowed)
        with section(kind):
            if kind == "mlp":
                return MLP(two_times=config.two_times, **config.mlp)
            channels = data.shape[-1]
            network = UNet(
                out_channels=channels,
                num_classes=data.num_classes if conditioning.labels else None,
                condition_channels=conditioning.condition_channels(channels)
                + 2 * config.level_octaves * channels,
                two_times=config.two_times,
                **config.unet,
            )
            network.validate(data.shape[:2])
            return network


def in_training(config: ConfigDict, network: Network) -> Network:
    """Return the network with computations in the dtype of training."""
    with section("config.network"):
        return computing_in(network, COMPUTING_DTYPES[config.dtype])


def _own_network(config: ConfigDict) -> Network:
    """Create a user's own network; with an argument ``rngs``, the function makes an NNX module."""
    # Imported here: flax.nnx takes a second to load, and only these networks need it.
    from flowmatch_jax.networks.from_nnx import FromNNX

    name = config.name
    make = resolve("name", name, {}, config.options)
    with blamed("name", name):
        network = FromNNX(make) if takes(make.func, "rngs") else make()
    if not is_network(network):
        allowed = (
            f"it returns {type(network).__name__}: return a Flax module, or an object with init "
            "and apply; a function that makes an NNX module has an argument rngs"
        )
        raise UserError("name", name, allowed)
    return network


def make_clock(config: ConfigDict, path: GaussianPath) -> Callable[[Array], Array]:
    """Return the function from t, or SR3's noise level, to the network's time input."""
    if config.network.time_input == "t":
        return lambda t: t
    ratio = ancestral.log_snr if config.objective.name == "sr3" else partial(log_snr, path)
    steps = predictions.STEP_INPUTS.get(config.network.time_input)
    return predictions.step_clock(ratio, steps()) if steps else predictions.log_snr_clock(ratio)


def make_features(config: ConfigDict, path: GaussianPath, data: Dataset) -> Features | None:
    """Return the sinusoids of x_t that resolve the grey levels, if the config asks for them.

    Raises:
        UserError: the network is not the U-Net, or the method has no time t.
    """
    octaves, objective = config.network.level_octaves, config.objective.name
    if not octaves:
        return None
    with section("config.network"):
        if config.network.name != "unet":
            allowed = f"they are inputs of the unet, and the network is {config.network.name}"
            raise UserError("level_octaves", octaves, f"{allowed}: leave it 0")
        if objective in WITHOUT_FIELD:
            allowed = f"they are functions of x_t, which {objective} does not have: leave it 0"
            raise UserError("level_octaves", octaves, allowed)
    return partial(predictions.level_waves, path, data.levels, octaves)
