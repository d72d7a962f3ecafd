from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.metrics.frechet import Moments
from flowmatch_jax.metrics.statistics import Kind, Statistics, is_statistics
from flowmatch_jax.runtime.errors import UserError

MOMENTS = Moments.empty(3).add(np.random.RandomState(0).randn(9, 3))


class StatisticsTest(parameterized.TestCase):
    @parameterized.parameters((None, None), ("inception", (4, 5, 3)))
    def test_round_trip(self, extractor, shape):
        path = Path(self.create_tempdir().full_path) / "a.npz"
        path.write_bytes(Statistics(MOMENTS, extractor, shape).to_bytes())
        self.assertTrue(is_statistics(path))
        found = Statistics.load(path)
        self.assertEqual(found.kind, Kind(3, extractor, shape))
        self.assertEqual(found.moments.count, 9)
        np.testing.assert_array_equal(found.moments.mean, MOMENTS.mean)
        np.testing.assert_array_equal(found.moments.cov, MOMENTS.cov)

    def test_files_of_other_projects(self):
        path = Path(self.create_tempdir().full_path) / "a.npz"
        np.savez(path, mu=MOMENTS.mean, sigma=MOMENTS.cov)
        self.assertTrue(is_statistics(path))
        self.assertEqual(Statistics.load(path).kind, Kind(3, None, None))
        np.savez(path, mu=MOMENTS.mean)
        self.assertFalse(is_statistics(path))
        path.write_bytes(path.read_bytes()[60:])  # its directory is whole, but lies elsewhere
        self.assertFalse(is_statistics(path))
        path.write_bytes(b"no npz")
        self.assertFalse(is_statistics(path))
        self.assertFalse(is_statistics(path.parent))

    @parameterized.parameters(
        (Kind(4, "pixels", (2, 2, 1)), None),
        (Kind(4, None, None), None),
        (Kind(4, "inception", (2, 2, 1)), "got 'a.npz of inception'; the extractor is pixels"),
        (Kind(4, "pixels", (4, 1, 1)), r"got 'a.npz of images \(4, 1, 1\)'; the samples are"),
        (Kind(4, "pixels", (2, 2, 3)), r"got 'a.npz of images \(2, 2, 3\)'; the samples are"),
        (Kind(5, None, None), "got 'a.npz of 5 features'; pixels has 4 features"),
    )
    def test_kinds_that_can_be_compared(self, held, message):
        wanted = Kind(4, "pixels", (2, 2, 1))
        if message is None:
            return held.check_like(wanted, Path("a.npz"))
        with self.assertRaisesRegex(UserError, message):
            held.check_like(wanted, Path("a.npz"))

    def test_a_network_makes_grey_images_rgb(self):
        wanted = Kind(1280, "efficientnet_lite0", (8, 8, 1))
        Kind(1280, "efficientnet_lite0", (8, 8, 3)).check_like(wanted, Path("a.npz"))
        with self.assertRaisesRegex(UserError, r"of images \(9, 8, 1\)"):
            Kind(1280, "efficientnet_lite0", (9, 8, 1)).check_like(wanted, Path("a.npz"))


if __name__ == "__main__":
    absltest.main()
