"""What one's own parts may not return; what they may is in end_to_end/own_parts_test.py."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.arrays import expand_time
from flowmatch_jax.couplings import independent
from flowmatch_jax.objectives import matching
from flowmatch_jax.parts import own
from flowmatch_jax.paths import GaussianPath, optimal_transport, variance_exploding
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.times import edm_grid, skewed, uniform_grid

NAME = "mine:make"
OT = optimal_transport()
X = jax.ShapeDtypeStruct((8, 2), jnp.float32)
PARAMS = {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}


def apply(params, t, x, label=None, condition=None, key=None):
    return params["w"] * x


def path(
    mean=lambda t, x: expand_time(t, x) * x, std=lambda t, x: 1 - 0.9 * expand_time(t, x), **a
):
    return GaussianPath(mean, std, **a)


def returns(value):
    """A function that returns a value, or raises it."""

    def function(*_, **__):
        if isinstance(value, Exception):
            raise value
        return value

    return function


class OwnPartsTest(parameterized.TestCase):
    def refuses(self, message, check, *args):
        with self.assertRaisesRegex(UserError, f"^name: got '{NAME}'; it {message}"):
            check("name", NAME, *args)

    def test_paths(self):
        for good in (OT, variance_exploding(), path(), path(std=lambda t, x: 0.5)):
            own.check_path("name", NAME, good)

    @parameterized.parameters(
        (None, "returns NoneType; return a GaussianPath"),
        (path(mean=lambda t, x: t), r"returns \(float32 \[\], float32 \[\]\); mean and std of x_1"),
        (path(mean=lambda t, x: t * x), "raised ValueError: Incompatible shapes"),
        (path(std=lambda t, x: jnp.ones((5, *x.shape))), "returns"),
        (path(std=returns(KeyError("x"))), "raised KeyError: 'x'"),
        (path(t_end=1.5), r"returns \(1.5, 1.0\); t_end is in \(0, 1\] and source_std is above 0"),
        (path(source_std=0.0), "returns"),
    )
    def test_what_is_no_path(self, path, message):
        self.refuses(message, own.check_path, path)

    def test_couplings(self):
        own.check_coupling("name", NAME, independent, X)
        for value, message in (
            (
                None,
                r"returns NoneType; a coupling of x_1 float32 \[8, 2\] returns float32 \[8, 2\]",
            ),
            (jnp.zeros(8), r"returns float32 \[8\]"),
            (jnp.zeros((8, 2), jnp.bfloat16), r"returns bfloat16 \[8, 2\]"),
            (ValueError("no"), "raised ValueError: no"),
        ):
            self.refuses(message, own.check_coupling, returns(value), X)

    def test_times(self):
        own.check_time("name", NAME, skewed, 8, OT)
        for value, message in (
            (
                jnp.zeros(3),
                r"returns float32 \[3\]; return float32 \[8\] from 0 to path.t_end = 1.0",
            ),
            (0.5, "returns 0.5"),
            (jnp.full(8, 1.5), "returns times from 1.5 to 1.5"),
            (jnp.full(8, jnp.nan), "returns times from nan to nan"),
            (ValueError("no"), "raised ValueError: no"),
        ):
            self.refuses(message, own.check_time, returns(value), 8, OT)

    def test_grids(self):
        for grid in (uniform_grid, edm_grid):
            own.check_grid("name", NAME, grid(4, OT), 4, OT)
        for grid in ([0, 0.5, 1], [1, 0.5, 0], [0, 0.1, 0.2], [0, np.nan, 1], [0, 0, 1], 3.0):
            n = 3 if grid == [0, 0.5, 1] else 2
            message = f"returns .*; return {n + 1} increasing times from 0 to path.t_end = 1.0"
            self.refuses(message, own.check_grid, np.asarray(grid), n, OT)

    def test_noise_levels(self):
        own.check_noise("noise", NAME, lambda path, t: path.t_end - t, OT)
        for value, message in (
            (jnp.zeros(3), r"returns float32 \[3\]; return float32 \[\] for t float32 \[\]"),
            (ValueError("no"), "raised ValueError: no"),
        ):
            self.refuses(message, own.check_noise, returns(value), OT)

    def test_networks(self):
        own.check_network("name", NAME, returns(PARAMS), apply, X, {})
        for params, call, message in (
            (
                PARAMS,
                returns(jnp.zeros((8, 3))),
                r"returns float32 \[8, 3\]; for x float32 \[8, 2\]",
            ),
            (PARAMS, returns(None), "returns NoneType"),
            (PARAMS, returns(ValueError("no")), "raised ValueError: no"),
            (ValueError("no"), apply, "raised ValueError: no"),
            (
                {"w": jnp.zeros(2, int)},
                apply,
                r"returns \(int32 \[2\]\); its parameters are arrays",
            ),
            ({}, apply, r"returns \(\); its parameters are arrays of floats, one or more"),
            ({"w": "text"}, apply, "raised TypeError"),
        ):
            self.refuses(message, own.check_network, returns(params), call, X, {})

    def test_a_network_that_fails_in_training_only(self):
        call = lambda params, t, x, key: x if key is None else jnp.zeros(3)  # noqa: E731
        arguments = (returns(PARAMS), call, X, {})
        self.refuses(r"returns float32 \[3\]", own.check_network, *arguments)

    def test_objectives(self):
        batch = {"x": X}
        good = matching("flow_matching", OT)
        own.check_objective("name", NAME, good, apply, PARAMS, batch)
        loss = jnp.zeros(())
        for objective, message in (
            (None, "returns NoneType; return a function"),
            (
                returns(loss),
                r"returns float32 \[\]; return a scalar loss, and a dict of scalars with",
            ),
            (returns((loss, {})), "returns"),
            (
                returns((jnp.zeros(8), {"loss": loss})),
                r"returns \(float32 \[8\], loss: float32 \[\]",
            ),
            (returns((loss, {"loss": jnp.zeros(8)})), "returns"),
            (returns(ValueError("no")), "raised ValueError: no"),
            (returns((jnp.zeros((), int), {"loss": loss})), "raised TypeError: grad requires real"),
        ):
            arguments = (objective, apply, PARAMS, batch)
            self.refuses(message, own.check_objective, *arguments)


if __name__ == "__main__":
    absltest.main()
