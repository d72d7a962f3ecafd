import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logit
from scipy.stats import kstest, norm

from flowmatch_jax import paths, times
from flowmatch_jax.predictions import convert
from flowmatch_jax.runtime.errors import UserError
from tests.cases import EACH_PATH, PATHS


def noise_over_signal(path, t):
    return np.exp(-np.asarray(paths.log_snr(path, t), np.float64))


class TimesTest(parameterized.TestCase):
    @parameterized.product(name=sorted(times.TIMES), path=sorted(PATHS))
    def test_on_the_path(self, name, path):
        t = np.asarray(times.TIMES[name](jax.random.key(0), 5000, PATHS[path]))
        self.assertEqual((t.shape, t.dtype), ((5000,), np.float32))
        self.assertGreaterEqual(t.min(), 0)
        self.assertLessEqual(t.max(), PATHS[path].t_end)

    @parameterized.parameters("ot_sigma_min_0", "vp")
    def test_uniform(self, name):
        path = PATHS[name]
        t = np.asarray(times.uniform(jax.random.key(0), 5000, path))
        self.assertGreater(kstest(t / path.t_end, "uniform").pvalue, 1e-3)

    @parameterized.parameters("ot", "ot_sigma_min_0", "vp", "ve")
    def test_skewed_noise_over_signal_is_edm_s_on_every_path(self, name):
        """log(sigma_t / alpha_t) ~ N(-1.2, 1.2^2), of which VE's end at sigma_min cuts 0.2%."""
        t = times.skewed(jax.random.key(0), 5000, PATHS[name])
        z = (np.log(noise_over_signal(PATHS[name], t)) + 1.2) / 1.2
        inside = z[z > (np.log(0.01) + 1.2) / 1.2 + 1e-3]
        self.assertGreater(len(inside), 4970)
        self.assertGreater(kstest(inside, "norm").pvalue, 1e-3)

    def test_skewed_is_logistic_normal_on_ot(self):
        t = np.asarray(times.skewed(jax.random.key(0), 5000, PATHS["ot_sigma_min_0"]), np.float64)
        cdf = lambda s: norm.cdf((logit(s) - 1.2) / 1.2)  # noqa: E731
        self.assertGreater(kstest(t, cdf).pvalue, 1e-3)

    def test_logit_normal(self):
        t = times.logit_normal(jax.random.key(0), 5000, PATHS["vp"], mean=0.5, std=2.0)
        z = (logit(np.asarray(t, np.float64) / PATHS["vp"].t_end) - 0.5) / 2
        self.assertGreater(kstest(z, "norm").pvalue, 1e-3)
        with self.assertRaisesRegex(UserError, "std: got 0.0"):
            times.logit_normal(jax.random.key(0), 2, PATHS["vp"], std=0.0)

    @parameterized.parameters("vp", "ve")
    def test_uniform_log_snr(self, name):
        path = PATHS[name]
        t = times.uniform_log_snr(jax.random.key(0), 5000, path)
        low, high = (float(paths.log_snr(path, t)) for t in (0.0, path.t_end))
        rank = (np.asarray(paths.log_snr(path, t)) - low) / (high - low)
        self.assertGreater(kstest(rank, "uniform").pvalue, 1e-3)

    def test_uniform_log_snr_is_uniform_time_on_ve(self):
        """There log sigma_t is linear in t."""
        t = times.uniform_log_snr(jax.random.key(0), 5000, PATHS["ve"])
        self.assertGreater(kstest(np.asarray(t), "uniform").pvalue, 1e-3)


class StratifiedTest(parameterized.TestCase):
    @parameterized.parameters(*sorted(times.TIMES))
    def test_one_in_each_quantile(self, name):
        """Of n times, one lies in each n-th part of the distribution, by any key."""
        path, n = PATHS["vp"], 64
        many = np.sort(times.TIMES[name](jax.random.key(0), 100_000, path))
        for seed in range(3):
            t = times.TIMES[name](jax.random.key(seed), n, path, stratified=True)
            self.assertEqual((t.shape, t.dtype), ((n,), np.float32))
            ranks = np.sort(np.searchsorted(many, t) / len(many) * n)
            # Within three standard errors of the empirical distribution's quantiles.
            np.testing.assert_allclose(ranks - np.arange(n), ranks[0], atol=3 * 0.5 * n / 316)

    def test_each_is_distributed_alike(self):
        draw = lambda key: times.uniform(key, 8, PATHS["ot"], stratified=True)  # noqa: E731
        t = jax.vmap(draw)(jax.random.split(jax.random.key(0), 2000))
        for i in (0, 3, 7):
            self.assertGreater(kstest(np.asarray(t[:, i]), "uniform").pvalue, 1e-3)

    def test_the_mean_of_a_batch_varies_less(self):
        means = [
            jax.vmap(lambda key, s=s: times.uniform(key, 64, PATHS["ot"], s).mean())(
                jax.random.split(jax.random.key(0), 500)
            ).std()
            for s in (False, True)
        ]
        self.assertLess(means[1], 0.2 * means[0])


class LikelihoodTest(parameterized.TestCase):
    def test_on_ot_it_is_the_density_of_the_paper(self):
        """t / (1 - t), whose integral is -t - log(1 - t), up to a cut."""
        path = dataclasses.replace(PATHS["ot_sigma_min_0"], t_end=0.98)
        integral = lambda t: -t - np.log1p(-t)  # noqa: E731
        t = np.asarray(times.likelihood(jax.random.key(1), 5000, path), np.float64)
        self.assertGreater(kstest(t, lambda t: integral(t) / integral(0.98)).pvalue, 1e-3)
        t = np.asarray(times.likelihood(jax.random.key(1), 5000, path, stratified=True), np.float64)
        ranks = np.sort(integral(t) / integral(0.98))
        np.testing.assert_allclose(ranks, ranks[0] + np.arange(5000) / 5000, atol=2e-4)

    @parameterized.parameters("vp", "cosine", "ot")
    def test_expectation_is_that_of_the_weighted_loss(self, name):
        """At these times and at weighted uniform ones, for any error of the velocity."""
        path, n = dataclasses.replace(PATHS[name], t_end=0.97), 200_000
        error = lambda t: 1 + np.sin(3 * t) ** 2  # noqa: E731
        t = times.likelihood(jax.random.key(0), n, path)
        at_uniform = times.uniform(jax.random.key(1), n, path)
        weights = np.asarray(times.likelihood_weight(path, at_uniform), np.float64)
        weighted = weights / weights.mean() * error(at_uniform)
        spread = np.hypot(error(t).std(), weighted.std()) / np.sqrt(n)
        self.assertLess(abs(error(t).mean() - weighted.mean()), 4 * spread)
        self.assertLess(error(t).std(), 0.5 * weighted.std())

    @parameterized.parameters("vp", "ot", "ve")
    def test_weight_is_that_of_the_score_by_the_diffusion(self, name):
        """beta / 2 ||S - S'||^2 = weight ||v - v'||^2, by the conversions of predictions."""
        path, t = PATHS[name], jnp.array([0.2, 0.7])
        x, v, other = np.random.RandomState(0).randn(3, 2, 5).astype(np.float32)
        score = lambda v: convert(path, t, x, v, "velocity", "score")  # noqa: E731
        c = paths.coefficients(path, t, jnp.ones(2))
        of_score = paths.squared_diffusion(c) / 2 * ((score(v) - score(other)) ** 2).sum(axis=1)
        of_velocity = times.likelihood_weight(path, t) * ((v - other) ** 2).sum(axis=1)
        np.testing.assert_allclose(of_velocity, of_score, rtol=2e-3)


class GridTest(parameterized.TestCase):
    @parameterized.product(name=sorted(times.GRIDS), path=sorted(PATHS), steps=(1, 2, 3, 50, 1000))
    def test_leads_from_0_to_the_end_of_the_path(self, name, path, steps):
        grid = times.GRIDS[name](steps, PATHS[path])
        self.assertEqual(grid.shape, (steps + 1,))
        self.assertEqual((grid[0], grid[-1], grid.dtype), (0, PATHS[path].t_end, np.float64))
        self.assertTrue((np.diff(grid.astype(np.float32)) > 0).all())

    def test_uniform(self):
        np.testing.assert_allclose(times.uniform_grid(4, PATHS["ot"]), [0, 0.25, 0.5, 0.75, 1])

    @parameterized.parameters("ot", "vp")
    def test_cosine_steps_are_chords_of_a_half_circle(self, name):
        """Their times are the feet of points at equal angles; a step is sin(pi (i + 1/2) / n)."""
        grid, n = times.cosine_grid(12, PATHS[name]), 12
        chords = np.sin(np.pi * (np.arange(n) + 0.5) / n)
        expected = PATHS[name].t_end * chords / chords.sum()
        np.testing.assert_allclose(np.diff(grid), expected, rtol=1e-9)

    @given(st.floats(0.05, 20))
    @settings(max_examples=20, deadline=None)
    def test_shift_multiplies_noise_over_signal_on_ot(self, k):
        path = PATHS["ot_sigma_min_0"]
        equal, shifted = (
            times.uniform_grid(9, path) / path.t_end,
            times.shift_grid(9, path, k=k) / path.t_end,
        )
        ratio = (1 / shifted[1:-1] - 1) / (1 / equal[1:-1] - 1)
        np.testing.assert_allclose(ratio, k, rtol=1e-9)

    def test_sway_s_ends(self):
        """s = 0: equal steps; s = -1: 1 - cos(pi u / 2); in between the mean of the two."""
        path, u = PATHS["ot"], np.linspace(0, 1, 9)
        ends = u, 1 - np.cos(np.pi / 2 * u)
        for s in (0.0, -0.3, -1.0):
            expected = (1 + s) * ends[0] - s * ends[1]
            np.testing.assert_allclose(times.sway_grid(8, path, s=s), expected, rtol=1e-9)
        self.assertLess(np.diff(times.sway_grid(8, path, s=1.0))[-1], 1 / 8)

    @parameterized.parameters(
        (times.shift_grid, "k", 0.0),
        (times.shift_grid, "k", np.nan),
        (times.sway_grid, "s", -1.1),
        (times.sway_grid, "s", 2.0),
        (times.sway_grid, "s", np.nan),
    )
    def test_parameters_out_of_range(self, grid, name, value):
        with self.assertRaisesRegex(UserError, f"^{name}: got"):
            grid(5, PATHS["ot"], **{name: value})

    @parameterized.named_parameters(EACH_PATH)
    def test_edm_s_formula_for_noise_over_signal(self, path):
        """Cut to the levels that the path has."""
        n = 18
        first, last = (float(noise_over_signal(path, t)) for t in (0.0, path.t_end))
        high, low = min(80, first) ** (1 / 7), max(0.002, last) ** (1 / 7)
        levels = n if last < 0.002 else n + 1
        sigma = [(high + i / (levels - 1) * (low - high)) ** 7 for i in range(levels)]
        grid = times.edm_grid(n, path)
        np.testing.assert_allclose(noise_over_signal(path, grid[1:n]), sigma[1:n], rtol=2e-3)

    def test_the_same_inside_of_jit(self):
        found = []
        jax.jit(lambda: found.append(times.edm_grid(5, PATHS["vp"])))()
        np.testing.assert_array_equal(found[0], times.edm_grid(5, PATHS["vp"]))

    def test_edm_s_grid_on_ot(self):
        """noise over signal is (1 - t) / t there, and steps are short at both ends."""
        grid, n = times.edm_grid(18, PATHS["ot_sigma_min_0"]), 18
        sigma = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), n) ** 7
        np.testing.assert_allclose(grid[1:n], 1 / (1 + sigma[1:]), rtol=1e-5)
        h = np.diff(grid)
        self.assertLess(max(h[0], h[-1]), 0.2 * h.max())


if __name__ == "__main__":
    absltest.main()
