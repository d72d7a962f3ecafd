"""Configs by name, and experiments built from them without their data."""

import functools
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from absl.testing import parameterized

import configs
from flowmatch_jax import experiment
from flowmatch_jax.config.experiments import experiment_config
from flowmatch_jax.data.dataset import Dataset
from flowmatch_jax.parts import data
from flowmatch_jax.training.optimizer import learning_rate_schedule

FOLDER = Path(configs.__file__).parent
FILES = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "base"}

# dataset -> (shape, levels), without "folder"
ITEMS = {
    "checkerboard": ((2,), None),
    "digits": ((8, 8, 1), 17),
    "fashion_mnist": ((28, 28, 1), 256),
    "cifar10": ((32, 32, 3), 256),
    "imagenet32": ((32, 32, 3), 256),
    "imagenet64": ((64, 64, 3), 256),
    "imagenet128": ((128, 128, 3), 256),
    "imagenet256": ((256, 256, 3), 256),
    "arrays": ((32, 32, 3), 256),
    "points": ((2,), None),
}
# Of the sets that have a class-conditional config.
CLASSES = {"digits": 10, "imagenet64": 1000}
# method -> (path, objective, what the network predicts)
METHODS = {
    "vp": ("vp", "flow_matching", "velocity"),
    "ddpm": ("vp", "ddpm", "noise"),
    "score": ("vp", "score_matching", "score"),
    "scoreflow": ("vp", "scoreflow", "noise"),
    "ve": ("ve", "flow_matching", "data"),
}
FLOW_MAPS = ("mean_flow", "alpha_flow")
OF_THE_PAPER = ("vp", "ddpm", "score", "scoreflow")

# Sets under another name, in another size -> (dataset, size).
RESIZED = {"fashion_mnist16": ("fashion_mnist", 16), "emoji32": ("folder", 32)}
# dataset, sides in pixels
SUPER_RESOLUTION = {
    "digits_sr4_8": ("digits", 4, 8),
    "emoji_sr16_64": ("folder", 16, 64),
    "emoji_sr64_256": ("folder", 64, 256),
    "imagenet_sr64_256": ("imagenet256", 64, 256),
}
# Flows from one dataset to another -> where their samples end.
BETWEEN = {"two_moons_to_gaussians": "eight_gaussians", "digits_3_to_8": "digits"}
# Every experiment that the documentation names: files, and the methods derived from them.
NAMES = sorted(
    FILES
    | {f"{data}_{method}" for data in (*RESIZED, *ITEMS, "folder") for method in OF_THE_PAPER}
    - {f"imagenet256_{method}" for method in OF_THE_PAPER}
    | {f"{data}_ve" for data in ("checkerboard", "digits")}
    | {f"{data}_{method}" for data in SUPER_RESOLUTION for method in ("regression", "sr3")}
    | {f"{data}_tuned" for data in ("fashion_mnist", *RESIZED)}
    | {f"{data}_class" for data in CLASSES}
    | {f"{data}_cnf" for data in ("checkerboard", "digits")}
    | {f"{data}_{method}" for data in ("checkerboard", "digits") for method in FLOW_MAPS}
    | {"digits_likelihood", "fashion_mnist16_likelihood", "cifar10_likelihood"}
    | {f"{data}_minibatch_ot" for data in ("checkerboard", "digits", *BETWEEN)}
    | {"fashion_mnist16_mean_flow", "imagenet64_mean_flow"}
)


def load(name):
    return experiment_config(str(FOLDER / f"{name}.py"))


def empty(config, split):
    """A source of the shape of config.data's, without its data."""
    if config.name == "folder":
        shape, levels = (config.size, config.size, config.folder.channels), 256
    else:
        of_name = ITEMS | {"eight_gaussians": ((2,), None)}
        shape, levels = of_name[config.arrays.train or config.name]
        if config.size is not None:
            shape = (config.size, config.size, shape[-1])
    dtype = np.float32 if levels is None else np.uint8
    classes = CLASSES.get(config.name)
    label = None if classes is None else np.zeros(4, np.int32)
    x = np.zeros((4, *shape), dtype)
    return Dataset(config.name, "1", split, x, label, levels, classes)


def build(config):
    # What the user gives.
    if config.data.name == "folder":
        config.data.folder.path = "pictures"
    if config.data.name == "arrays":
        config.data.arrays.train = "points" if config.network.name == "mlp" else "arrays"
    with mock.patch.object(data, "open_dataset", empty):
        return experiment.build(config)


def schedule(config):
    fields = config.optimizer
    return learning_rate_schedule(
        fields.schedule, fields.learning_rate, config.train.steps, fields.warmup_steps
    )


@functools.cache
def count_parameters(name):
    params = jax.eval_shape(build(load(name)).init_params, jax.random.key(0))
    return sum(p.size for p in jax.tree.leaves(params))


class ConfigTestCase(parameterized.TestCase):
    def check(self, config, fields):
        """The config has these values, by full path."""
        for path, value in fields.items():
            got = functools.reduce(lambda node, name: node[name], path.split("."), config)
            self.assertEqual(got, value, path)
