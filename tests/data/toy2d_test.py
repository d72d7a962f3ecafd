import functools
import math

import numpy as np
from absl.testing import absltest, parameterized
from scipy.stats import chisquare

from flowmatch_jax.data import toy2d
from flowmatch_jax.data.toy2d import DENSITIES, checkerboard, rings, spirals

REACH, CELLS, SUBCELLS = 5.0, 80, 10  # the edges of the densities lie on edges of subcells


@functools.cache
def train(name):
    return DENSITIES[name]("train")


@functools.cache
def quadrature(name):
    """Log-density [cells, subcells] at the midpoints of [-5, 5]^2, and the area of a subcell."""
    h = 2 * REACH / (CELLS * SUBCELLS)
    side = (np.arange(CELLS * SUBCELLS) + 0.5) * h - REACH
    x = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1)
    cells = x.reshape(CELLS, SUBCELLS, CELLS, SUBCELLS, 2).swapaxes(1, 2)
    logs = train(name).log_density(cells.reshape(-1, 2))
    return logs.reshape(CELLS**2, SUBCELLS**2), h**2


class DensitiesTest(parameterized.TestCase):
    @parameterized.parameters(*DENSITIES)
    def test_integrates_to_1(self, name):
        log_p, area = quadrature(name)
        self.assertAlmostEqual(np.exp(log_p).sum() * area, 1, delta=2e-4)

    @parameterized.parameters(*DENSITIES)
    def test_points_have_the_density(self, name):
        """Counts in cells that expect 20 or more, and in all others together."""
        log_p, area = quadrature(name)
        x = train(name).x[:300_000]
        column, row = np.floor((x + REACH) / (2 * REACH / CELLS)).astype(int).T
        counts = np.bincount(CELLS * column + row, minlength=CELLS**2)
        expected = len(x) * np.exp(log_p).sum(axis=1) * area
        full = expected >= 20
        counts, expected = (np.append(v[full], len(x) - v[full].sum()) for v in (counts, expected))
        self.assertGreater(full.sum(), 200)
        if expected[-1] < 1:  # all cells are full
            self.assertEqual(counts[-1], 0)
            counts, expected = counts[:-1], expected[:-1] * counts[:-1].sum() / expected[:-1].sum()
        self.assertGreater(chisquare(counts, expected).pvalue, 1e-3)

    @parameterized.parameters(*DENSITIES)
    def test_entropy(self, name):
        """Of the test points, against -int p log p."""
        log_p, area = quadrature(name)
        inside = log_p[np.isfinite(log_p)]
        exact = -np.sum(np.exp(inside) * inside) * area
        source = DENSITIES[name]("test")
        error = source.log_density(source.x).std() / math.sqrt(len(source))
        self.assertAlmostEqual(source.entropy, exact, delta=4 * error + 1e-3)

    @parameterized.parameters(
        ("checkerboard", 32 / 3),
        ("eight_gaussians", 8 + 2 / 8),
        # |c|^2 + E r^2 + 2 c . E r (cos a, sin a)
        ("two_moons", 1.25 + 4.04 - 2 * 0.5 * 2 * 2 / math.pi),
        ("pinwheel", 4 * (1 + 0.3**2 + 0.1**2)),
        ("spirals", (0.5**2 + 3.5**2) / 2 * math.pi**2 / 9 + 0.1**2),
        ("rings", 0.75**2 * (1 + 4 + 9 + 16) / 4 + 0.08**2),
    )
    def test_moments(self, name, squared_radius):
        """Mean 0, and E |x|^2 in closed form."""
        x = train(name).x.astype(np.float64)
        error = 4 * x.std(axis=0) / math.sqrt(len(x))
        np.testing.assert_array_less(np.abs(x.mean(axis=0)), error)
        squares = (x**2).sum(axis=1)
        error = 4 * squares.std() / math.sqrt(len(x))
        self.assertAlmostEqual(squares.mean(), squared_radius, delta=error)

    @parameterized.parameters(*DENSITIES)
    def test_data(self, name):
        source, test = train(name), DENSITIES[name]("test")
        self.assertEqual((source.name, source.split, test.split), (name, "train", "test"))
        self.assertEqual((source.x.shape, source.x.dtype), ((1_000_000, 2), np.float32))
        self.assertEqual(test.x.shape, (10_000, 2))
        self.assertFalse(source.is_image)
        self.assertCountEqual(source[0], ["x"])
        np.testing.assert_array_equal(test.x, DENSITIES[name]("test").x)
        # Every point is where the density is not 0, and almost none is in both splits.
        self.assertTrue(np.isfinite(source.log_density(source.x)).all())
        self.assertTrue(np.isfinite(source.log_density(test.x)).all())
        points, seen = (np.ascontiguousarray(s.x).view(np.complex64) for s in (test, source))
        self.assertLess(np.isin(points, seen).sum(), 5)


class CheckerboardTest(parameterized.TestCase):
    @parameterized.parameters("train", "test")
    def test_uniform_on_the_dark_squares(self, split):
        source = checkerboard(split)
        column, row = np.floor(source.x[:10_000] / 2).astype(int).T + 2
        self.assertTrue(((column + row) % 2 == 0).all())
        counts = np.unique(4 * column + row, return_counts=True)[1]
        self.assertLen(counts, 8)
        self.assertGreater(chisquare(counts).pvalue, 1e-3)
        self.assertAlmostEqual(source.entropy, math.log(8 * 2 * 2))

    def test_no_density_elsewhere(self):
        light_or_outside = np.array([[-1.0, 1.0], [3.0, 1.0], [5.0, 1.0], [-5.0, -5.0]])
        np.testing.assert_array_equal(toy2d.checkerboard_log_density(light_or_outside), -np.inf)


class PolarTest(absltest.TestCase):
    def test_a_radius_below_0_comes_back(self):
        """p(r) of |N(m, s^2)| integrates to 1 also where most of the normal is below 0."""
        r = (np.arange(100_000) + 0.5) / 20_000
        for mean in (-0.5, 0.0, 0.5):
            p = r * np.exp(toy2d._log_radial(r, mean, 0.4))
            self.assertAlmostEqual(p.sum() / 20_000, 1, places=6)

    def test_finite_at_the_origin(self):
        for density in (rings, spirals):
            self.assertLess(density("test").log_density(np.zeros((1, 2)))[0], 0)


if __name__ == "__main__":
    absltest.main()
