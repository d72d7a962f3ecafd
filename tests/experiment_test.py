import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from configs import checkerboard_ot, digits_ot
from flowmatch_jax.config.experiments import experiment_config
from flowmatch_jax.experiment import build
from flowmatch_jax.paths import PATHS
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.solvers import Solver
from tests.cases import gaussian_velocity


def fields(config, prefix=""):
    """(full path, type) of every field of a config."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", config.get_type(name)


class BuildTest(parameterized.TestCase):
    def test_digits(self):
        experiment = build(digits_ot.get_config())
        self.assertEqual(len(experiment.train_data), 1500)
        params = jax.eval_shape(experiment.init_params, jax.random.key(0))
        self.assertEqual(sum(p.size for p in jax.tree.leaves(params)), 755_009)

    def test_checkerboard_has_the_paper_s_network(self):
        experiment = build(checkerboard_ot.get_config())
        self.assertEqual((experiment.network.width, experiment.network.depth), (512, 5))

    def test_cnf_has_the_network_of_the_others(self):
        for data, base in (("digits", digits_ot), ("checkerboard", checkerboard_ot)):
            config = experiment_config(f"configs/{data}_cnf.py")
            self.assertEqual(build(config).network, build(base.get_config()).network)
            self.assertEqual(config.objective.name, "maximum_likelihood")
        config = digits_ot.get_config()
        config.objective.name = "maximum_likelihood"
        config.network.unet.dropout = 0.1
        with self.assertRaisesRegex(UserError, "config.network.unet.dropout: got 0.1"):
            build(config)

    def test_points_have_no_features(self):
        config = checkerboard_ot.get_config()
        config.evaluate.extractor = "pixels"
        with self.assertRaisesRegex(UserError, "config.evaluate.extractor: .*set of points"):
            build(config)
        config.evaluate.extractor, config.data.flip = None, True
        with self.assertRaisesRegex(UserError, "config.data.flip: got True; checkerboard is"):
            build(config)

    def test_points_are_not_conditioned_on(self):
        config = checkerboard_ot.get_config()
        config.condition.labels = True
        with self.assertRaisesRegex(UserError, "config.condition.labels: got True"):
            build(config)
        config.condition.update(labels=False, low_resolution=1)
        with self.assertRaisesRegex(UserError, "config.condition.low_resolution: .*points"):
            build(config)

    def test_labels_of_points_take_one_s_own_network(self):
        path = Path(self.create_tempdir().full_path) / "points.npz"
        np.savez(path, points=np.random.RandomState(0).randn(100, 2), labels=np.arange(100) % 3)
        config = experiment_config("configs/points_ot.py")
        config.data.arrays.train, config.condition.labels = str(path), True
        with self.assertRaisesRegex(UserError, "config.network.name: got 'mlp'; it takes no label"):
            build(config)

    def test_what_it_is_conditioned_on_reaches_network_and_field(self):
        config = digits_ot.get_config()
        config.network.unet.update(channels=8, multipliers=(1,), attention_sides=())
        config.condition.update(labels=True, low_resolution=4)
        experiment = build(config)
        batch = jax.tree.map(lambda x: x[:3], experiment.test_data[:3])
        params = jax.jit(experiment.init_params)(jax.random.key(0))
        params = jax.tree.map(lambda p: p + 0.1, params)
        x, inputs = jnp.zeros((3, 8, 8, 1)), experiment.conditioning.inputs(batch)
        field = jax.jit(lambda inputs: experiment.field(params, **inputs)(0.5, x))
        given = field(inputs)
        for name in inputs:
            changed = field(inputs | {name: inputs[name][::-1]})
            self.assertGreater(float(jnp.abs(changed - given).max()), 1e-3, name)

    def test_an_objective_on_a_path_it_is_not_defined_for(self):
        config = digits_ot.get_config()
        config.objective.name = "scoreflow"
        with self.assertRaisesRegex(UserError, "config.objective.name: got 'scoreflow'.*diffusion"):
            build(config)
        config.objective.update(name="ddpm", predicts="noise")
        with self.assertRaisesRegex(UserError, "config.objective.predicts: got 'noise'"):
            build(config)

    def test_what_minibatch_ot_cannot_pair(self):
        config = experiment_config("configs/digits_minibatch_ot.py")
        config.condition.low_resolution = 4
        with self.assertRaisesRegex(UserError, "config.objective.coupling: .*in sampling: use ind"):
            build(config)
        config.condition.low_resolution = None
        config.objective.name = "maximum_likelihood"
        with self.assertRaisesRegex(UserError, "config.objective.coupling: .*pairs no noise"):
            build(config)

    def test_methods_without_a_field(self):
        config = digits_ot.get_config()
        config.objective.update(name="regression", predicts="data")
        with self.assertRaisesRegex(UserError, "config.objective.name.*low_resolution"):
            build(config)
        config.condition.low_resolution = 4
        self.assertFalse(build(config).is_flow)
        config.solver.path = "vp"
        with self.assertRaisesRegex(UserError, "config.solver.path: got 'vp'; regression has no"):
            build(config)
        config.solver.path = None
        config.objective.name = "sr3"
        with self.assertRaisesRegex(UserError, "config.objective.predicts: got 'data'; .*noise"):
            build(config)
        config.objective.predicts = "noise"
        with self.assertRaisesRegex(UserError, "config.objective.name: got 'sr3'; .*path vp"):
            build(config)
        config.path.name = "vp"
        self.assertFalse(build(config).is_flow)

    @parameterized.parameters(("regression", "data", "ot", 1), ("sr3", "noise", "vp", 7))
    def test_samples_of_methods_without_a_field(self, name, predicts, path, calls):
        """Of a network that repeats its condition, or finds the noise that leads to it."""
        config = digits_ot.get_config()
        config.objective.update(name=name, predicts=predicts)
        config.path.name, config.condition.low_resolution, config.sr3.steps = path, 4, 7

        def apply(params, t, x, condition, key=None):
            if name == "regression":
                return condition + x + t[:, None, None, None]
            return (x - t * condition) / jnp.sqrt(1 - t**2)

        experiment = dataclasses.replace(build(config), apply=apply)
        inputs = experiment.conditioning.inputs(experiment.test_data[:3])
        x0 = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
        solution = experiment.generate(None, x0, jax.random.key(1), inputs)
        np.testing.assert_allclose(solution.x, inputs["condition"], atol=5e-3)
        self.assertEqual(solution.nfe, calls)

    def test_low_precision_is_for_training_only(self):
        config = digits_ot.get_config()
        config.network.dtype = "bfloat16"
        experiment = build(config)
        params = jax.eval_shape(experiment.init_params, jax.random.key(0))
        jaxpr = lambda apply: str(  # noqa: E731
            jax.make_jaxpr(apply)(params, jnp.zeros(2), jnp.zeros((2, 8, 8, 1)))
        )
        self.assertIn("bf16", jaxpr(experiment.train_apply))
        self.assertNotIn("bf16", jaxpr(experiment.apply))

    @parameterized.parameters(
        ({"guidance.scale": 2.0, "condition.label_dropout": 0.0}, "guidance.scale", "no field"),
        ({"evaluate.classes": (3, 10)}, "evaluate.classes", "got 10; the labels of digits are 0"),
        (
            {"evaluate.classes": (5,), "data.classes": (3, 8)},
            "evaluate.classes",
            "got 5; the model was trained on no digits of this class",
        ),
        ({"evaluate.classes": (-1,)}, "evaluate.classes", "got -1; the labels of digits are 0"),
        (
            {"evaluate.classes": (1, 2), "evaluate.samples": 1},
            "evaluate.classes",
            "the grid has samples = 1",
        ),
        (
            {"evaluate.classes": (1,), "condition.low_resolution": 4},
            "evaluate.classes",
            "of its low resolution",
        ),
        (
            {
                "guidance.scale": 2.0,
                "condition.low_resolution": 4,
                "objective.name": "regression",
                "objective.predicts": "data",
            },
            "guidance.scale",
            "no vector field",
        ),
    )
    def test_classes_and_guidance_that_cannot_be(self, fields, field, message):
        config = experiment_config("configs/digits_class.py")
        config.update_from_flattened_dict(fields)
        with self.assertRaisesRegex(UserError, f"^config.{field}: .*{message}"):
            build(config)

    def test_samples_are_guided_and_fields_are_not(self):
        config = experiment_config("configs/digits_class.py")
        config.guidance.scale = 3.0
        apply = lambda params, t, x, label, **_: jnp.where(label < 0, 1.0, 2.0)[:, None] + 0 * x  # noqa: E731
        experiment = dataclasses.replace(build(config), apply=apply)
        x, inputs = jnp.zeros((2, 1)), {"label": jnp.array([4, 4])}
        self.assertEqual(float(experiment.field({}, **inputs)(0.5, x)[0, 0]), 2.0)
        euler = Solver("euler", steps=3)
        sample = experiment.generate({}, x, jax.random.key(0), inputs, euler)
        np.testing.assert_allclose(sample.x, 4.0, rtol=1e-6)
        self.assertEqual(sample.nfe, 6)

    @parameterized.parameters("ab2", "ab3", "abm2", "dpmpp2m")
    def test_guided_samples_by_multistep_methods(self, method):
        """Each stretch of a piecewise field begins anew; a guided step is two calls."""
        config = experiment_config("configs/digits_class.py")
        config.guidance.update(scale=3.0, interval=(0.25, 0.75))
        apply = lambda params, t, x, label, **_: jnp.where(label < 0, 1.0, 2.0)[:, None] + 0 * x  # noqa: E731
        experiment = dataclasses.replace(build(config), apply=apply)
        x, inputs = jnp.zeros((2, 1)), {"label": jnp.array([4, 4])}
        solver = Solver(method, steps=8)
        sample = experiment.generate({}, x, jax.random.key(0), inputs, solver)
        np.testing.assert_allclose(sample.x, 0.5 * 2.0 + 0.5 * 4.0, rtol=1e-4)
        self.assertEqual(sample.nfe, 12)

    @parameterized.parameters(("vp", "dpmpp2m"), ("ve", "abm2"), ("cosine", "ab2"))
    def test_samples_along_another_path(self, name, method):
        """The same noise becomes nearly the same sample; likelihoods stay on the trained path."""
        config = checkerboard_ot.get_config()
        config.solver.update(method=method, steps=200, grid="edm", path=name)
        path = build(config).path
        exact = gaussian_velocity(path, 0.3, 0.5)
        apply = lambda params, t, x, **_: exact(t, x)  # noqa: E731
        experiment = dataclasses.replace(build(config), apply=apply)
        x0 = jax.random.normal(jax.random.key(0), (6, 2))
        samples = experiment.generate({}, x0, jax.random.key(1), {})
        np.testing.assert_allclose(samples.x, 0.3 + 0.5 * x0, atol=0.02)
        self.assertEqual(samples.nfe, 200)
        self.assertEqual(experiment.solver().grid[-1], path.t_end)
        self.assertEqual(experiment.sampling_path.t_end, PATHS[name]().t_end)
        # The path may also be the solver's own.
        along = Solver(method, steps=1000, path=PATHS["vp"]())
        samples = experiment.generate({}, x0, jax.random.key(1), {}, along)
        np.testing.assert_allclose(samples.x, 0.3 + 0.5 * x0, atol=0.02)

    @parameterized.parameters(None, "vp")
    def test_samples_are_scaled_by_the_path_that_they_follow(self, name):
        """With truncated normal dequantisation OT ends where alpha is 0.98; VP, where it is 1."""
        config = digits_ot.get_config()
        config.data.dequantisation = "truncated_normal"
        config.solver.update(method="ab2", steps=100, grid="edm", path=name)
        experiment = build(config)
        exact = gaussian_velocity(experiment.path, 0.9, 0.5)
        apply = lambda params, t, x, **_: exact(t, x)  # noqa: E731
        experiment = dataclasses.replace(experiment, apply=apply)
        x0 = jax.random.normal(jax.random.key(0), (6, 8, 8, 1))
        expected = 0.9 + 0.5 * x0
        for solver in (None, Solver("ab2", steps=400, path=name and PATHS[name]())):
            samples = experiment.generate({}, x0, jax.random.key(1), {}, solver)
            self.assertLess(jnp.abs((samples.x - expected).mean()), 5e-3)

    def test_tolerances_count_for_likelihoods_whatever_draws_the_samples(self):
        for method in ("euler", "ab2", "sea", "fitted"):
            config = checkerboard_ot.get_config()
            config.solver.update(method=method, steps=4, rtol=0.0)
            with self.assertRaisesRegex(UserError, "config.solver.rtol: got 0.0; .* greater than"):
                build(config)

    def test_a_solver_for_samples_alone_does_not_train(self):
        config = checkerboard_ot.get_config()
        config.maximum_likelihood.update(method="dpmpp2m", steps=4)
        with self.assertRaisesRegex(UserError, "config.maximum_likelihood.method: got 'dpmpp2m'"):
            build(config)

    def test_no_odd_value_of_any_field_does_worse_than_be_told(self):
        """Each field by itself; what is not finite is told, where the field is of any use here."""
        odd = {
            float: (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e10),
            int: (-1, 0, 2**31, 2**63),
            str: ("", "x"),
            tuple: ((), ("a",), (-1,), (1.5,), (math.nan,), (2**40,)),
        }
        # Sections of other paths, networks and data, and what training itself looks at.
        of_no_use = (
            "path.v",
            "path.cosine",
            "network.mlp",
            "data.folder",
            "data.arrays",
            "source.folder",
            "source.arrays",
            "optimizer",
        )
        told = 0
        for field, kind in fields(digits_ot.get_config()):
            for value in odd.get(kind, ()):
                config = digits_ot.get_config()
                config.update_from_flattened_dict({field: value})
                try:
                    build(config)
                    refused = False
                except UserError as error:
                    self.assertNotIn("\n", str(error))
                    refused = True
                told += refused
                if kind is float and not math.isfinite(value) and not field.startswith(of_no_use):
                    self.assertTrue(refused, f"{field} = {value}")
        self.assertGreater(told, 150)

    @parameterized.parameters(
        ("inception_score", "efficientnet_lite0", 9),
        ("kernel_distance", "pixels", 3),
        ("precision_recall", "pixels", 3),
    )
    def test_scores_say_before_training_how_many_samples_they_take(self, score, extractor, few):
        config = digits_ot.get_config()
        config.evaluate.update(scores=(score,), extractor=extractor, generated=few)
        with self.assertRaisesRegex(UserError, f"config.evaluate.generated: .*{few + 1} samples"):
            build(config)

    @parameterized.parameters(
        ("seed", -1),
        ("data.name", "mnist"),
        ("data.threads", 0),
        ("data.workers", 1),
        ("data.workers", -1),
        ("data.storage", "disk"),
        ("data.max_corrupt", -1),
        ("data.version", "old"),
        ("data.size", 16),
        ("path.name", "quadratic"),
        ("path.ot.sigma_min", 2.0),
        ("path.options", {"power": 2.0}),
        ("solver.grid_options", {"power": 2.0}),
        ("network.options", {"widths": ((1, 2), 3)}),
        ("network.name", "no_such_module:make"),
        ("objective.coupling", "no_such_module:make"),
        ("objective.name", "gan"),
        ("objective.predicts", "future"),
        ("objective.coupling", "none"),
        ("minibatch_ot.method", "auction"),
        ("minibatch_ot.regularisation", 0.0),
        ("minibatch_ot.batches", 0),
        ("objective.time", "never"),
        ("network.name", "mlp"),
        ("network.dtype", "float8"),
        ("network.unet.multipliers", (1, 2, 2, 2, 2)),
        ("network.unet.heads", 5),
        ("network.unet.dropout", 2.0),
        ("train.steps", 0),
        ("train.batch_size", 0),
        ("train.keep_every", 0),
        ("solver.method", "rk45"),
        ("solver.steps", 5),
        ("solver.rtol", 0.0),
        ("solver.grid", "cosine"),
        ("solver.grid", "edm"),  # with dopri5
        ("solver.path", "cubic"),
        ("evaluate.weights", ("mean",)),
        ("evaluate.weights", ()),
        ("evaluate.dequantisations", (0,)),
        ("evaluate.dequantisations", ()),
        ("evaluate.extractor", "vgg"),
        ("evaluate.generated", 1),
        ("maximum_likelihood.adjoint", "direct"),
        ("maximum_likelihood.divergence", "trace"),
        ("maximum_likelihood.probes", 0),
        ("maximum_likelihood.max_steps", 0),
        ("maximum_likelihood.steps", 5),
        ("figures.nfe", (0,)),
        ("figures.sample_nfe", (3,)),
        ("figures.reference_nfe", 999),
        ("figures.seeds", 0),
        ("evaluate.probes", 0),
        ("objective.time", "importance"),
        ("network.time_input", "sigma"),
        ("seed", 2**32),
        ("evaluate.seed", 2**32),
        ("evaluate.dequantisations", (1.5,)),
        ("guidance.interval", ("a", 1)),
        ("network.unet.time_scale", float("nan")),
        ("network.unet.time_scale", 0.0),
        ("solver.rtol", float("inf")),
        ("figures.nfe", (2.5,)),
        ("evaluate.images", 1),
        ("evaluate.divergence", "trace"),
        ("mesh.fsdp", 0),
        ("sr3.levels", 0),
        ("sr3.steps", 0),
        ("condition.label_dropout", 1.0),
        ("condition.low_resolution", 8),
        ("condition.low_resolution", 3),
        ("condition.filter", "sinc"),
        ("condition.max_noise", -0.1),
        ("guidance.scale", -1.0),
        ("guidance.scale", 2.0),  # of a model without labels
        ("guidance.interval", (0.5, 1.5)),
        ("evaluate.classes", (3,)),
        ("fit_solver.noises", 96),  # 64 are held out, and 32 choose
    )
    def test_every_wrong_value_is_named_by_its_field(self, field, value):
        config = digits_ot.get_config()
        config.update_from_flattened_dict({field: value})
        with self.assertRaises(UserError) as caught:
            build(config)
        self.assertEqual(caught.exception.field, f"config.{field}")
        self.assertNotIn("\n", str(caught.exception))


if __name__ == "__main__":
    absltest.main()
