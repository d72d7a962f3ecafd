from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from flowmatch_jax.errors import UserError
from flowmatch_jax.metrics.frechet import Moments, frechet_distance


def gaussian(mean, cov, count=100):
    return Moments(count, np.asarray(mean, float), np.asarray(cov, float))


def features(n, dims, seed=0):
    rng = np.random.RandomState(seed)
    return rng.randn(n, dims) @ rng.randn(dims, dims) + rng.randn(dims)


class MomentsTest(parameterized.TestCase):
    @settings(deadline=None, max_examples=50)
    @given(
        sizes=st.lists(st.integers(0, 20), min_size=1, max_size=5),
        dims=st.integers(1, 4),
        offset=st.sampled_from([0.0, 1e6]),
    )
    def test_chunks_equal_one_shot(self, sizes, dims, offset):
        x = features(sum(sizes) + 2, dims) + offset
        chunks = np.split(x, np.cumsum(sizes))
        moments = Moments.empty(dims)
        for chunk in chunks:
            moments = moments.add(chunk)
        self.assertEqual(moments.count, len(x))
        np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=1e-12, atol=1e-9)
        expected = np.cov(x, rowvar=False).reshape(dims, dims)
        np.testing.assert_allclose(moments.cov, expected, rtol=1e-6, atol=1e-8)

    def test_merged_in_any_order(self):
        a, b = (Moments.empty(3).add(features(n, 3, seed=n)) for n in (5, 40))
        for left, right in ((a, b), (b, a)):
            both = left.merge(right)
            x = np.concatenate([features(5, 3, seed=5), features(40, 3, seed=40)])
            np.testing.assert_allclose(both.cov, np.cov(x, rowvar=False), rtol=1e-10)

    def test_saved_and_read_back(self):
        path = Path(self.create_tempdir().full_path) / "moments.npz"
        moments = Moments.empty(3).add(features(10, 3))
        moments.save(path)
        again = Moments.load(path)
        self.assertEqual(again.count, 10)
        np.testing.assert_array_equal(again.mean, moments.mean)
        np.testing.assert_array_equal(again.cov, moments.cov)
        self.assertSameElements(np.load(path).files, ["mu", "sigma", "count"])


class FrechetDistanceTest(parameterized.TestCase):
    def test_gaussians_that_commute(self):
        """Diagonal covariances: sum (m - m')^2 + (s - s')^2."""
        a = gaussian([0.0, 1.0], np.diag([4.0, 9.0]))
        b = gaussian([3.0, -1.0], np.diag([1.0, 16.0]))
        self.assertAlmostEqual(frechet_distance(a, b), 9 + 4 + 1 + 1, places=12)

    @parameterized.parameters(2, 10, 64)
    def test_the_formula_by_matrix_roots(self, dims):
        a, b = (Moments.empty(dims).add(features(5 * dims, dims, seed=s)) for s in (0, 1))
        root = sqrtm(a.cov @ b.cov)
        difference = a.mean - b.mean
        expected = difference @ difference + np.trace(a.cov + b.cov - 2 * np.real(root))
        self.assertAlmostEqual(frechet_distance(a, b) / expected, 1, places=6)
        self.assertAlmostEqual(frechet_distance(b, a) / expected, 1, places=6)

    def test_singular_covariances(self):
        """On a line in space it is the distance on that line: (m - m')^2 + (s - s')^2."""
        line = np.array([[0.6, 0.8, 0.0]])
        x, y = np.random.RandomState(0).randn(2, 50, 1) * [[[1.0]], [[3.0]]] + [[[0.0]], [[2.0]]]
        a, b = (Moments.empty(3).add(points @ line) for points in (x, y))
        expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
        self.assertAlmostEqual(frechet_distance(a, b), expected, places=12)
        self.assertAlmostEqual(frechet_distance(a, a), 0, places=12)

    def test_what_it_refuses(self):
        with self.assertRaisesRegex(UserError, "two features or more"):
            frechet_distance(Moments.empty(2), gaussian([0, 0], np.eye(2)))
        with self.assertRaisesRegex(UserError, "like a's"):
            frechet_distance(gaussian([0], [[1]]), gaussian([0, 0], np.eye(2)))


if __name__ == "__main__":
    absltest.main()
