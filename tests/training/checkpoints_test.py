from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from flowmatch_jax.errors import UserError
from flowmatch_jax.mesh import make_mesh, with_shardings
from flowmatch_jax.training import checkpoints as ckpt
from flowmatch_jax.training.optimizer import adam
from flowmatch_jax.training.state import init_state


def make_state(width=3, seed=0):
    init = lambda key: {"layer": {"w": jax.random.normal(key, (2, width))}}  # noqa: E731
    state = init_state(init, adam(1e-3), seed)
    return state.replace(ema=jax.tree.map(lambda p: p + 1, state.params), step=jnp.int32(7))


def bits(tree):
    """Every number of a state as plain arrays."""
    leaves = jax.tree.leaves(tree)
    is_key = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [np.asarray(jax.random.key_data(a) if is_key(a) else a) for a in leaves]


class CheckpointsTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = Path(self.create_tempdir().full_path)

    def test_everything_comes_back(self):
        state = make_state()
        with ckpt.open_checkpoints(self.workdir) as checkpoints:
            ckpt.save(checkpoints, 7, state)
        with ckpt.open_checkpoints(self.workdir) as checkpoints:
            self.assertEqual(checkpoints.latest_step(), 7)
            restored = ckpt.restore(checkpoints, 7, make_state(seed=1))
        for saved, got in zip(bits(state), bits(restored), strict=True):
            np.testing.assert_array_equal(saved, got)

    def test_weights_alone(self):
        state = make_state()
        with ckpt.open_checkpoints(self.workdir) as checkpoints:
            ckpt.save(checkpoints, 7, state)
        layout = with_shardings(jax.eval_shape(lambda: state.params), make_mesh())
        with ckpt.open_checkpoints(self.workdir) as checkpoints:
            raw, ema = (ckpt.restore_weights(checkpoints, 7, w, layout) for w in ("raw", "ema"))
        np.testing.assert_array_equal(raw["layer"]["w"], state.params["layer"]["w"])
        np.testing.assert_array_equal(ema["layer"]["w"], state.ema["layer"]["w"])

    def test_the_last_n_and_every_mth_are_kept(self):
        with ckpt.open_checkpoints(self.workdir, keep_last=2, keep_every=30) as checkpoints:
            for step in range(10, 101, 10):
                ckpt.save(checkpoints, step, make_state())
        kept = sorted(int(path.name) for path in (self.workdir / "checkpoints").iterdir())
        self.assertEqual(kept, [30, 60, 90, 100])

    def test_another_network_is_refused(self):
        with ckpt.open_checkpoints(self.workdir) as checkpoints:
            ckpt.check_network(checkpoints, make_state().params)  # nothing there: anything goes
            ckpt.save(checkpoints, 7, make_state())
        with ckpt.open_checkpoints(self.workdir) as checkpoints:
            ckpt.check_network(checkpoints, make_state().params)
            for params in (make_state(width=4).params, {"other": jnp.ones(2)}):
                with self.assertRaisesRegex(UserError, "another network"):
                    ckpt.check_network(checkpoints, params)


if __name__ == "__main__":
    absltest.main()
