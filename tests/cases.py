"""What several test files share: float64, the paths, Gaussian data in closed form."""

import jax
import jax.numpy as jnp
from absl.testing import parameterized

from flowmatch_jax import paths

PATHS = {
    "ot": paths.optimal_transport(),
    "ot_sigma_min_0": paths.optimal_transport(0.0),
    "ot_sigma_min_0.1": paths.optimal_transport(0.1),
    "vp": paths.variance_preserving(),
    "ve": paths.variance_exploding(),
    "cosine": paths.cosine(),
}

EACH_PATH = [{"testcase_name": name, "path": path} for name, path in PATHS.items()]


class Float64TestCase(parameterized.TestCase):
    """Runs each test in float64."""

    def setUp(self):
        super().setUp()
        self.enterContext(jax.enable_x64(True))


def coefficients(path, t):
    """(alpha, sigma) at a scalar t: mu_t = alpha x_1 for all paths here."""
    c = paths.coefficients(path, t, jnp.ones(()))
    return c.alpha, c.sigma


def gaussian_velocity(path, mean, std):
    """Marginal velocity of data N(mean, std^2 I): alpha' m + V' / 2V (x - alpha m)."""

    def field(t, x):
        t = jnp.asarray(t, x.dtype)
        moments = lambda t: (  # noqa: E731
            path.mean(t, jnp.ones_like(x)),
            (path.mean(t, jnp.ones_like(x)) * std) ** 2 + path.std(t, x) ** 2 + jnp.zeros_like(x),
        )
        (alpha, variance), (alpha_dot, variance_dot) = jax.jvp(moments, (t,), (jnp.ones_like(t),))
        return alpha_dot * mean + variance_dot / (2 * variance) * (x - alpha * mean)

    return field


def coupled_velocity(path, slope, std):
    """Marginal velocity of x_1 = slope x_0 + std z with x_0 and z ~ N(0, I)."""

    def field(t, x):
        c = paths.coefficients(path, jnp.asarray(t, x.dtype), x)
        with_x0 = c.alpha * slope + c.sigma  # the covariance of x_0 and x_t
        with_x1 = c.alpha * (slope**2 + std**2) + c.sigma * slope
        variance = c.alpha * with_x1 + c.sigma * with_x0
        return (c.alpha_dot * with_x1 + c.sigma_dot * with_x0) / variance * x

    return field


def optimal_prediction(path, mean, std, kind):
    """What a perfect network predicts for data N(mean, std^2 I): a posterior expectation."""

    def predict(t, x):
        c = paths.coefficients(path, t, x)
        variance = (c.alpha * std) ** 2 + c.sigma**2
        data = mean + c.alpha * std**2 / variance * (x - c.alpha * mean)
        noise = c.sigma / variance * (x - c.alpha * mean)
        return {
            "velocity": c.alpha_dot * data + c.sigma_dot * noise,
            "noise": noise,
            "score": -(x - c.alpha * mean) / variance,
            "data": data,
        }[kind]

    return predict
