from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import kstest

from flowmatch_jax import couplings
from flowmatch_jax.couplings import MinibatchOT
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.solvers import integrate
from tests.cases import PATHS, gaussian_velocity


class SourceTest(parameterized.TestCase):
    def test_gaussian_noise(self):
        x = couplings.draw_source(jax.random.key(0), (1000, 3), 50.0)
        self.assertGreater(kstest(np.ravel(x) / 50, "norm").pvalue, 1e-3)

    @parameterized.parameters("ot", "vp", "ve")
    def test_along_the_marginal_field_it_becomes_the_data(self, name):
        path, m, s = PATHS[name], 0.7, 0.4
        x0 = couplings.draw_source(jax.random.key(0), (1000, 2, 2, 1), path.source_std)
        solution = integrate(gaussian_velocity(path, m, s), x0, 0.0, path.t_end)
        self.assertEqual((solution.x.shape, solution.x.dtype), ((1000, 2, 2, 1), jnp.float32))
        self.assertGreater(kstest((np.ravel(solution.x) - m) / s, "norm").pvalue, 1e-3)


class IndependentTest(absltest.TestCase):
    def test_unit_gaussian_noise_that_ignores_the_data(self):
        x1 = jax.random.normal(jax.random.key(0), (2000, 3)) * 4 + 1
        x0 = couplings.independent(jax.random.key(1), x1)
        self.assertEqual((x0.shape, x0.dtype), (x1.shape, x1.dtype))
        self.assertGreater(kstest(np.ravel(x0), "norm").pvalue, 1e-3)
        np.testing.assert_array_equal(x0, couplings.independent(jax.random.key(1), 0 * x1))
        correlation = np.corrcoef(np.ravel(x0), np.ravel(x1))[0, 1]
        self.assertLess(abs(correlation), 4 / np.sqrt(x0.size))


def noise_and_data(n, shape=(3,), seed=0):
    rng = np.random.RandomState(seed)
    return rng.randn(n, *shape).astype(np.float32), 2 * rng.rand(n, *shape).astype(np.float32)


def pair(options, x0, x1, label=None, seed=0):
    return MinibatchOT(**options).pair(np.random.default_rng(seed), x0, x1, label)


class ExactTest(parameterized.TestCase):
    def test_smallest_of_all_permutations(self):
        x0, x1 = noise_and_data(6)
        total = lambda order: np.sum((x0[list(order)] - x1) ** 2)  # noqa: E731
        best = min(permutations(range(6)), key=total)
        np.testing.assert_array_equal(pair({}, x0, x1), best)

    @parameterized.parameters(1, 2, 64, 200)
    def test_scipy_s_optimum_of_the_distances(self, n):
        x0, x1 = noise_and_data(n, (4, 4, 1))
        chosen = pair({}, x0, x1)
        self.assertCountEqual(chosen, range(n))
        distances = cdist(x0.reshape(n, -1), x1.reshape(n, -1), "sqeuclidean")
        optimum = distances[linear_sum_assignment(distances)].sum()
        np.testing.assert_allclose(np.sum((x0[chosen] - x1) ** 2), optimum, rtol=1e-5)
        if n > 2:
            self.assertLess(optimum, 0.95 * np.sum((x0 - x1) ** 2))

    def test_sorted_on_a_line(self):
        """In one dimension the optimal plan pairs the order statistics."""
        rng = np.random.RandomState(0)
        x0, x1 = (scale * rng.permutation(300)[:, None] / 300 for scale in (6.0, 2.0))
        chosen = pair({}, x0, x1)
        np.testing.assert_array_equal(np.argsort(x1[:, 0]), np.argsort(x0[chosen, 0]))

    def test_each_label_keeps_its_noise(self):
        x0, x1 = noise_and_data(90)
        label = np.random.RandomState(1).randint(0, 4, 90)
        chosen = pair({}, x0, x1, label)
        np.testing.assert_array_equal(label[chosen], label)
        for value in range(4):
            (own,) = np.nonzero(label == value)
            self.assertCountEqual(chosen[own], own)
            np.testing.assert_array_equal(chosen[own], own[pair({}, x0[own], x1[own])])

    def test_costs_have_no_rounding_errors(self):
        """So sums in any order are equal: of blocks of the dimensions, and in exact integers."""
        x0, x1 = noise_and_data(20, (16, 16, 3))
        cost = couplings.transport_cost(x0, x1)
        blocks = [couplings.transport_cost(x0[:, i : i + 1], x1[:, i : i + 1]) for i in range(16)]
        np.testing.assert_array_equal(cost, sum(reversed(blocks)))
        whole = [np.round(x.reshape(20, -1) * 2.0**16).astype(int).astype(object) for x in (x0, x1)]
        exact = -(whole[0] @ whole[1].T)
        np.testing.assert_array_equal((cost * 2.0**32).astype(int), exact.astype(int))
        np.testing.assert_allclose(cost, -np.einsum("nijc,mijc->nm", x0, x1), rtol=1e-4, atol=1e-2)


class SinkhornTest(parameterized.TestCase):
    @parameterized.parameters(0.03, 0.3, 3.0)
    def test_the_plan_is_the_minimum(self, regularisation):
        """Its marginals are uniform and log P + cost / eps is a sum of potentials f_i + g_j."""
        cost = couplings.transport_cost(*noise_and_data(40))
        plan = couplings.entropic_plan(cost, regularisation)
        np.testing.assert_allclose(plan.sum(axis=0), 1, rtol=1e-9)
        np.testing.assert_allclose(np.abs(plan.sum(axis=1) - 1).mean(), 0, atol=1e-3)
        inner = np.log(plan) + cost / regularisation
        np.testing.assert_allclose(inner + inner[:1, :1], inner[:1] + inner[:, :1], atol=1e-6)

    @parameterized.parameters(1e-3, 1e-4, 1e-5)
    def test_the_marginals_of_a_small_regularisation(self, regularisation):
        """Where the plan is nearly an assignment, in the plane, too."""
        rng = np.random.RandomState(0)
        cost = couplings.transport_cost(rng.randn(64, 2), rng.uniform(-1, 1, (64, 2)))
        plan = couplings.entropic_plan(cost, regularisation * cost.std())
        np.testing.assert_allclose(plan.sum(axis=0), 1, rtol=1e-9)
        self.assertLess(np.abs(plan.sum(axis=1) - 1).mean(), 1e-3)
        least = cost[couplings.assign(cost), np.arange(64)].sum()
        np.testing.assert_allclose(np.sum(plan * cost), least, rtol=1e-3)

    def test_two_points_in_closed_form(self):
        """P = [[p, 1 - p], [1 - p, p]], log p / (1 - p) = (c_12 + c_21 - c_11 - c_22) / 2 eps."""
        cost = np.array([[0.1, 1.0], [0.7, 0.4]])
        p = 1 / (1 + np.exp(-(1.0 + 0.7 - 0.1 - 0.4) / 2 / 0.5))
        np.testing.assert_allclose(
            couplings.entropic_plan(cost, 0.5), [[p, 1 - p], [1 - p, p]], atol=1e-3
        )

    def test_towards_exact_and_towards_independent(self):
        x0, x1 = noise_and_data(40)
        cost = couplings.transport_cost(x0, x1)
        least, mean = cost[couplings.assign(cost), np.arange(40)].sum(), cost.sum() / 40
        totals = [
            np.sum(couplings.entropic_plan(cost, eps * cost.std()) * cost)
            for eps in (1e-3, 0.01, 0.1, 1.0, 100.0)
        ]
        self.assertEqual(totals, sorted(totals))
        np.testing.assert_allclose(totals[0], least, rtol=2e-3)
        np.testing.assert_allclose(totals[-1], mean, rtol=2e-2)
        np.testing.assert_array_less(pair_total(x0, x1, 0.01), pair_total(x0, x1, 100.0))

    def test_noise_keeps_its_distribution(self):
        """Over many draws each noise sample is chosen equally often, by data of its label."""
        x0, x1 = noise_and_data(30)
        label = np.arange(30) % 3
        draws = 600
        options = {"method": "sinkhorn", "regularisation": 0.3}
        counts = np.zeros(30)
        transport, rng = MinibatchOT(**options), np.random.default_rng(0)
        for _ in range(draws):
            chosen = transport.pair(rng, x0, x1, label)
            np.testing.assert_array_equal(label[chosen], label)
            counts += np.bincount(chosen, minlength=30)
        # A count is a sum of independent draws, with a variance of draws x sum p (1 - p) < draws;
        # the plan's rows are 1 to within 1e-3 in the mean, and 0.03 at most.
        np.testing.assert_allclose(counts / draws, 1, atol=5 / np.sqrt(draws) + 0.03)

    def test_columns_are_drawn_by_their_probabilities(self):
        plan = np.array([[0.2, 1.0, 0.0], [0.8, 0.0, 0.5], [0.0, 0.0, 0.5]])
        rng = np.random.default_rng(0)
        drawn = np.array([couplings.draw_columns(rng, plan) for _ in range(4000)])
        frequencies = [np.bincount(column, minlength=3) / 4000 for column in drawn.T]
        np.testing.assert_allclose(np.transpose(frequencies), plan, atol=4 * 0.5 / np.sqrt(4000))
        np.testing.assert_array_equal(np.transpose(frequencies)[plan == 0], 0)

    def test_equal_points_have_no_best_plan(self):
        x0, x1 = noise_and_data(8)
        np.testing.assert_allclose(couplings.entropic_plan(np.zeros((8, 8)), 0.0), 1 / 8)
        self.assertLen(pair({"method": "sinkhorn"}, x0, np.zeros_like(x1)), 8)


def pair_total(x0, x1, regularisation):
    chosen = pair({"method": "sinkhorn", "regularisation": regularisation}, x0, x1)
    return np.sum((x0[chosen] - x1) ** 2)


class OptionsTest(parameterized.TestCase):
    @parameterized.parameters(("method", "auction"), ("regularisation", 0.0), ("batches", 0))
    def test_out_of_range(self, name, value):
        with self.assertRaisesRegex(UserError, f"{name}: got {value!r}"):
            MinibatchOT(**{name: value}).validate()


class PairedTest(absltest.TestCase):
    def test_pairs_bring_their_noise(self):
        pair = {"x": jnp.ones((4, 3)), "x0": jnp.arange(12.0).reshape(4, 3)}
        key = jax.random.key(0)
        np.testing.assert_array_equal(
            couplings.noise_of(couplings.of_the_batch, key, pair), pair["x0"]
        )
        with self.assertRaisesRegex(ValueError, 'which has no "x0"'):
            couplings.noise_of(couplings.of_the_batch, key, {"x": pair["x"]})
        drawn = couplings.noise_of(couplings.independent, key, {"x": pair["x"]})
        np.testing.assert_array_equal(drawn, couplings.independent(key, pair["x"]))


if __name__ == "__main__":
    absltest.main()
