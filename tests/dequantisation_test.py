import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy.stats import kstest, norm, truncnorm

from flowmatch_jax import likelihood, marginals
from flowmatch_jax.dequantisation import DEQUANTISATIONS, DEVIATIONS, truncated_normal, uniform
from flowmatch_jax.paths import log_snr
from flowmatch_jax.pixels import centres
from flowmatch_jax.solvers import Solver
from tests.cases import PATHS, Float64TestCase, coefficients

TIGHT = Solver("dopri5", rtol=1e-7, atol=1e-7)


class DrawTest(Float64TestCase):
    @parameterized.product(name=["ot", "vp", "ve", "cosine"], levels=[17, 256])
    def test_truncated_normal(self, name, levels):
        """x = alpha c + sigma eps, of the truncated normal by SciPy, and its log-density."""
        of = truncated_normal(PATHS[name], levels)
        alpha, sigma = (float(c) for c in coefficients(of.path, of.path.t_end))
        image = np.random.RandomState(0).randint(levels, size=(40, 4, 4, 3))
        x, log_q = of.likelihood(jax.random.key(0), image)
        eps = (np.asarray(x) - alpha * np.asarray(centres(image, levels))) / sigma
        tau = alpha / (levels * sigma)
        law = truncnorm(-tau, tau)
        self.assertGreater(kstest(eps.ravel(), law.cdf).pvalue, 1e-3)
        expected = law.logpdf(np.clip(eps, -tau, tau)).sum(axis=(1, 2, 3)) - 48 * math.log(sigma)
        np.testing.assert_allclose(log_q, expected, rtol=1e-4)
        self.assertLessEqual(of.path.t_end, PATHS[name].t_end)
        if name != "ve":  # whose noise ends above that of 256 levels
            self.assertAlmostEqual(tau, DEVIATIONS, places=3)
            self.assertAlmostEqual(float(log_snr(of.path, of.path.t_end)), math.log(3 * levels), 3)
        self.assertAlmostEqual(of.scale(of.path) * alpha, 1, places=6)

    def test_uniform(self):
        of = uniform(PATHS["ot"], 17)
        image = np.random.RandomState(0).randint(17, size=(40, 4, 4, 3))
        x, log_q = of.likelihood(jax.random.key(0), image)
        within = (np.asarray(x) + 1) * 17 / 2 - image
        self.assertGreater(kstest(within.ravel(), "uniform").pvalue, 1e-3)
        np.testing.assert_allclose(log_q, 48 * math.log(17 / 2))
        self.assertIs(of.path, PATHS["ot"])


class BitsTest(Float64TestCase):
    """Of distributions of pixels that are known."""

    def bits(self, name, path, levels, image, data, weights=None, samples=1):
        """By the field of independent pixels that take ``data`` with these weights."""
        of = DEQUANTISATIONS[name](path, levels)

        def field(t, x):
            pixels = x.reshape(-1, 1)
            return marginals.velocity(of.path, t, pixels, data[:, None], weights).reshape(x.shape)

        result = likelihood.image_bits_per_dim(
            field,
            image,
            jax.random.key(0),
            TIGHT,
            draw=of.likelihood,
            samples=samples,
            divergence="exact",
            t1=of.path.t_end,
            source_std=of.path.source_std,
        )
        self.assertTrue(result.converged)
        return np.asarray(result.bits_per_dim)

    @parameterized.parameters(("ot", 17, 1e-2), ("vp", 17, 1e-2), ("ot", 256, 1e-2))
    def test_uniform_pixels_take_all_bits(self, name, levels, tolerance):
        """log2(levels): each pixel has one of the centres, all with the same probability."""
        image = np.random.RandomState(0).randint(levels, size=(6, 2, 2, 1))
        found = self.bits(
            "truncated_normal", PATHS[name], levels, image, centres(jnp.arange(levels), levels)
        )
        np.testing.assert_allclose(found.mean(), math.log2(levels), atol=tolerance)

    @parameterized.parameters(1, 8)
    def test_pixels_of_a_discretised_gaussian(self, samples):
        """The probabilities of the levels are those of a Gaussian in their bins."""
        levels, mean, std = 17, 0.1, 0.3
        edges = np.linspace(-1, 1, levels + 1)
        edges[[0, -1]] = -np.inf, np.inf
        weights = np.diff(norm(mean, std).cdf(edges))
        image = np.random.RandomState(0).choice(levels, p=weights, size=(8, 2, 2, 1))
        data = centres(jnp.arange(levels), levels)
        found = self.bits("truncated_normal", PATHS["ot"], levels, image, data, weights, samples)
        exact = -np.log2(weights)[image].mean(axis=(1, 2, 3))
        np.testing.assert_allclose(found, exact, atol=0.02)
        self.assertGreater((found - exact).mean(), 0)  # a bound


if __name__ == "__main__":
    absltest.main()
