import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax import marginals
from flowmatch_jax.paths import log_snr, time_at_log_snr
from flowmatch_jax.sampling.schedule import along
from flowmatch_jax.solvers import Solver, integrate
from tests.cases import PATHS, Float64TestCase, coupled_velocity, gaussian_velocity

NAMES = ("ot", "vp", "ve", "cosine")
PAIRS = list(itertools.permutations(NAMES, 2))
# Paths whose ratios of signal to noise are among those of the other path, ends included.
COVERED = [(a, b) for a, b in PAIRS if (a, b) in itertools.product(("ot", "cosine"), ("vp", "ve"))]
POINTS = np.array([[-1.0, 0.5], [0.3, -0.7], [1.2, 1.0]])
NOISE = np.random.RandomState(0).randn(6, 2)


def fields(path):
    """Exact fields: of a Gaussian, and of a mixture of three."""
    smoothed = marginals.smoothed(path, 0.4)
    mixture = lambda t, x: marginals.velocity(smoothed, t, x, jnp.asarray(POINTS, x.dtype))  # noqa: E731
    return gaussian_velocity(path, 0.7, 0.4), mixture


class AlongTest(Float64TestCase):
    @parameterized.parameters(*PAIRS)
    def test_exact_fields_become_exact_fields(self, a, b):
        path, other = PATHS[a], PATHS[b]
        ends = (0.0, other.t_end) if (a, b) in COVERED else ()
        for t in (*ends, 0.2, 0.5, 0.9):
            x = other.mean(jnp.float64(t), POINTS[[0, 1, 2] * 2]) + other.std(t, NOISE) * NOISE
            for field, exact in zip(fields(path), fields(other), strict=True):
                np.testing.assert_allclose(
                    along(field, path, other)(t, x), exact(t, x), rtol=1e-5, atol=1e-5
                )

    def test_noise_that_is_coupled_to_the_data(self):
        path, other = PATHS["ot"], PATHS["cosine"]
        field, exact = (coupled_velocity(of, 0.8, 0.3) for of in (path, other))
        for t in (0.2, 0.5, 0.9):
            np.testing.assert_allclose(
                along(field, path, other)(t, NOISE), exact(t, NOISE), rtol=1e-6
            )

    def test_a_time_for_each_sample(self):
        path, other, t = PATHS["ot"], PATHS["vp"], jnp.linspace(0, PATHS["vp"].t_end, 6)
        got = along(fields(path)[1], path, other)(t, NOISE)
        np.testing.assert_allclose(got, fields(other)[1](t, NOISE), rtol=1e-5, atol=1e-7)

    @parameterized.parameters(*COVERED)
    def test_solutions_stay_multiples_of_each_other(self, a, b):
        """From the state at the noise level at which the other path begins to where it ends."""
        path, other, accurate = PATHS[a], PATHS[b], Solver(rtol=1e-8, atol=1e-8)
        field = fields(path)[1]
        begin, end = (float(time_at_log_snr(path, log_snr(other, t))) for t in (0.0, other.t_end))
        states = integrate(
            field, path.source_std * NOISE, 0.0, end, accurate, save_at=[begin, end]
        ).trajectory
        scale = lambda t, s: float(other.std(t, NOISE).max() / path.std(s, NOISE).max())  # noqa: E731
        moved = along(field, path, other)
        start = scale(0.0, begin) * states[0]
        got = integrate(moved, start, 0.0, other.t_end, accurate).x
        np.testing.assert_allclose(got, scale(other.t_end, end) * states[1], atol=1e-4)

    @parameterized.parameters(("vp", "ot"), ("ve", "cosine"))
    def test_noise_flows_to_the_same_data(self, a, b):
        """To within the path's own ends: signal of 1/150 at VP's, noise of 1/100 at VE's."""
        path, other, accurate = PATHS[a], PATHS[b], Solver(rtol=1e-7, atol=1e-7)
        field = fields(path)[1]
        x = integrate(field, path.source_std * NOISE, 0.0, path.t_end, accurate).x
        moved = along(field, path, other)
        same = integrate(moved, other.source_std * NOISE, 0.0, other.t_end, accurate).x
        np.testing.assert_allclose(same, x, atol=0.03)


class EndsTest(parameterized.TestCase):
    @parameterized.parameters(*PAIRS)
    def test_finite_at_both_ends_in_float32(self, a, b):
        path, other = PATHS[a], PATHS[b]
        field = jax.jit(along(fields(path)[1], path, other))
        for t in (0.0, other.t_end):
            x = other.source_std * jnp.asarray(NOISE, jnp.float32)
            self.assertTrue(bool(jnp.isfinite(field(t, x)).all()))


if __name__ == "__main__":
    absltest.main()
