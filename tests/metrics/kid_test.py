from math import comb
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmatch_jax.metrics import kid
from flowmatch_jax.metrics.kid import kernel_distance, squared_mmd
from flowmatch_jax.runtime.errors import UserError


def features(n, dims, seed=0, scale=1.0):
    return scale * np.random.RandomState(seed).randn(n, dims)


def by_pairs(a, b):
    """The unbiased estimate as double sums over pairs."""

    def k(x, y):
        return (x @ y / len(x) + 1) ** 3

    def others(z):
        return np.mean([k(x, y) for i, x in enumerate(z) for j, y in enumerate(z) if i != j])

    return others(a) + others(b) - 2 * np.mean([k(x, y) for x in a for y in b])


def by_moments(x, y):
    """The same for D = 1, where (x y + 1)^3 is a sum of binomials times x^j y^j."""

    def others(z, j):
        return (np.sum(z**j) ** 2 - np.sum(z ** (2 * j))) / (len(z) * (len(z) - 1))

    def term(j):
        return others(x, j) + others(y, j) - 2 * np.mean(x**j) * np.mean(y**j)

    return sum(comb(3, j) * term(j) for j in range(1, 4))


class SquaredMmdTest(parameterized.TestCase):
    @parameterized.parameters((2, 2, 1), (7, 4, 3), (5, 12, 8))
    def test_double_sums(self, n, m, dims):
        a, b = features(n, dims), features(m, dims, seed=1, scale=2)
        self.assertAlmostEqual(squared_mmd(a, b), by_pairs(a, b), places=10)

    def test_blocks(self):
        a, b = features(8, 3), features(7, 3, seed=1)
        with mock.patch.object(kid, "BLOCK", 3):
            self.assertAlmostEqual(squared_mmd(a, b), by_pairs(a, b), places=10)
        x, y = features(2500, 1), features(2100, 1, seed=1, scale=2)
        self.assertAlmostEqual(squared_mmd(x, y), by_moments(x[:, 0], y[:, 0]), places=9)

    def test_its_expectation(self):
        """Of N(0, 1) and N(1, 1): moments 0, 1, 0 and 1, 2, 4, so 3 + 3 + 16."""
        estimates = [
            squared_mmd(features(200, 1, seed), features(200, 1, 1000 + seed) + 1)
            for seed in range(100)
        ]
        error = np.std(estimates) / np.sqrt(len(estimates))
        self.assertLess(abs(np.mean(estimates) - 22), 4 * error)

    @settings(deadline=None, max_examples=30)
    @given(
        seed=st.integers(0, 1000), n=st.integers(2, 9), m=st.integers(2, 9), dims=st.integers(1, 5)
    )
    def test_laws(self, seed, n, m, dims):
        """Symmetric; no order of features, nor of their entries, matters."""
        a, b = features(n, dims, seed), features(m, dims, seed + 1)
        rng, expected = np.random.RandomState(seed), squared_mmd(a, b)
        entries = rng.permutation(dims)
        self.assertAlmostEqual(squared_mmd(b, a), expected, places=10)
        permuted = squared_mmd(a[rng.permutation(n)][:, entries], b[:, entries])
        self.assertAlmostEqual(permuted, expected, places=10)


class KernelDistanceTest(parameterized.TestCase):
    def test_subsets_as_torch_fidelity_draws_them(self):
        """RandomState(seed), a's subset and then b's, without replacement; its std is np.std."""
        a, b, rng = features(30, 4), features(20, 4, seed=1), np.random.RandomState(7)
        values = [
            by_pairs(a[rng.choice(30, 6, replace=False)], b[rng.choice(20, 6, replace=False)])
            for _ in range(5)
        ]
        mean, error = kernel_distance(a, b, subsets=5, subset_size=6, seed=7)
        self.assertAlmostEqual(mean, np.mean(values), places=10)
        self.assertAlmostEqual(error * np.sqrt(4), np.std(values), places=10)

    def test_equal_distributions_are_zero_within_the_standard_error(self):
        """Few features a subset: subsets hardly overlap."""
        a, b = features(20_000, 16), features(20_000, 16, seed=1)
        mean, error = kernel_distance(a, b, subsets=100, subset_size=100)
        self.assertLess(abs(mean), 3 * error)
        other = kernel_distance(a, 1.5 * b, subsets=100, subset_size=100)
        self.assertGreater(other.mean, 10 * other.standard_error)

    def test_the_standard_error_is_of_the_distance_of_all_features(self):
        a, b = features(300, 4), features(200, 4, seed=1, scale=1.5)
        mean, error = kernel_distance(a, b, subsets=400, subset_size=50)
        self.assertLess(abs(mean - squared_mmd(a, b)), 3 * error)

    def test_half_of_the_features_still_tell_the_error(self):
        """All of them would be the same subset each time, and its deviation 0."""
        a, b = features(100, 4), features(100, 4, seed=1)
        mean, error = kernel_distance(a, b, subset_size=50)
        self.assertGreater(error, 0.01 * abs(squared_mmd(a, 2 * b)) / 100)
        self.assertLess(abs(mean - squared_mmd(a, b)), 4 * error)

    def test_half_precision_counts_like_double(self):
        a, b = features(50, 4).astype(np.float16), features(50, 4, seed=1).astype(np.float16)
        expected = squared_mmd(a.astype(np.float64), b.astype(np.float64))
        self.assertEqual(squared_mmd(a, b), expected)

    @parameterized.parameters(
        ({"a": np.zeros((1, 3))}, r"^a: .* N must be 2"),
        ({"b": np.zeros((0, 3))}, r"^b: .* N must be 2"),
        ({"b": np.zeros((9, 4))}, "^b: .* that of a, 3"),
        ({"a": np.zeros(9)}, "^a: .* shape"),
        ({"b": np.full((9, 3), np.nan)}, "^b: .*27 values"),
        ({"subset_size": 5}, "^subset_size: got 5; .* 4 at most, half"),
        ({"subset_size": 1}, "^subset_size: got 1"),
        ({"subsets": 1}, "^subsets: got 1"),
    )
    def test_what_it_refuses(self, arguments, message):
        usual = {"a": features(9, 3), "b": features(12, 3), "subset_size": 4}
        with self.assertRaisesRegex(UserError, message):
            kernel_distance(**usual | arguments)


if __name__ == "__main__":
    absltest.main()
