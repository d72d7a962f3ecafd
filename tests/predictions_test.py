import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax import paths, predictions
from flowmatch_jax.pixels import centres
from flowmatch_jax.runtime.errors import UserError
from tests.cases import (
    EACH_PATH,
    PATHS,
    Float64TestCase,
    coefficients,
    gaussian_velocity,
    optimal_prediction,
)

KINDS = ("velocity", "noise", "score", "data")


class ConversionTest(Float64TestCase):
    @parameterized.named_parameters(EACH_PATH)
    def test_each_kind_is_what_it_says(self, path):
        """All four of one point of the path, x = sigma x_0 + alpha x_1."""
        x0, x1 = jax.random.normal(jax.random.key(0), (2, 5, 2, 2, 1))
        t = jnp.linspace(0.05, 0.95, 5)
        x, u = paths.flow_and_velocity(path, t, x0, x1)
        truth = {"velocity": u, "noise": x0, "score": paths.score(path, t, x, x1), "data": x1}
        for source, target in itertools.product(KINDS, KINDS):
            got = predictions.convert(path, t, x, truth[source], source, target)
            np.testing.assert_allclose(got, truth[target], rtol=1e-6, atol=1e-8)

    @parameterized.named_parameters(EACH_PATH)
    def test_every_ordered_pair_goes_there_and_back(self, path):
        x, output = jax.random.normal(jax.random.key(1), (2, 5, 3))
        t = jnp.linspace(0.05, 0.95, 5)
        for source, target in itertools.product(KINDS, KINDS):
            there = predictions.convert(path, t, x, output, source, target)
            back = predictions.convert(path, t, x, there, target, source)
            np.testing.assert_allclose(back, output, rtol=1e-6, atol=1e-8)

    @parameterized.named_parameters(EACH_PATH)
    def test_exact_predictions_of_gaussian_data_are_the_marginal_velocity(self, path):
        m, s = 0.4, 0.7
        x = jax.random.normal(jax.random.key(2), (5, 2))
        for t, kind in itertools.product((0.1, 0.5, 0.9), KINDS):
            output = optimal_prediction(path, m, s, kind)(t, x)
            got = predictions.convert(path, t, x, output, kind, "velocity")
            np.testing.assert_allclose(got, gaussian_velocity(path, m, s)(t, x), rtol=1e-6)


class LevelWavesTest(Float64TestCase):
    @parameterized.named_parameters(EACH_PATH)
    def test_their_mean_over_noise_is_that_of_plain_sinusoids(self, path):
        """E sin(omega x_t / alpha) over x_0, by quadrature, is what the waves are at x_0 = 0."""
        levels, octaves = 5, 3
        t = 0.95 * path.t_end
        x1 = jnp.linspace(-1, 1, 4).reshape(2, 1, 1, 2)
        alpha, sigma = coefficients(path, t)
        nodes, weights = np.polynomial.hermite_e.hermegauss(60)
        noisy = x1[..., None] + sigma / alpha * nodes
        got = predictions.level_waves(path, levels, octaves, jnp.full(2, t), alpha * x1)
        self.assertEqual(got.shape, (2, 1, 1, 2 * octaves * 2))
        got = got.reshape(2, 1, 1, 2, octaves, 2)
        for k in range(octaves):
            for i, wave in enumerate((np.sin, np.cos)):
                mean = wave(np.pi * levels / 2**k * noisy) @ weights / weights.sum()
                np.testing.assert_allclose(got[..., k, i], mean, atol=1e-10)

    def test_the_first_period_is_the_distance_of_two_levels(self):
        path = paths.optimal_transport(0.0)
        for levels in (17, 256):
            x = centres(jnp.arange(levels).reshape(1, 1, -1, 1), levels)
            waves = predictions.level_waves(path, levels, 1, jnp.ones(1), x.astype(jnp.float64))
            sine, cosine = jnp.moveaxis(waves[0, 0], -1, 0)
            np.testing.assert_allclose(sine, 0, atol=1e-4)
            np.testing.assert_allclose(cosine, cosine[0], atol=1e-4)

    @parameterized.named_parameters(EACH_PATH)
    def test_nothing_where_noise_hides_the_levels(self, path):
        x = jax.random.normal(jax.random.key(0), (1, 2, 2, 1), jnp.float32)
        waves = lambda x: predictions.level_waves(path, 256, 4, jnp.zeros(1, x.dtype), x)  # noqa: E731
        value, slope = jax.jvp(waves, (x,), (jnp.ones_like(x),))
        self.assertTrue(np.isfinite(value).all() and np.isfinite(slope).all())
        np.testing.assert_array_equal(value, 0)
        np.testing.assert_array_equal(slope, 0)


class EndsTest(parameterized.TestCase):
    @parameterized.named_parameters(EACH_PATH)
    def test_finite_at_both_ends_in_float32(self, path):
        x, output = jax.random.normal(jax.random.key(0), (2, 2, 3))
        t = jnp.array([0.0, path.t_end], jnp.float32)
        for source, target in itertools.product(KINDS, KINDS):
            got = predictions.convert(path, t, x, output, source, target)
            self.assertTrue(bool(jnp.isfinite(got).all()), f"{source} -> {target}")

    def test_noise_says_nothing_of_the_data_at_the_start_of_ot(self):
        for kind in ("noise", "score"):
            with self.assertRaisesRegex(UserError, "predicts.*no velocity at t = 0"):
                predictions.validate(kind, PATHS["ot"])
            predictions.validate(kind, PATHS["vp"])
            predictions.validate(kind, PATHS["ve"])
        for kind in ("velocity", "data"):
            predictions.validate(kind, PATHS["ot"])
        with self.assertRaisesRegex(UserError, "predicts: got 'future'"):
            predictions.validate("future", PATHS["vp"])


class ClockTest(parameterized.TestCase):
    @parameterized.named_parameters(EACH_PATH)
    def test_from_0_to_1_and_strictly_growing(self, path):
        clock = predictions.log_snr_clock(partial(paths.log_snr, path))
        told = np.asarray(clock(jnp.linspace(0, path.t_end, 1000)))
        self.assertBetween(told.min(), 0, 1)
        self.assertBetween(told.max(), 0, 1)
        self.assertTrue((np.diff(told) > 0).all())

    def test_each_halving_of_the_noise_counts_alike(self):
        """On VP, t moves by 0.01 over [0.99, 1], where sigma_t falls by a factor of 45."""
        path = PATHS["vp"]
        clock = predictions.log_snr_clock(partial(paths.log_snr, path))
        log_snr = jnp.array([-3.0, 0.0, 3.0, 6.0])
        told = clock(paths.time_at_log_snr(path, log_snr))
        np.testing.assert_allclose(24 * told - 12, log_snr, atol=1e-3)

    def test_no_derivative_is_infinite_at_the_source(self):
        clock = predictions.log_snr_clock(partial(paths.log_snr, PATHS["ot"]))
        self.assertTrue(np.isfinite(jax.grad(clock)(0.0)))


class StepClockTest(parameterized.TestCase):
    @parameterized.parameters(*predictions.STEP_INPUTS)
    def test_a_step_is_where_its_noise_level_is_on_the_path(self, name):
        """Both schedules preserve the variance, so that the ratio determines the noise level."""
        steps = predictions.STEP_INPUTS[name]()
        path = PATHS["vp"]
        clock = predictions.step_clock(partial(paths.log_snr, path), steps)
        numbers = np.array([50, 51, 300, 700])
        t = paths.time_at_log_snr(path, jnp.asarray(steps[numbers], jnp.float32))
        np.testing.assert_allclose(clock(t), numbers, atol=0.02)
        self.assertEqual((clock(0.0) > 890, clock(1.0)), (True, 0))

    def test_noise_levels_of_the_schedules(self):
        linear, cosine = (steps() for steps in predictions.STEP_INPUTS.values())
        for steps in (linear, cosine):
            self.assertEqual(steps.shape, (1000,))
            self.assertLess(np.diff(steps).max(), 0)
        # The first rate is 1e-4, so that sigma^2 = 1e-4; the last sigma of the paper is near 1.
        self.assertAlmostEqual(linear[0], np.log(np.sqrt((1 - 1e-4) / 1e-4)), places=6)
        self.assertAlmostEqual(1 / (1 + np.exp(-2 * linear[-1])), 4.0e-5, delta=1e-6)
        # alpha^2 = cos^2((s + 0.008) / 1.008 pi / 2) / cos^2(0.008 / 1.008 pi / 2), s = 1/2.
        squared = (np.cos(0.508 / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2
        self.assertAlmostEqual(1 / (1 + np.exp(-2 * cosine[499])), squared, places=9)


class NetworkInputTest(parameterized.TestCase):
    def test_unit_variance_on_the_exploding_path(self):
        x0, x1 = jax.random.normal(jax.random.key(0), (2, 4000, 1))
        for t in (0.0, 0.5, 1.0):
            x = paths.flow(PATHS["ve"], t, x0, x1)
            seen = predictions.network_input(PATHS["ve"], t, x)
            self.assertAlmostEqual(float(seen.std()), 1, delta=4 / np.sqrt(2 * 4000))

    def test_other_paths_as_they_are(self):
        x = jnp.ones((2, 3))
        for name in ("ot", "vp"):
            self.assertIs(predictions.network_input(PATHS[name], 0.3, x), x)


class VectorFieldTest(parameterized.TestCase):
    def test_velocity_prediction_is_the_field(self):
        seen = {}

        def apply(params, t, x, label=None, condition=None):
            seen.update(t=t, label=label, condition=condition)
            return params * x + t[:, None]

        x = jax.random.normal(jax.random.key(0), (4, 2))
        label, condition = jnp.arange(4), jnp.ones((4, 2))
        field = predictions.vector_field(apply, 2.0, PATHS["ot"], "velocity", label, condition)
        np.testing.assert_allclose(field(0.5, x), 2 * x + 0.5)
        times = jnp.linspace(0, 1, 4)
        np.testing.assert_allclose(field(times, x), 2 * x + times[:, None])
        self.assertEqual(seen["t"].shape, (4,))  # networks always get one time a sample
        np.testing.assert_array_equal(seen["label"], label)
        np.testing.assert_array_equal(seen["condition"], condition)


if __name__ == "__main__":
    absltest.main()
