import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy.linalg import expm
from scipy.stats import multivariate_normal, norm

from flowmatch_jax import likelihood, solvers
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.solvers import Solver
from flowmatch_jax.times import edm_grid
from tests.cases import PATHS, Float64TestCase, coefficients, gaussian_velocity

A = np.array([[-1.0, 2.0, 0.3], [-1.5, 0.3, 0.1], [0.7, 0.0, 0.9]])  # tr A != 0, not symmetric
TIGHT = Solver(rtol=1e-9, atol=1e-9)


def linear(t, x):
    return x @ A.T


def wavy(t, x):
    """A field with a dense Jacobian, for any shape of x."""
    flat = x.reshape(x.shape[0], -1)
    mixing = jnp.sin(jnp.arange(flat.shape[1] ** 2)).reshape(flat.shape[1], -1)
    return jnp.tanh(flat @ mixing + t).reshape(x.shape)


class LogProbTest(Float64TestCase):
    @parameterized.parameters(1.0, 2.5)
    def test_linear_field(self, source_std):
        """v = A x carries N(0, s^2 I) so that log p_1(x) = log N(expm(-A) x) - tr A."""
        x = np.random.RandomState(0).randn(6, 3)
        x0 = x @ expm(-A).T
        expected = norm(scale=source_std).logpdf(x0).sum(axis=1) - np.trace(A)
        result = likelihood.log_prob(
            linear, x, solver=TIGHT, source_std=source_std, divergence="exact"
        )
        np.testing.assert_allclose(result.log_prob, expected, rtol=1e-6)
        np.testing.assert_allclose(result.x0, x0, rtol=1e-6)
        # The same density, written as that of N(0, s^2 expm(A) expm(A)^T).
        covariance = source_std**2 * expm(A) @ expm(A).T
        np.testing.assert_allclose(
            result.log_prob, multivariate_normal(cov=covariance).logpdf(x), rtol=1e-6
        )

    @parameterized.parameters("ot", "vp", "ve")
    def test_gaussian_data_on_each_path(self, name):
        """The exact marginal field from the path's own source: N(m, s^2 I) at the data end."""
        path, m, s = PATHS[name], 0.7, 0.4
        x = m + s * np.random.RandomState(0).randn(5, 2, 2, 1)
        result = likelihood.log_prob(
            gaussian_velocity(path, m, s),
            x,
            solver=TIGHT,
            source_std=path.source_std,
            t1=path.t_end,
            divergence="exact",
        )
        # Started from N(0, source_std^2), the flow ends in this Gaussian:
        (a0, s0), (a1, s1) = (coefficients(path, t) for t in (0.0, path.t_end))
        spread = np.sqrt(((a1 * s) ** 2 + s1**2) / ((a0 * s) ** 2 + s0**2))
        mean, std = a1 * m - spread * a0 * m, spread * path.source_std
        expected = norm(mean, std).logpdf(x).sum(axis=(1, 2, 3))
        np.testing.assert_allclose(result.log_prob, expected, rtol=1e-6)
        # Which is the data's density up to what each path says of its source.
        data = norm(m, s).logpdf(x).sum(axis=(1, 2, 3))
        np.testing.assert_allclose(result.log_prob, data, atol={"ot": 1e-4}.get(name, 0.1))

    def test_fixed_method_with_steps(self):
        x = np.random.RandomState(0).randn(6, 3)
        score = partial(likelihood.log_prob, linear, x, divergence="exact")
        exact, fixed = score(solver=TIGHT), score(solver=Solver("rk4", steps=50))
        np.testing.assert_allclose(fixed.log_prob, exact.log_prob, atol=1e-5)
        self.assertEqual(fixed.nfe, 200)
        same = score(solver=Solver("rk4", grid=np.linspace(0, 1, 51)))
        np.testing.assert_allclose(same.log_prob, fixed.log_prob)
        multistep = score(solver=Solver("ab3", steps=400))
        np.testing.assert_allclose(multistep.log_prob, exact.log_prob, atol=1e-5)
        self.assertEqual(multistep.nfe, 400)

    def test_a_grid_from_0_to_1_is_walked_back(self):
        """Euler on v = t x, from grid[k] back over h, multiplies x by 1 - grid[k] h."""
        grid, x = edm_grid(6, replace(PATHS["ot"], t_end=0.9)), np.array([[0.5, -2.0]])
        field = lambda t, x: t * x  # noqa: E731
        solver = Solver("euler", grid=grid)
        result = likelihood.log_prob(field, x, solver=solver, t1=0.9, divergence="exact")
        shrunk = np.prod(1 - grid[1:] * np.diff(grid))
        np.testing.assert_allclose(result.x0, shrunk * x, rtol=1e-6)
        expected = norm.logpdf(shrunk * x).sum() - 2 * np.sum(grid[1:] * np.diff(grid))
        np.testing.assert_allclose(result.log_prob, [expected], rtol=1e-6)

    def test_hutchinson_probe_is_drawn_once_a_solve(self):
        """With z fixed, the estimate for v = A x is z.Az exactly, however many steps are taken."""
        x, key = np.random.RandomState(0).randn(6, 3), jax.random.key(7)
        z = jax.random.rademacher(key, (1, 6, 3), jnp.float64)[0]
        expected = norm.logpdf(x @ expm(-A).T).sum(axis=1) - (z * (z @ A.T)).sum(axis=1)
        for solver in (TIGHT, Solver("ab3", steps=400)):
            result = likelihood.log_prob(linear, x, key, solver)
            np.testing.assert_allclose(result.log_prob, expected, rtol=1e-6)

    def test_estimates_are_each_probe_s(self):
        x, key = np.random.RandomState(0).randn(6, 3), jax.random.key(7)
        z = jax.random.rademacher(key, (4, 6, 3), jnp.float64)
        expected = norm.logpdf(x @ expm(-A).T).sum(axis=1) - jnp.einsum("pbi,ij,pbj->pb", z, A, z)
        result = likelihood.log_prob(linear, x, key, TIGHT, probes=4)
        np.testing.assert_allclose(result.estimates, expected, rtol=1e-6)
        np.testing.assert_allclose(result.log_prob, expected.mean(axis=0), rtol=1e-6)

    def test_hutchinson_is_unbiased(self):
        x = jnp.tile(jnp.array([[0.3, -0.2, 0.5]]), (4000, 1))
        solver = Solver(rtol=1e-6, atol=1e-6)
        estimate = likelihood.log_prob(linear, x, jax.random.key(1), solver).log_prob
        exact = norm.logpdf(np.asarray(x[0]) @ expm(-A).T).sum() - np.trace(A)
        standard_error = estimate.std() / math.sqrt(len(x))
        self.assertGreater(standard_error, 0.001)  # the probes differ between samples
        self.assertLess(abs(estimate.mean() - exact), 4 * standard_error)

    @parameterized.parameters("ot", "vp")
    def test_narrow_data_are_scored_to_the_tolerance(self, name):
        """div v_t rises to 1 / std near t = 1, where x hardly moves: x alone would say nothing.

        A solve that judges x alone is off by 3.4 nats/dim for vp, 0.003, 1e-3.
        """
        path = PATHS[name]

        @partial(jax.jit, static_argnames="tolerance")
        def score(std, x, tolerance):
            field, solver = (
                gaussian_velocity(path, 0.2, std),
                Solver(rtol=tolerance, atol=tolerance),
            )
            how = {"solver": solver, "divergence": "exact", "t1": path.t_end}
            return likelihood.log_prob(field, x, **how).log_prob

        for std in (0.01, 0.003):
            x = 0.2 + std * np.random.RandomState(0).randn(64, 4)
            exact = score(std, x, 1e-9)
            for tolerance in (1e-3, 1e-5):
                error = np.asarray(score(std, x, tolerance) - exact)
                self.assertLess(np.sqrt(np.mean(error**2)) / 4, 30 * tolerance)

    def test_the_log_density_costs_no_calls_where_it_is_smooth(self):
        """The divergence of a linear field is constant: any step is exact for it."""
        x = np.random.RandomState(0).randn(6, 3)
        result = likelihood.log_prob(linear, x, divergence="exact")
        self.assertEqual(result.nfe, solvers.integrate(linear, x, 1.0, 0.0).nfe)

    @parameterized.parameters("exact", "hutchinson")
    def test_samples_with_their_log_density(self, divergence):
        """One solve forward has the log-density that a solve backward finds at its end."""
        x0, key = 2.5 * np.random.RandomState(0).randn(6, 3), jax.random.key(0)
        how = {"solver": TIGHT, "source_std": 2.5, "divergence": divergence}
        x1, result = likelihood.sample_with_log_prob(linear, x0, key, **how)
        np.testing.assert_allclose(x1, x0 @ expm(A).T, rtol=1e-6)
        backward = likelihood.log_prob(linear, x1, key, **how)
        np.testing.assert_allclose(result.log_prob, backward.log_prob, rtol=1e-6)
        np.testing.assert_array_equal(result.x0, x0)

    @parameterized.parameters("exact", "hutchinson")
    def test_derivatives_by_x_and_by_parameters(self, divergence):
        """By central differences of the same estimate."""
        mixing = np.random.RandomState(0).randn(3, 3)

        def score(weight, x):
            field = lambda t, x: jnp.tanh(x @ (weight * mixing) + t)  # noqa: E731
            how = {"solver": Solver("ab2", steps=4), "divergence": divergence, "probes": 2}
            return likelihood.log_prob(field, x, jax.random.key(0), **how).log_prob.sum()

        x, h = jnp.asarray(np.random.RandomState(1).randn(2, 3)), 1e-5
        of_weight, of_x = jax.jit(jax.grad(score, argnums=(0, 1)))(0.7, x)
        value = jax.jit(score)
        difference = (value(0.7 + h, x) - value(0.7 - h, x)) / (2 * h)
        np.testing.assert_allclose(of_weight, difference, rtol=1e-6)
        shift = h * np.eye(6)[4].reshape(2, 3)
        difference = (value(0.7, x + shift) - value(0.7, x - shift)) / (2 * h)
        np.testing.assert_allclose(of_x[1, 1], difference, rtol=1e-6)

    def test_probes_need_a_key(self):
        with self.assertRaisesRegex(UserError, "key: got None; .*'exact'"):
            likelihood.log_prob(linear, np.zeros((1, 3)))

    @parameterized.parameters(
        ({"divergence": "trace"}, "divergence"),
        ({"probes": 0}, "probes"),
        ({"solver": Solver(steps=3)}, "steps"),
        ({"solver": Solver("dpmpp2m", steps=3, path=PATHS["ot"])}, "method"),
    )
    def test_impossible_options(self, options, field):
        with self.assertRaises(UserError) as caught:
            likelihood.log_prob(linear, np.zeros((1, 3)), jax.random.key(0), **options)
        self.assertEqual(caught.exception.field, field)


def to_uniform_cube(t, x):
    """The field of x_t = (1-t) z + t (2 Phi(z) - 1): it carries N(0, I) to U[-1, 1)^d."""

    def position(z):
        return (1 - t) * z + t * (2 * jax.scipy.stats.norm.cdf(z) - 1)

    def slope(z):
        return (1 - t) + 2 * t * jax.scipy.stats.norm.pdf(z)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        below = position(middle) < x
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, 50, halve, (jnp.full_like(x, -9), jnp.full_like(x, 9)))
    z = jax.lax.stop_gradient((low + high) / 2)
    z = z - (position(z) - x) / slope(z)  # Newton: polishes z, and gives it its derivative in x
    return 2 * jax.scipy.stats.norm.cdf(z) - 1 - z


class ProgramTest(parameterized.TestCase):
    @parameterized.parameters(Solver("dopri5"), Solver("midpoint", steps=2), Solver("ab2", steps=2))
    def test_can_be_kept_in_the_compilation_cache(self, solver):
        """JAX keeps no program that calls the host."""
        program = jax.make_jaxpr(
            lambda x, key: (
                likelihood.log_prob(wavy, x, key, solver),
                solvers.integrate(wavy, x, solver=solver),
            )
        )(jnp.ones((3, 2)), jax.random.key(0))
        self.assertNotIn("callback", str(program))


class BitsPerDimTest(Float64TestCase):
    @parameterized.parameters(
        (256, 8.0, ("exact", "hutchinson")),
        (17, math.log2(17), ("hutchinson",)),
        (2, 1.0, ("exact",)),
    )
    def test_uniform_density_on_the_pixel_cube(self, levels, expected, divergences):
        """Exactly log2(levels) bits/dim: through the whole chain, for the field that makes it."""
        image = np.random.RandomState(0).randint(0, levels, (4, 3, 3, 1))
        for divergence in divergences:  # a diagonal Jacobian: both are exact
            result = likelihood.image_bits_per_dim(
                to_uniform_cube,
                image,
                jax.random.key(0),
                Solver(rtol=1e-6, atol=1e-6),
                levels=levels,
                divergence=divergence,
                t1=0.999,  # at t = 1 the inverse map is infinitely steep at the cube's edge
            )
            np.testing.assert_allclose(result.bits_per_dim, expected, atol=0.02)
        exact = likelihood.bits_per_dim(-9 * math.log(2), 9, levels)
        self.assertAlmostEqual(exact, expected)

    def test_paper_formula_for_256_levels(self):
        log_prob = jnp.array([-100.0, 50.0])
        np.testing.assert_allclose(
            likelihood.bits_per_dim(log_prob, 48), -log_prob / (48 * math.log(2)) + 7
        )

    def test_importance_bound_of_exact_log_densities(self):
        log_probs = jnp.log(jnp.array([[0.1, 0.5], [0.3, 0.5]]))
        np.testing.assert_allclose(
            likelihood.importance_bound(log_probs[:, None]), jnp.log(jnp.array([0.2, 0.5]))
        )

    @parameterized.parameters(1.0, 5.0)
    def test_importance_bound_of_noisy_estimates(self, noise):
        """Below log (1/K) sum_k p_k in expectation whatever the noise, and near it for little."""
        n, samples, probes = 20_000, 5, 3
        keys = jax.random.split(jax.random.key(0), 2)
        exact = jax.random.normal(keys[0], (samples, 1, n))
        estimates = exact + noise * jax.random.normal(keys[1], (samples, probes, n))
        truth = likelihood.importance_bound(exact)
        error = likelihood.importance_bound(estimates) - truth
        standard_error = error.std() / math.sqrt(n)
        self.assertLess(error.mean(), 4 * standard_error)
        plain = likelihood.importance_bound(estimates.mean(axis=1, keepdims=True)) - truth
        self.assertGreater(plain.mean(), 4 * plain.std() / math.sqrt(n))
        one = likelihood.importance_bound(estimates[:1])
        np.testing.assert_allclose(one, estimates[0].mean(axis=0))  # K = 1: unbiased

    def test_more_dequantisations_tighten_the_bound(self):
        """A narrow Gaussian on few levels: density varies within a bin, so K matters."""
        image = np.random.RandomState(0).randint(3, 6, (2000, 2, 1, 1))

        def score(samples):
            return likelihood.image_bits_per_dim(
                gaussian_velocity(PATHS["ot"], 0.0, 0.2),
                image,
                jax.random.key(1),
                Solver("ab2", steps=20),
                levels=8,
                samples=samples,
            ).bits_per_dim

        gain = score(1) - score(20)
        self.assertGreater(gain.mean(), 4 * gain.std() / math.sqrt(len(gain)))

    def test_a_bound_although_hutchinson_s_noise_depends_on_the_dequantisation(self):
        """v = M tanh 3x has a divergence of 0 and z . Dv z of +-2 sech^2 (3x): it varies with u.

        Many copies of one image. One probe for all, as is common, over-states the likelihood.
        """
        mixing = jnp.ones((4, 4)) - jnp.eye(4)
        field = lambda t, x: jnp.einsum("ij,bjhw->bihw", mixing, jnp.tanh(3 * x))  # noqa: E731
        image = np.tile(np.array([0, 1, 1, 0])[:, None, None], (3000, 1, 1, 1))
        score = partial(
            likelihood.image_bits_per_dim,
            field,
            image,
            jax.random.key(1),
            Solver("ab2", steps=10),
            levels=2,
            samples=10,
        )
        truth = likelihood.importance_bound(score(divergence="exact").estimates)
        found = score().estimates

        def over_stated(bound):
            error = bound - truth
            return float(error.mean()), float(error.std() / math.sqrt(len(error)))

        one_probe, error = over_stated(likelihood.importance_bound(found[:, :1]))
        self.assertGreater(one_probe, 4 * error)
        ours, error = over_stated(likelihood.importance_bound(found))
        self.assertLess(ours, 4 * error)
        self.assertGreater(ours, -one_probe)  # and nearer to the truth
        many, error = over_stated(likelihood.importance_bound(score(probes=30).estimates))
        self.assertLess(abs(many), abs(ours) / 2 + 4 * error)

    def test_one_probe_cannot_judge_its_own_choice(self):
        one = partial(
            likelihood.image_bits_per_dim, linear, np.zeros((1, 2, 2, 1)), jax.random.key(0)
        )
        with self.assertRaisesRegex(UserError, "probes: got 1; .*K = 3 .*2 probes"):
            one(samples=3, probes=1)

    def test_dependent_probes_cannot_either(self):
        with self.assertRaisesRegex(UserError, "probe_kind: got 'orthogonal'; .*independent"):
            likelihood.validate_probes(3, "hutchinson", 4, "orthogonal")
        likelihood.validate_probes(1, "hutchinson", 4, "orthogonal")
        with self.assertRaisesRegex(UserError, "probes: got 3; orthogonal probes are 1, 2, 4"):
            likelihood.validate_probes(1, "hutchinson", 3, "orthogonal")

    def test_no_dequantisations(self):
        with self.assertRaises(UserError):
            likelihood.image_bits_per_dim(
                linear, np.zeros((1, 2, 2, 1)), jax.random.key(0), samples=0
            )


if __name__ == "__main__":
    absltest.main()
