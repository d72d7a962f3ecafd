import contextlib
import math
import shutil
import tarfile
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import flowmatch_jax
from flowmatch_jax import likelihood
from flowmatch_jax.data import sets
from flowmatch_jax.data.digits import digits
from flowmatch_jax.model import Model
from flowmatch_jax.paths import variance_exploding, variance_preserving
from flowmatch_jax.pixels import dequantise
from flowmatch_jax.runtime.errors import RunStopped, UserError
from flowmatch_jax.runtime.workdir import write_data
from flowmatch_jax.sampling.guidance import GuidedParams
from flowmatch_jax.solvers import Solver
from tests.cases import gaussian_velocity
from tests.evaluation.experiments import images, points, regression
from tests.runtime.records import on_more_devices

RUNS = Path(__file__).parent / "end_to_end" / "old_runs"
FOUR_CALLS, EULER = Solver("ab2", steps=4), Solver("ab2", steps=1)  # its first step is Euler's


def unpack(name, folder):
    with tarfile.open(RUNS / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return Path(folder)


class ModelTest(parameterized.TestCase):
    """Of a field dx/dt = rate x, whose samples are exp(rate) times the noise."""

    def setUp(self):
        super().setUp()
        self.model = Model(points(0.5), jnp.ones(()), step=0, batch_size=4)

    def test_samples_are_the_noise_carried_along_the_field(self):
        key = jax.random.key(0)
        x0 = self.model.noise(key, 6)
        x = self.model.sample(key, 6, x0=x0)
        np.testing.assert_allclose(x, np.exp(0.5) * x0, rtol=1e-4)
        euler = self.model.sample(key, 6, solver=Solver("euler", steps=1), x0=x0)
        np.testing.assert_allclose(euler, 1.5 * x0, rtol=1e-6)
        grid = Solver("abm2", grid=np.linspace(0, 1, 41))
        np.testing.assert_allclose(self.model.sample(key, 6, solver=grid, x0=x0), x, rtol=1e-3)

    def test_calls_of_a_flow_map(self):
        with self.assertRaisesRegex(UserError, "config.solver.method: got 'flow_map'; the model"):
            self.model.sample(jax.random.key(0), 4, solver=Solver("flow_map", steps=1))
        average = lambda params, t, x, end, **_: x * ((jnp.exp(end - t) - 1) / (end - t))[:, None]  # noqa: E731
        of_map = {"objective__name": "mean_flow", "network__two_times": True}
        model = Model(points(apply=average, **of_map), jnp.ones(()), step=0, batch_size=4)
        x0 = model.noise(jax.random.key(0), 6)
        for steps in (1, 3):
            x = model.sample(jax.random.key(0), 6, solver=Solver("flow_map", steps=steps), x0=x0)
            np.testing.assert_allclose(x, np.e * x0, rtol=1e-4)

    def test_solvers_that_differ_are_compiled_apart(self):
        """By their paths too: dpmpp2m's data is that of its path."""
        x = [
            self.model.sample(jax.random.key(0), 2, solver=Solver("dpmpp2m", steps=3, path=path))
            for path in (None, variance_preserving(), variance_exploding())
        ]
        self.assertGreater(np.abs(x[1] - x[0]).max(), 1e-3)
        self.assertGreater(np.abs(x[2] - x[1]).max(), 1e-3)

    def test_the_first_samples_are_the_same_for_any_number(self):
        few, many = (self.model.sample(jax.random.key(1), n, solver=FOUR_CALLS) for n in (3, 10))
        np.testing.assert_array_equal(few, many[:3])
        self.assertEqual(many.shape, (10, 2))
        self.assertLen(np.unique(many, axis=0), 10)

    @parameterized.parameters(None, 5)
    def test_log_prob(self, seed):
        """N(0, e I): the linear field's divergence is exact by any probe."""
        x = np.random.RandomState(0).randn(6, 2).astype(np.float32)
        key = None if seed is None else jax.random.key(seed)
        expected = likelihood.gaussian_log_prob(jnp.asarray(x), np.exp(0.5))
        np.testing.assert_allclose(self.model.log_prob(x, key), expected, atol=1e-3)

    def test_bits_per_dim(self):
        """Those of the density at the dequantised image."""
        model = Model(images(-0.5), jnp.ones(()), step=0, batch_size=2)
        image = digits("test").x[:3]
        bits = model.bits_per_dim(image, jax.random.key(2))
        noisy = dequantise(jax.random.key(3), jnp.asarray(image), 17)
        density = likelihood.gaussian_log_prob(noisy, np.exp(-0.5))
        near = likelihood.bits_per_dim(density, 64, 17)
        np.testing.assert_allclose(bits, near, atol=0.1)  # of other dequantisation noise
        tighter = model.bits_per_dim(image, jax.random.key(2), dequantisations=3)
        self.assertEqual(tighter.shape, (3,))
        with self.assertRaisesRegex(UserError, "the model generates points: use log_prob"):
            self.model.bits_per_dim(image)

    def test_images_are_bytes_as_the_dataset_has_them(self):
        model = Model(images(-0.5), jnp.ones(()), step=0, batch_size=2)
        x = model.sample(jax.random.key(0), 3, solver=FOUR_CALLS)
        self.assertEqual((x.shape, x.dtype, model.levels), ((3, 8, 8, 1), np.uint8, 17))
        self.assertLess(x.max(), 17)

    def test_classes(self):
        def apply(params, t, x, label, **_):
            return 0 * x + jnp.where(label == 3, 1.0, 0.0)[:, None, None, None]

        experiment = images(apply=apply, condition__labels=True)
        model = Model(experiment, jnp.ones(()), step=0, batch_size=2)
        x0 = jnp.full((3, 8, 8, 1), -0.99)
        x = model.sample(jax.random.key(0), 3, label=[3, 1, 3], x0=x0)
        self.assertEqual(x[:, 0, 0, 0].tolist(), [8, 0, 8])
        for label, message in ((None, "needs a class"), (10, "labels of digits are 0 to 9")):
            with self.assertRaisesRegex(UserError, f"label: got {label}; .*{message}"):
                model.sample(jax.random.key(0), 3, label=label)
        with self.assertRaisesRegex(UserError, "label: got 3; this model has no classes"):
            self.model.sample(jax.random.key(0), 3, label=3)

    def test_the_density_is_that_of_the_images(self):
        """N(0.5, 0.5^2 I), of which the path's end is a multiple with its noise."""
        data = {"data__dequantisation": "truncated_normal", "solver__rtol": 1e-4}
        exact = gaussian_velocity(images(**data).path, 0.5, 0.5)
        experiment = images(apply=lambda params, t, x, **_: exact(t, x), **data)
        model = Model(experiment, jnp.ones(()), step=0)
        x = 0.5 + 0.1 * jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
        std = np.hypot(0.5, 1 / (3 * 17))  # sigma / alpha at the path's end
        expected = likelihood.gaussian_log_prob(x - 0.5, std)
        np.testing.assert_allclose(model.log_prob(x), expected, atol=0.1)

    def test_models_without_a_density(self):
        """That of a regression or of SR3 would be of no flow."""
        model = Model(regression(), jnp.ones(()), step=0)
        said = "config.objective.name: got 'regression'; the model has no density"
        with self.assertRaisesRegex(UserError, said):
            model.log_prob(jnp.zeros((2, *model.shape)))
        with self.assertRaisesRegex(UserError, said):
            model.bits_per_dim(np.zeros((2, *model.shape), np.uint8))

    @parameterized.parameters("euler", "dpmpp2m", "sea", "fitted")
    def test_densities_do_not_depend_on_the_solver_of_samples(self, method):
        """One step of Euler, say, would be off by a lot."""
        experiment = points(0.5, solver__method=method, solver__steps=1)
        model, x = Model(experiment, jnp.ones(()), step=0), jnp.array([[0.5, -1.0]])
        expected = likelihood.gaussian_log_prob(x, math.exp(0.5))
        np.testing.assert_allclose(model.log_prob(x), expected, atol=1e-4)

    def test_solves_that_fail(self):
        """In any batch: there are no images of what is not finite, and log-densities warn."""
        broken = lambda params, t, x, **_: x / (x < 5)  # noqa: E731
        model = Model(images(apply=broken), jnp.ones(()), step=0, batch_size=2)
        x0 = jnp.zeros((4, 8, 8, 1)).at[1].set(6.0)
        for solver in (FOUR_CALLS, None):
            with self.assertRaisesRegex(RunStopped, "the solver failed: the field is not finite"):
                model.sample(jax.random.key(0), 4, solver=solver, x0=x0)
        self.assertTrue((model.sample(jax.random.key(0), 2, x0=x0[2:]) == 8).all())
        with self.assertLogs("flowmatch_jax", "WARNING") as logs:
            model.log_prob(x0, jax.random.key(0))
        self.assertIn("The solver of the likelihood failed", logs.output[0])

    def test_what_it_refuses(self):
        with self.assertRaisesRegex(UserError, "n: got 0"):
            self.model.sample(jax.random.key(0), 0)
        x0 = jnp.zeros((4, 2))
        with self.assertRaisesRegex(UserError, "x0: got '4 items'; give one .* of the 3 samples"):
            self.model.sample(jax.random.key(0), 3, x0=x0)
        with self.assertRaisesRegex(UserError, r"x: got 'an array of shape \(0, 2\)'"):
            self.model.log_prob(x0[:0])
        with self.assertRaisesRegex(UserError, r"x: got 'an array of shape \(0, 8, 8, 1\)'"):
            Model(images(-0.5), jnp.ones(()), step=0).bits_per_dim(np.zeros((0, 8, 8, 1), int))
        with self.assertRaisesRegex(UserError, "no super-resolution"):
            self.model.upsample(np.zeros((4, 4, 1), np.uint8))


class LoadTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = unpack("digits", self.create_tempdir().full_path)

    def sample(self, model):
        return model.sample(jax.random.key(0), 5, solver=FOUR_CALLS)

    def test_the_workdir_alone_suffices(self):
        """Moved, seen from another folder, with the training set gone: the same bits."""
        before = flowmatch_jax.load(self.workdir)
        self.assertEqual((before.step, before.shape, before.levels), (3, (8, 8, 1), 17))
        write_data(self.workdir, digits("train").facts(), digits("test").facts())
        moved = Path(self.create_tempdir().full_path) / "elsewhere"
        shutil.move(self.workdir, moved)
        gone = UserError("config.data", "digits", "the dataset is gone")
        with contextlib.chdir("/"), mock.patch.object(sets, "open_dataset", side_effect=gone):
            model = flowmatch_jax.load(str(moved))
            np.testing.assert_array_equal(self.sample(model), self.sample(before))
            x = model.noise(jax.random.key(1), 2)
            np.testing.assert_array_equal(model.log_prob(x), before.log_prob(x))
            with self.assertRaisesRegex(UserError, "the dataset is gone"):
                _ = model.experiment.test_data.x

    def test_a_model_and_a_weaker_one_that_had_more_devices(self):
        weak = unpack("digits", self.create_tempdir().full_path)
        on_more_devices(self.workdir)
        on_more_devices(weak)
        fields = {"scale": 2.0, "weak_step": 3, "weak_workdir": str(weak)}
        fields = {f"guidance__{name}": value for name, value in fields.items()}
        model = flowmatch_jax.load(self.workdir, **fields)
        jax.tree.map(np.testing.assert_array_equal, model.params.params, model.params.weak)
        with self.assertRaisesRegex(UserError, "config.mesh.fsdp: got 1000; it must divide"):
            flowmatch_jax.load(self.workdir, mesh__fsdp=1000)

    def test_fields_weights_and_steps(self):
        raw = flowmatch_jax.load(self.workdir, weights="raw", step=3, solver__rtol=0.1)
        self.assertEqual(raw.config.solver.rtol, 0.1)
        average = flowmatch_jax.load(self.workdir)
        at = (0.5, raw.noise(jax.random.key(0), 2))
        v_raw, v_average = (jax.jit(model.field)(*at) for model in (raw, average))
        self.assertGreater(jnp.abs(v_raw - v_average).max(), 0)

    def test_guided_by_a_weaker_model(self):
        """By itself it is the model; of the earlier run's average, it is another one."""
        of_two_steps = {"solver__method": "ab2", "solver__steps": 2}
        model = flowmatch_jax.load(self.workdir, **of_two_steps)
        fields = {"guidance__scale": 3.0, "guidance__weak_step": 3}
        itself = flowmatch_jax.load(self.workdir, **fields, **of_two_steps)
        x0 = model.noise(jax.random.key(0), 2)
        draw = lambda of: of.experiment.generate(of.params, x0, None, {}, FOUR_CALLS)  # noqa: E731
        np.testing.assert_allclose(draw(itself).x, draw(model).x, atol=1e-5)
        self.assertEqual((draw(model).nfe, draw(itself).nfe), (4, 8))
        np.testing.assert_array_equal(itself.log_prob(x0), model.log_prob(x0))

        weak = jax.tree.map(lambda p: 0.5 * p, model.params)
        guided = itself.experiment.generate(GuidedParams(model.params, weak), x0, None, {}, EULER)
        field = jax.jit(lambda params: model.experiment.field(params)(0.0, x0))
        v, v_weak = (field(params) for params in (model.params, weak))
        np.testing.assert_allclose(guided.x, x0 + v_weak + 3 * (v - v_weak), atol=1e-5)

    @parameterized.parameters(
        ({"weak_step": 7}, "config.guidance.weak_step: got 7; .*checkpoints of the steps 3"),
        ({"weak_step": 3, "scale": 1.0}, "config.guidance.scale: got 1.0; guidance by a weaker"),
        ({"weak_workdir": "other"}, "config.guidance.weak_step: got None; give the step"),
        ({"weak_step": 3, "weak_workdir": "typo"}, "weak_workdir: got .*there is no run"),
        ({"weak_step": 3, "weak_workdir": "points"}, r"weak_workdir: .*images of shape \(2,\)"),
    )
    def test_weaker_models_that_do_not_guide(self, fields, error):
        if fields.get("weak_workdir") == "points":
            fields = fields | {"weak_workdir": str(unpack("checkerboard", self.workdir / "points"))}
        fields = {f"guidance__{name}": value for name, value in ({"scale": 2.0} | fields).items()}
        with self.assertRaisesRegex(UserError, error):
            flowmatch_jax.load(self.workdir, **fields)

    def test_what_is_not_there(self):
        with self.assertRaisesRegex(UserError, "--step: got 7; .*checkpoints of the steps 3"):
            flowmatch_jax.load(self.workdir, step=7)
        with self.assertRaisesRegex(UserError, "weights: got 'best'; it may be one of: ema, raw"):
            flowmatch_jax.load(self.workdir, weights="best")
        nowhere = self.workdir / "typo"
        with self.assertRaisesRegex(UserError, "--workdir: .*there is no run"):
            flowmatch_jax.load(nowhere)
        self.assertFalse(nowhere.exists())


if __name__ == "__main__":
    absltest.main()
