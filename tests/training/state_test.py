import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

from flowmatch_jax.training.state import data_seed, ema_update, init_state, roll_back


def init_params(key):
    return {"w": jax.random.normal(key, (3,))}


class StateTest(absltest.TestCase):
    def test_average_starts_from_the_parameters(self):
        state = init_state(init_params, optax.adam(1e-3), seed=0)
        np.testing.assert_array_equal(state.ema["w"], state.params["w"])
        self.assertEqual(state.step, 0)

    def test_a_pure_function_of_the_seed(self):
        one, again, other = (init_state(init_params, optax.adam(1e-3), s) for s in (0, 0, 1))
        np.testing.assert_array_equal(one.params["w"], again.params["w"])
        self.assertFalse(np.array_equal(one.params["w"], other.params["w"]))
        self.assertFalse(
            np.array_equal(jax.random.key_data(one.key), jax.random.key_data(other.key))
        )

    def test_a_roll_back_goes_on_along_another_way(self):
        before = init_state(init_params, optax.adam(1e-3), seed=0).replace(skipped=jnp.int32(3))
        once = roll_back(before)
        twice = roll_back(once)
        self.assertEqual((once.rollbacks, once.skipped, twice.rollbacks), (1, 0, 2))
        # None of the keys that steps take, fold_in(before.key, step), is the next state's own.
        steps = jax.vmap(lambda n: jax.random.fold_in(before.key, n))(np.arange(1000))
        of_steps = {bytes(key) for key in np.asarray(jax.random.key_data(steps))}
        self.assertNotIn(bytes(np.asarray(jax.random.key_data(once.key))), of_steps)
        np.testing.assert_array_equal(once.params["w"], before.params["w"])
        keys = {jax.random.key_data(state.key).tobytes() for state in (before, once, twice)}
        self.assertLen(keys, 3)

    def test_order_of_the_data_changes_with_a_roll_back(self):
        self.assertEqual(data_seed(5, 0), 5)
        seeds = {data_seed(seed, n) for seed in range(20) for n in range(3)}
        self.assertLen(seeds, 60)
        self.assertEqual(data_seed(5, 1), data_seed(5, 1))


class AverageTest(absltest.TestCase):
    def test_warm_up_then_decay(self):
        ema, params = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
        np.testing.assert_allclose(ema_update(ema, params, jnp.int32(0), 0.999)["w"], 0.9)
        np.testing.assert_allclose(
            ema_update(ema, params, jnp.int32(10**6), 0.999)["w"], 0.001, rtol=1e-4
        )

    def test_a_constant_is_its_own_average(self):
        params = {"w": jnp.array([0.3, -2.0])}
        ema = params
        for step in range(50):
            ema = ema_update(ema, params, jnp.int32(step), 0.99)
        np.testing.assert_array_equal(ema["w"], params["w"])

    def test_the_start_is_forgotten(self):
        """After n steps of the warm-up the initial value's weight is prod (1+i)/(10+i) < n^-9."""
        ema = {"w": jnp.array([1.0])}
        for step in range(100):
            ema = ema_update(ema, {"w": jnp.zeros(1)}, jnp.int32(step), 0.9999)
        self.assertLess(float(ema["w"][0]), 1e-10)


if __name__ == "__main__":
    absltest.main()
