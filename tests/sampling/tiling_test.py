import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmatch_jax.networks import pure_apply
from flowmatch_jax.networks.unet import UNet
from flowmatch_jax.sampling.tiling import fitting, in_batches, places, tiled, windows
from flowmatch_jax.solvers import Solver, integrate
from tests.cases import Float64TestCase

SIDES = st.integers(2, 9).flatmap(lambda side: st.tuples(st.just(side), st.integers(0, side // 2)))


def local(params, t, x, label=None, condition=None, key=None):
    """A pixel's own affair."""
    t = jnp.broadcast_to(t, x.shape[:1])[:, None, None, None]
    shift = 0 if label is None else label[:, None, None, None]
    return params * jnp.sin(3 * x) * (1 + t) + condition + shift


def less_its_mean(params, t, x, label=None, condition=None, key=None):
    """What a network does that sees all of a tile: each tile has another constant."""
    return condition - condition.mean(axis=(1, 2), keepdims=True)


class PlacesTest(parameterized.TestCase):
    @given(SIDES, st.integers(1, 40), st.integers(1, 40))
    @settings(max_examples=50, deadline=None)
    def test_tiles_cover_the_canvas(self, tile, height, width):
        side, overlap = tile
        sides = fitting(height, side, overlap), fitting(width, side, overlap)
        for length, least in zip(sides, (height, width), strict=True):
            self.assertGreaterEqual(length, max(least, side))
            self.assertLess(length, max(least, side) + side - overlap)  # no tile too many
        rows, columns = places(sides, side, overlap)
        covered = np.zeros(sides, int)
        np.add.at(covered, (rows, columns), 1)
        self.assertGreater(covered.min(), 0)
        self.assertLessEqual(covered.max(), 4 if overlap else 1)

    @given(SIDES)
    @settings(max_examples=20, deadline=None)
    def test_windows_of_neighbours_sum_to_one(self, tile):
        side, overlap = tile
        sides = (side + 2 * (side - overlap),) * 2
        total = np.zeros((*sides, 1))
        np.add.at(total, places(sides, side, overlap), windows(side, overlap))
        inner = slice(overlap, sides[0] - overlap)
        np.testing.assert_allclose(total[inner, inner], 1, rtol=1e-6)
        self.assertGreater(total.min(), 0)


class TiledTest(Float64TestCase):
    def canvas(self, sides, batch=2, seed=0):
        rng = np.random.RandomState(seed)
        return rng.randn(batch, *sides, 1), rng.randn(batch, *sides, 3)

    @parameterized.product(overlap=(0, 2, 4), batch=(1, 5, 100))
    def test_of_a_local_field_tiles_leave_no_trace(self, overlap, batch):
        """Whole solves agree, for each of two canvases with a label of its own."""
        sides = fitting(17, 8, overlap), fitting(11, 8, overlap)
        x, condition = self.canvas(sides)
        inputs = {"label": jnp.array([1, 2]), "condition": condition[..., :1]}

        def solve(apply):
            field = lambda t, x: apply(0.7, t, x, **inputs)  # noqa: E731
            return integrate(field, jnp.asarray(x), solver=Solver("ab2", steps=6)).x

        canvas = tiled(local, 8, overlap, batch)
        np.testing.assert_allclose(solve(canvas), solve(local), rtol=1e-6, atol=1e-6)

    def test_one_tile_is_the_network_itself(self):
        network = UNet(1, 8, (1,), 1, (), condition_channels=3)
        x, condition = (jnp.asarray(a, jnp.float32) for a in self.canvas((8, 8)))
        t = jnp.array([0.2, 0.8], jnp.float32)
        init = jax.jit(network.init)
        params = init(jax.random.key(0), t, x, condition=condition)["params"]
        params = jax.tree.map(lambda p: p + 0.05, params)
        apply = pure_apply(network)
        expected = jax.jit(apply)(params, t, x, condition=condition)
        got = jax.jit(tiled(apply, 8, 2, 10))(params, t, x, condition=condition)
        self.assertGreater(float(jnp.abs(expected).max()), 1e-3)
        np.testing.assert_allclose(got, expected, atol=1e-5)

    @parameterized.parameters((0, True), (8, False))
    def test_seams(self, overlap, visible):
        """Tiles that differ by a constant: steps across borders are no larger than elsewhere.

        On white noise that drifts, the squared step from column to column, at tiles' borders
        against all others, in standard errors of their difference.
        """
        side = 16
        sides = fitting(400, side, overlap), fitting(400, side, overlap)
        noise, _ = self.canvas(sides, 1)
        drift = np.cumsum(np.random.RandomState(1).randn(sides[1]))[:, None] * 0.7
        condition = jnp.asarray(0.5 * noise + drift)
        apply = tiled(less_its_mean, side, overlap, 64)
        made = np.asarray(apply(None, 0.0, jnp.zeros_like(condition), condition=condition))[0]
        steps = np.diff(made[..., 0], axis=1) - np.diff(np.asarray(condition)[0, ..., 0], axis=1)
        borders = np.zeros(sides[1], bool)
        borders[:: side - overlap] = True
        at, elsewhere = (
            np.mean(steps[:, kind] ** 2, axis=0) for kind in (borders[1:], ~borders[1:])
        )
        error = np.hypot(at.std() / np.sqrt(len(at)), elsewhere.std() / np.sqrt(len(elsewhere)))
        excess = (at.mean() - elsewhere.mean()) / error
        if visible:
            self.assertGreater(excess, 4)
        else:
            self.assertLess(excess, 2)

    def test_so_many_tiles_at_a_time_at_most(self):
        seen = []

        def watch(params, t, x, **_):
            seen.append(x.shape)
            return x

        x = jnp.asarray(self.canvas((20, 20), 1)[0])
        np.testing.assert_allclose(tiled(watch, 4, 0, 9)(None, 0.5, x), x, rtol=1e-6)
        self.assertEqual(set(seen), {(9, 4, 4, 1)})  # 25 tiles in three rounds of nine

    @parameterized.parameters(1, 3, 7, 50)
    def test_in_batches(self, batch):
        x = jnp.arange(14.0).reshape(7, 2)
        got = in_batches(lambda part: part["x"] * part["t"][:, None], {"x": x, "t": x[:, 0]}, batch)
        np.testing.assert_array_equal(got, x * x[:, :1])


if __name__ == "__main__":
    absltest.main()
