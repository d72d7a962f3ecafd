import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.report.runs import method_name
from flowmatch_jax.training.optimizer import adam
from tests.configs.cases import (
    BETWEEN,
    CLASSES,
    FLOW_MAPS,
    ITEMS,
    METHODS,
    NAMES,
    OF_THE_PAPER,
    RESIZED,
    SUPER_RESOLUTION,
    ConfigTestCase,
    build,
    count_parameters,
    load,
    schedule,
)

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
MEAN_FLOW = {
    "data.name": "cifar10",
    "objective.name": "mean_flow",
    "objective.coupling": "independent",
    "flow_map.tangent": "conditional",
    "flow_map.start": (-0.6, 1.6),
    "flow_map.end": (-4.0, 1.6),
    "flow_map.equal": 0.25,
    "flow_map.power": 0.75,
    "flow_map.eps": 1e-3,
    "network.two_times": True,
    "network.unet.dropout": 0.2,
    "network.unet.time_scale": 1.0,
    "optimizer.learning_rate": 6e-4,
    "optimizer.b2": 0.999,
    "optimizer.ema_decay": 0.9999,
    "train.batch_size": 1024,
    "train.steps": 800_000,
    "solver.method": "flow_map",
    "solver.steps": 1,
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


class EveryConfigTest(ConfigTestCase):
    @parameterized.parameters(*NAMES)
    def test_builds(self, name):
        config = load(name)
        of_sr = [data for sr, (data, *_) in SUPER_RESOLUTION.items() if name.startswith(sr)]
        resized = [data for other, (data, _) in RESIZED.items() if name.startswith(other)]
        named = [data for data in (*ITEMS, "folder") if name.startswith(data)]
        between = [data for other, data in BETWEEN.items() if name.startswith(other)]
        of_files = ["arrays"] if name.startswith("points") else []
        self.assertIn(config.data.name, of_sr or resized or between or of_files or named)
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


class CouplingTest(ConfigTestCase):
    @parameterized.parameters("digits", "checkerboard")
    def test_the_coupling_is_what_differs(self, data):
        expected, config = load(f"{data}_ot"), load(f"{data}_minibatch_ot")
        self.assertNotEqual(method_name(config), method_name(expected))
        expected.objective.coupling = "minibatch_ot"
        self.assertEqual(config.to_dict(), expected.to_dict())


class FlowMapTest(ConfigTestCase):
    def test_the_published_recipe(self):
        self.check(load("cifar10_mean_flow"), MEAN_FLOW)
        # The network of the tuned recipe, and the embedding of the second time, [128] to [512].
        more = count_parameters("cifar10_mean_flow") - PARAMETERS["cifar10_ot_tuned"]
        self.assertEqual(more, 128 * 512 + 512 + 512 * 512 + 512)

    @parameterized.parameters(*FLOW_MAPS)
    def test_from_flow_matching(self, method):
        expected, config = load("digits_ot"), load(f"digits_{method}")
        expected.objective.name, expected.objective.coupling = method, "minibatch_ot"
        expected.network.two_times = True
        expected.network.unet.time_scale = 1.0
        expected.figures.nfe = (1, 2, *expected.figures.nfe)
        self.assertEqual(config.to_dict(), expected.to_dict())
        self.assertTrue(build(config).has_flow_map)

    def test_super_resolution_has_independent_noise(self):
        config = load("digits_sr4_8_mean_flow")
        self.assertEqual(config.objective.coupling, "independent")
        self.assertTrue(build(config).has_flow_map)


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

    def test_files_have_the_recipes_of_folders_and_of_the_plane(self):
        for name, other in (("arrays_ot", "folder_ot"), ("points_ot", "checkerboard_ot")):
            self.check(load(name), {"data.arrays.train": None, "data.flip": False})
            self.assertEqual(load(name).optimizer, load(other).optimizer)
            self.assertEqual(load(name).train, load(other).train)

    def test_fashion_mnist(self):
        config = load("fashion_mnist_ot")
        self.check(config, {"data.flip": False, "evaluate.extractor": "efficientnet_lite0"})
        rate = schedule(config)
        rates = [float(rate(step)) for step in (0, 500, 20_000)]
        np.testing.assert_allclose(rates, [1e-8, 1e-3, 1e-8], 1e-3, 1e-10)


if __name__ == "__main__":
    absltest.main()
