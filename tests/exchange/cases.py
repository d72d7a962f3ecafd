"""Files of weights of tiny networks, without the projects' own code, and the commands."""

import contextlib
import importlib
import io

import numpy as np
from flax.traverse_util import unflatten_dict

from flowmatch_jax.networks.convert.adm import torch_tensors
from flowmatch_jax.networks.convert.layout import shapes_of
from flowmatch_jax.networks.unet import UNet
from tests.networks.convert.torch_files import saved

DIGITS = UNet(
    out_channels=1,
    channels=32,
    multipliers=(1, 1),
    depth=1,
    attention_sides=(4,),
    heads=2,
    scale_shift_norm=False,
    time_scale=1.0,
)


def random_params(network, side=8):
    rng = np.random.RandomState(0)
    shapes = shapes_of(network, side).items()
    return unflatten_dict({path: rng.randn(*shape).astype(np.float32) for path, shape in shapes})


def torchcfm_file(folder, network=DIGITS, side=8):
    """A file of torchcfm's weights, and the parameters in it."""
    params = random_params(network, side)
    path = folder / "weights.pt"
    path.write_bytes(saved(torch_tensors(network, side, params)))
    return path, params


def run(command, *arguments):
    """Run a command, convert or export: (exit code, lines of its errors)."""
    module = importlib.import_module(f"flowmatch_jax.networks.{command}.__main__")
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = module.main([str(argument) for argument in arguments])
    return code, errors.getvalue().splitlines()
