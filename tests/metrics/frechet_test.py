from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from flowmatch_jax.metrics import frechet
from flowmatch_jax.metrics.frechet import Moments, frechet_distance
from flowmatch_jax.runtime.errors import UserError


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

    def test_features_it_refuses(self):
        moments = Moments.empty(3).add(features(10, 3))
        for wrong, message in (
            (features(4, 2), r"\(4, 2\); they must be \[N, 3\]"),
            (features(4, 1), r"\(4, 1\)"),
            (np.zeros(3), "its shape must be"),
            (np.array([[0, np.nan, np.inf]]), "2 values that are NaN or infinite"),
        ):
            with self.assertRaisesRegex(UserError, f"^features: .*{message}"):
                moments.add(wrong)
        with self.assertRaisesRegex(UserError, "^other: "):
            moments.merge(Moments.empty(2))


class PublishedStatisticsTest(parameterized.TestCase):
    """Files of mu and sigma that others wrote."""

    def path(self):
        return Path(self.create_tempdir().full_path) / "statistics.npz"

    @parameterized.product(
        write=[np.savez, np.savez_compressed],
        besides=[
            {},  # pytorch-fid, clean-fid, EDM
            {  # ADM's reference batches
                "mu_s": np.ones(5),
                "sigma_s": np.eye(5),
                "arr_0": np.zeros((7, 4, 4, 3), np.uint8),
            },
        ],
    )
    def test_their_count_is_not_known(self, write, besides):
        path, moments = self.path(), Moments.empty(3).add(features(10, 3))
        write(path, mu=moments.mean, sigma=moments.cov, **besides)
        read = Moments.load(path)
        self.assertIsNone(read.count)
        self.assertAlmostEqual(frechet_distance(moments, read), 0, places=10)
        other = gaussian([1, 2, 3], np.eye(3))
        self.assertEqual(frechet_distance(read, other), frechet_distance(moments, other))
        for together in (lambda: read.add(features(2, 3)), lambda: moments.merge(read)):
            with self.assertRaisesRegex(UserError, "^count: got None"):
                together()

    def test_saved_again_the_count_stays_unknown(self):
        path, moments = self.path(), gaussian([1], [[2]], count=None)
        moments.save(path)
        self.assertIsNone(Moments.load(path).count)
        self.assertSameElements(np.load(path).files, ["mu", "sigma"])

    def test_single_precision(self):
        path = self.path()
        np.savez(path, mu=np.ones(2, np.float32), sigma=np.eye(2, dtype=">f4"))
        read = Moments.load(path)
        self.assertEqual((read.mean.dtype, read.cov.dtype), (np.float64, np.float64))

    @parameterized.parameters(
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8)}, "it holds arr_0$"),
        ({"mu": np.ones(2)}, r"it holds mu \(2,\)$"),
        ({"mu": np.ones(2), "sigma": np.eye(3)}, r"it holds mu \(2,\), sigma \(3, 3\)$"),
        ({"mu": np.ones((2, 1)), "sigma": np.eye(2)}, "must hold mu"),
        ({"mu": np.ones(0), "sigma": np.ones((0, 0))}, "must hold mu"),
        ({"mu": np.ones(2), "sigma": np.full((2, 2), np.nan)}, "finite"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, "must hold mu"),
        ({"mu": np.ones(2), "sigma": np.eye(2), "count": np.ones(2)}, "a number as count"),
        ({"mu": np.array([{}]), "sigma": np.eye(1)}, "cannot be read"),
        ({}, "it holds none$"),
    )
    def test_files_of_other_things(self, arrays, message):
        path = self.path()
        np.savez(path, **arrays)
        with self.assertRaisesRegex(UserError, f"^path: got '{path}'; .*{message}"):
            Moments.load(path)

    def test_moments_that_unpack_to_more_than_can_be(self):
        """Told by the archive's directory, before any is unpacked."""
        path = self.path()
        np.savez_compressed(path, mu=np.zeros(20), sigma=np.zeros((20, 20)), other=np.zeros(9999))
        size = sum(128 + 8 * n for n in (20, 400))
        with mock.patch.object(frechet, "LARGEST", size):
            self.assertEqual(Moments.load(path).mean.shape, (20,))
        with (
            mock.patch.object(frechet, "LARGEST", size - 1),
            self.assertRaisesRegex(UserError, f"unpacks to {size:,} bytes"),
        ):
            Moments.load(path)

    def test_no_file_and_damaged_ones(self):
        path = self.path()
        np.savez_compressed(path, mu=features(1, 20)[0], sigma=features(20, 20))
        whole = path.read_bytes()
        damaged = [whole[:n] for n in range(0, len(whole), 97)]
        damaged += [whole[:n] + b"\xff\xff" + whole[n + 2 :] for n in range(60, 2000, 97)]
        damaged += [b"no archive", np.random.RandomState(0).bytes(500)]
        for content in damaged:
            path.write_bytes(content)
            with self.assertRaisesRegex(UserError, f"^path: got '{path}'; it cannot be read"):
                Moments.load(path)
        for missing in (path.parent, path.parent / "none.npz"):
            with self.assertRaisesRegex(UserError, f"^path: got '{missing}'; it cannot be read"):
                Moments.load(missing)


class FrechetDistanceTest(parameterized.TestCase):
    def test_gaussians_that_commute(self):
        """Diagonal covariances: sum (m - m')^2 + (s - s')^2."""
        a = gaussian([0.0, 1.0], np.diag([4.0, 9.0]))
        b = gaussian([3.0, -1.0], np.diag([1.0, 16.0]))
        self.assertAlmostEqual(frechet_distance(a, b), 9 + 4 + 1 + 1, places=12)

    @parameterized.parameters(2, 10, 64, 512)
    def test_the_formula_by_matrix_roots(self, dims):
        a, b = (Moments.empty(dims).add(features(5 * dims, dims, seed=s)) for s in (0, 1))
        root = sqrtm(a.cov @ b.cov)
        difference = a.mean - b.mean
        expected = difference @ difference + np.trace(a.cov + b.cov - 2 * np.real(root))
        np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-9)
        np.testing.assert_allclose(frechet_distance(b, a), expected, rtol=1e-9)

    def test_singular_covariances(self):
        """On a line in space it is the distance on that line: (m - m')^2 + (s - s')^2."""
        line = np.array([[0.6, 0.8, 0.0]])
        x, y = np.random.RandomState(0).randn(2, 50, 1) * [[[1.0]], [[3.0]]] + [[[0.0]], [[2.0]]]
        a, b = (Moments.empty(3).add(points @ line) for points in (x, y))
        expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
        self.assertAlmostEqual(frechet_distance(a, b), expected, places=12)
        self.assertAlmostEqual(frechet_distance(a, a), 0, places=12)

    def test_fewer_features_than_dimensions(self):
        """S = X^T X of scaled deviations X; tr (S_a S_b)^1/2 is the nuclear norm of X_a X_b^T."""
        a, b = features(12, 200), features(9, 200, seed=1)
        x, y = ((z - z.mean(axis=0)) / np.sqrt(len(z) - 1) for z in (a, b))
        difference = a.mean(axis=0) - b.mean(axis=0)
        spread = np.sum(x**2) + np.sum(y**2) - 2 * np.linalg.norm(x @ y.T, "nuc")
        moments = (Moments.empty(200).add(z) for z in (a, b))
        expected = difference @ difference + spread
        np.testing.assert_allclose(frechet_distance(*moments), expected, rtol=1e-10)

    def test_one_point_has_the_distance_of_its_mean_and_the_other_spread(self):
        a = gaussian([1.0, 2.0], np.zeros((2, 2)))
        b = gaussian([4.0, 6.0], [[2.0, 1.0], [1.0, 3.0]])
        self.assertAlmostEqual(frechet_distance(a, b), 25 + 5, places=12)

    def test_what_it_refuses(self):
        with self.assertRaisesRegex(UserError, "two features or more"):
            frechet_distance(Moments.empty(2), gaussian([0, 0], np.eye(2)))
        with self.assertRaisesRegex(UserError, "like a's"):
            frechet_distance(gaussian([0], [[1]]), gaussian([0, 0], np.eye(2)))


if __name__ == "__main__":
    absltest.main()
