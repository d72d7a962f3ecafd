"""The fields that describe the network."""

from __future__ import annotations

from flowmatch_jax.config.checks import among, among_or_own, least, options_of
from flowmatch_jax.config.field import TRAINED, Field, Of, Section, owned
from flowmatch_jax.networks.mlp import MLP
from flowmatch_jax.networks.unet import UNet
from flowmatch_jax.predictions import STEP_INPUTS

DTYPES = ("float32", "bfloat16")
NETWORKS = ("unet", "mlp")
TIME_INPUTS = ("t", "log_snr", *STEP_INPUTS)

NETWORK: Section = {
    "name": Field(
        "unet",
        "unet (images) | mlp (points), or your own: module:function.",
        among_or_own(NETWORKS),
        TRAINED,
    ),
    "options": options_of("network", TRAINED),
    "dtype": Field("float32", "Computing dtype in training.", among(DTYPES), Of.ROW),
    "time_input": Field(
        "t",
        "Time input of the network: t (sr3: the noise level) | log_snr (the log signal-to-noise "
        "ratio) | linear_steps | cosine_steps (the number of a step of a diffusion of 1,000 steps "
        "that has this ratio).",
        among(TIME_INPUTS),
        TRAINED,
        before="t",
    ),
    "level_octaves": Field(
        0,
        "Octaves of sinusoids of x_t that resolve the grey levels, as further inputs of the unet.",
        least(0),
        TRAINED,
        before=0,
    ),
    "two_times": Field(
        False,
        "The network takes a second time: it predicts the average velocity of a flow map.",
        of=TRAINED,
        before=False,
    ),
    "unet": {
        "channels": owned(UNet, "channels", "Width of the first level."),
        "multipliers": owned(UNet, "multipliers", "Width of each level, in units of channels."),
        "depth": owned(UNet, "depth", "Residual blocks per level."),
        "attention_sides": owned(
            UNet, "attention_sides", "Feature maps with these sides get attention."
        ),
        "heads": owned(UNet, "heads", "Attention heads."),
        "head_channels": owned(
            UNet, "head_channels", "Channels per head; overrides heads.", kind=int
        ),
        "dropout": owned(UNet, "dropout", "Dropout rate in training.", of=Of.ROW),
        "scale_shift_norm": owned(
            UNet, "scale_shift_norm", "Time and label scale and shift the group norm."
        ),
        "residual_resampling": owned(UNet, "residual_resampling", "ADM's resblock_updown."),
        "conv_resampling": owned(UNet, "conv_resampling", "Resampling has a convolution."),
        "time_scale": owned(
            UNet,
            "time_scale",
            "Factor on the time input before its sinusoids, whose frequencies are at most 1.",
        ),
        "conventions": owned(
            UNet,
            "conventions",
            "Details that do not change the parameters (epsilon of group norms, padding where the "
            "side halves, frequencies of the time embedding): adm | ddpm.",
            omit_unset=True,
        ),
        "remat": owned(UNet, "remat", "Recompute activations in the backward pass.", of=Of.NOTHING),
    },
    "mlp": {
        "width": owned(MLP, "width", "Width of each hidden layer.", least(1)),
        "depth": owned(MLP, "depth", "Number of hidden layers.", least(1)),
        "frequencies": owned(MLP, "frequencies", "Octaves of the input's sinusoids.", least(0)),
    },
}
