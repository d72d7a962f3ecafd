import functools
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

import configs
from flowmatch_jax import experiment
from flowmatch_jax.config.command_line import experiment_config
from flowmatch_jax.data.dataset import Dataset
from flowmatch_jax.report.runs import method_name
from flowmatch_jax.training.optimizer import adam, learning_rate_schedule

FOLDER = Path(configs.__file__).parent
FILES = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "base"}

# data set -> (shape, levels), without "folder"
ITEMS = {
    "checkerboard": ((2,), None),
    "digits": ((8, 8, 1), 17),
    "fashion_mnist": ((28, 28, 1), 256),
    "cifar10": ((32, 32, 3), 256),
    "imagenet32": ((32, 32, 3), 256),
    "imagenet64": ((64, 64, 3), 256),
    "imagenet128": ((128, 128, 3), 256),
    "imagenet256": ((256, 256, 3), 256),
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
OF_THE_PAPER = ("vp", "ddpm", "score", "scoreflow")

TABLE_3 = {
    "cifar10": {
        "network.dtype": "float32",
        "network.unet.channels": 256,
        "network.unet.depth": 2,
        "network.unet.multipliers": (1, 2, 2, 2),
        "network.unet.attention_sides": (16,),
        "optimizer.learning_rate": 5e-4,
        "optimizer.schedule": "polynomial",
        "optimizer.warmup_steps": 45_000,
        "train.batch_size": 256,
        "train.steps": 391_000,
        "data.version": None,
        "data.storage": "memory",
        "evaluate.dequantisations": (1, 20, 50),
    },
    "imagenet32": {
        "network.dtype": "float32",
        "network.unet.channels": 256,
        "network.unet.depth": 3,
        "network.unet.multipliers": (1, 2, 2, 2),
        "network.unet.attention_sides": (16, 8),
        "optimizer.learning_rate": 1e-4,
        "optimizer.schedule": "polynomial",
        "optimizer.warmup_steps": 20_000,
        "train.batch_size": 1024,
        "train.steps": 250_000,
        "data.version": "antialiased",
        "data.storage": "memory",
        "evaluate.dequantisations": (1, 5, 15),
    },
    "imagenet64": {
        "network.dtype": "bfloat16",
        "network.unet.channels": 192,
        "network.unet.depth": 3,
        "network.unet.multipliers": (1, 2, 3, 4),
        "network.unet.attention_sides": (32, 16, 8),
        "optimizer.learning_rate": 1e-4,
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": 0,
        "train.batch_size": 2048,
        "train.steps": 157_000,
        "data.version": "antialiased",
        "data.storage": "memory",
        "evaluate.dequantisations": (1, 5, 10),
    },
    "imagenet128": {
        "network.dtype": "bfloat16",
        "network.unet.channels": 256,
        "network.unet.depth": 3,
        "network.unet.multipliers": (1, 1, 2, 3, 4),
        "network.unet.attention_sides": (32, 16, 8),
        "optimizer.learning_rate": 1e-4,
        "optimizer.schedule": "polynomial",
        "optimizer.warmup_steps": 20_000,
        "train.batch_size": 1536,
        "train.steps": 500_000,
        "data.version": None,
        "data.storage": "records",
        "evaluate.dequantisations": (1,),
    },
}
# What holds for all four, by the paper or by our choice where it states nothing.
SHARED = {
    "data.flip": False,
    "path.name": "ot",
    "objective.name": "flow_matching",
    "objective.coupling": "independent",
    "objective.time": "uniform",
    "network.unet.head_channels": 64,
    "network.unet.dropout": 0.0,
    "network.unet.scale_shift_norm": True,
    "network.unet.residual_resampling": True,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.0,
    "optimizer.clip_norm": None,
    "optimizer.ema_decay": 0.9999,
    "solver.method": "dopri5",
    "solver.rtol": 1e-5,
    "solver.atol": 1e-5,
    "evaluate.weights": ("ema", "raw"),
}
TUNED = {
    "data.name": "cifar10",
    "data.flip": True,
    "objective.time": "skewed",
    "network.unet.dropout": 0.3,
    "network.unet.time_scale": 1.0,
    "optimizer.learning_rate": 1e-4,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.95,
    "optimizer.ema_decay": 0.999,
    "train.batch_size": 512,
    "solver.method": "heun",
    "solver.steps": 50,
    "solver.grid": "edm",
}
# Sets under another name, in another size -> (data set, size).
RESIZED = {"fashion_mnist16": ("fashion_mnist", 16), "emoji32": ("folder", 32)}
# data set, sides in pixels
SUPER_RESOLUTION = {
    "digits_sr4_8": ("digits", 4, 8),
    "emoji_sr16_64": ("folder", 16, 64),
    "emoji_sr64_256": ("folder", 64, 256),
    "imagenet_sr64_256": ("imagenet256", 64, 256),
}
SR3_S_PROTOCOL = {
    "network.dtype": "bfloat16",
    "network.unet.channels": 192,
    "network.unet.depth": 2,
    "network.unet.multipliers": (1, 1, 2, 2, 4, 4),
    "network.unet.attention_sides": (32, 16, 8),
    "network.unet.scale_shift_norm": True,
    "network.unet.residual_resampling": True,
    "network.unet.remat": True,
    "optimizer.learning_rate": 1e-4,
    "optimizer.warmup_steps": 10_000,
    "optimizer.schedule": "constant",
    "train.batch_size": 256,
    "train.steps": 1_000_000,
    "condition.filter": "bicubic",
}
PARAMETERS = {
    "fashion_mnist16_ot": 671_665,
    "emoji32_ot": 38_307_203,
    "fashion_mnist_ot": 1_191_233,
    "folder_ot": 23_034_307,
    "cifar10_ot_tuned": 55_676_419,
}
MILLIONS = {"cifar10": 171.3, "imagenet32": 228.1, "imagenet64": 295.1, "imagenet128": 542.8}
IMAGES = {"cifar10": 50_000} | dict.fromkeys(("imagenet32", "imagenet64", "imagenet128"), 1_281_167)
EPOCHS = {"cifar10": 1000, "imagenet32": 200, "imagenet64": 250, "imagenet128": 571}


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
)


def load(name):
    return experiment_config(str(FOLDER / f"{name}.py"))


def empty(config, split):
    """A source of the shape of config.data's, without its data."""
    if config.name == "folder":
        shape, levels = (config.size, config.size, config.folder.channels), 256
    else:
        shape, levels = ITEMS[config.name]
        if config.size is not None:
            shape = (config.size, config.size, shape[-1])
    dtype = np.float32 if levels is None else np.uint8
    classes = CLASSES.get(config.name)
    label = None if classes is None else np.zeros(4, np.int32)
    x = np.zeros((4, *shape), dtype)
    return Dataset(config.name, "1", split, x, label, levels, classes)


def build(config):
    if config.data.name == "folder":  # what the user gives
        config.data.folder.path = "pictures"
    with mock.patch.object(experiment, "open_dataset", empty):
        return experiment.build(config)


def schedule(config):
    fields = config.optimizer
    return learning_rate_schedule(
        fields.schedule, fields.learning_rate, config.train.steps, fields.warmup_steps
    )


def count_parameters(name):
    params = jax.eval_shape(build(load(name)).init_params, jax.random.key(0))
    return sum(p.size for p in jax.tree.leaves(params))


class ConfigTestCase(parameterized.TestCase):
    def check(self, config, fields):
        """The config has these values, by full path."""
        for path, value in fields.items():
            got = functools.reduce(lambda node, name: node[name], path.split("."), config)
            self.assertEqual(got, value, path)


class EveryConfigTest(ConfigTestCase):
    @parameterized.parameters(*NAMES)
    def test_builds(self, name):
        config = load(name)
        of_sr = [data for sr, (data, *_) in SUPER_RESOLUTION.items() if name.startswith(sr)]
        resized = [data for other, (data, _) in RESIZED.items() if name.startswith(other)]
        named = [data for data in (*ITEMS, "folder") if name.startswith(data)]
        self.assertIn(config.data.name, of_sr or resized or named)
        build(config)
        schedule(config)
        fields = config.optimizer
        adam(1e-3, fields.b1, fields.b2, fields.eps, fields.weight_decay, fields.clip_norm)
        self.assertEqual((config.train.keep_every or 0) % config.train.checkpoint_every, 0)

    @parameterized.parameters(*[name for name in NAMES if name.split("_")[-1] in METHODS])
    def test_methods_differ_in_path_and_objective_alone(self, name):
        data, _, method = name.rpartition("_")
        path, objective, predicts = METHODS[method]
        expected = load(f"{data}_ot")
        expected.path.name = path
        expected.objective.update(name=objective, predicts=predicts)
        if method == "score":
            expected.method = "Score Matching, score output"
        if method == "scoreflow":
            expected.objective.time = "importance"
        config = load(name)
        self.assertEqual(config.to_dict(), expected.to_dict())
        built = build(config).path
        self.assertEqual(
            (built.t_end, built.source_std), (1, 50) if path == "ve" else (1 - 1e-5, 1)
        )

    @parameterized.parameters(
        *[name for name in ITEMS if name != "imagenet256"], "folder", *RESIZED
    )
    def test_each_data_set_has_the_paper_s_methods(self, data):
        self.assertContainsSubset({f"{data}_{method}" for method in ("ot", *OF_THE_PAPER)}, NAMES)


class PaperTest(ConfigTestCase):
    @parameterized.parameters(*TABLE_3)
    def test_table_3(self, data):
        self.check(load(f"{data}_ot"), {"data.name": data} | SHARED | TABLE_3[data])

    @parameterized.parameters(*MILLIONS)
    def test_parameters(self, data):
        self.assertAlmostEqual(count_parameters(f"{data}_ot") / 1e6, MILLIONS[data], delta=0.05)

    @parameterized.parameters(*EPOCHS)
    def test_epochs(self, data):
        """CIFAR-10's iterations are twice its epochs, in the paper itself."""
        train = load(f"{data}_ot").train
        epochs = train.steps * train.batch_size / IMAGES[data]
        stated = EPOCHS[data] * (2 if data == "cifar10" else 1)
        self.assertAlmostEqual(epochs / stated, 1, delta=0.05)
        self.assertGreaterEqual(train.steps // train.keep_every, 12)  # points over training

    @parameterized.parameters(*TABLE_3)
    def test_schedule(self, data):
        config = load(f"{data}_ot")
        rate, peak = schedule(config), config.optimizer.learning_rate
        if data == "imagenet64":
            ends = (peak, peak, peak)
        else:
            ends = (1e-8, peak, 1e-8)
        steps = (0, config.optimizer.warmup_steps, config.train.steps)
        np.testing.assert_allclose([float(rate(step)) for step in steps], ends, 1e-3, 1e-10)


class SuperResolutionTest(ConfigTestCase):
    @parameterized.parameters(*SUPER_RESOLUTION)
    def test_data_and_methods(self, name):
        data, low, high = SUPER_RESOLUTION[name]
        config = load(name)
        self.check(config, {"data.name": data, "condition.low_resolution": low, "path.name": "ot"})
        built = build(load(name))
        self.assertEqual(built.train_data.shape[0], high)
        channels = built.train_data.shape[-1] + (config.condition.max_noise > 0)
        self.assertEqual(built.network.condition_channels, channels)
        for method, (path, predicts) in {
            "regression": ("ot", "data"),
            "sr3": ("vp", "noise"),
        }.items():
            expected = load(name)
            expected.path.name = path
            expected.objective.update(name=method, predicts=predicts)
            if (name, method) == ("imagenet_sr64_256", "regression"):
                expected.optimizer.learning_rate = 1e-5  # SR3's
            self.assertEqual(load(f"{name}_{method}").to_dict(), expected.to_dict())

    def test_imagenet(self):
        self.check(load("imagenet_sr64_256"), SR3_S_PROTOCOL)
        # ADM's upsampler has 1,000 classes of 768 numbers more, and three outputs (variances).
        count = count_parameters("imagenet_sr64_256")
        of_classes, of_variances = 1000 * 768, 3 * (9 * 192 + 1)
        self.assertAlmostEqual((count + of_classes + of_variances) / 1e6, 312, delta=0.5)


class ClassesTest(ConfigTestCase):
    @parameterized.parameters(*CLASSES)
    def test_labels_are_what_is_added(self, data):
        expected = load(f"{data}_ot")
        expected.condition.labels = True
        config = load(f"{data}_class")
        expected.evaluate.samples = config.evaluate.samples
        self.assertEqual(config.to_dict(), expected.to_dict())
        self.assertGreater(config.condition.label_dropout, 0)  # for guidance
        embedding = CLASSES[data] * 4 * config.network.unet.channels
        added = count_parameters(f"{data}_class") - count_parameters(f"{data}_ot")
        self.assertEqual(added, embedding)


class ComparisonTest(ConfigTestCase):
    """The comparisons that are run on real images."""

    @parameterized.parameters(*RESIZED.items())
    def test_data(self, name, expected):
        config = load(f"{name}_ot")
        self.assertEqual((config.data.name, config.data.size), expected)
        self.assertEqual(build(config).train_data.shape[0], expected[1])

    @parameterized.parameters(*RESIZED)
    def test_the_paper_s_recipe_and_both_kinds_of_weights(self, name):
        fields = ("data.flip", "network.unet.dropout", "optimizer.clip_norm", "evaluate.weights")
        values = (False, 0.0, None, ("ema", "raw"))
        self.check(load(f"{name}_ot"), dict(zip(fields, values, strict=True)))

    @parameterized.parameters("fashion_mnist", *RESIZED)
    def test_the_tuned_recipe_is_another_way_to_train_the_same(self, name):
        """Evaluated alike, and with a name of its own in the report."""
        expected, config = load(f"{name}_ot"), load(f"{name}_tuned")
        self.check(config, {"optimizer.clip_norm": 1.0, "network.unet.dropout": 0.1})
        self.assertNotEqual(method_name(config), method_name(expected))
        expected.optimizer.clip_norm = 1.0
        expected.network.unet.dropout = 0.1
        expected.method = config.method
        self.assertEqual(config.to_dict(), expected.to_dict())


class OtherRecipesTest(ConfigTestCase):
    @parameterized.parameters(*PARAMETERS.items())
    def test_parameters(self, name, count):
        self.assertEqual(count_parameters(name), count)

    def test_tuned(self):
        config = load("cifar10_ot_tuned")
        self.check(config, TUNED)
        rate = schedule(config)
        self.assertAlmostEqual(float(rate(0)), 1e-4)
        self.assertAlmostEqual(float(rate(config.train.steps)), 1e-4)

    def test_folder_waits_for_its_path(self):
        self.check(load("folder_ot"), {"data.folder.path": None, "data.flip": True})

    def test_fashion_mnist(self):
        config = load("fashion_mnist_ot")
        self.check(config, {"data.flip": False, "evaluate.extractor": "efficientnet_lite0"})
        rate = schedule(config)
        rates = [float(rate(step)) for step in (0, 500, 20_000)]
        np.testing.assert_allclose(rates, [1e-8, 1e-3, 1e-8], 1e-3, 1e-10)


if __name__ == "__main__":
    absltest.main()
