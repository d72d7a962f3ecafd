import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.training import optimizer


class ScheduleTest(parameterized.TestCase):
    def test_polynomial_is_the_paper_s(self):
        schedule = optimizer.learning_rate_schedule("polynomial", 5e-4, 391_000, 45_000)
        steps = [0, 22_500, 45_000, 218_000, 391_000]
        rates = [float(schedule(step)) for step in steps]
        np.testing.assert_allclose(rates, [1e-8, 2.5e-4, 5e-4, 2.5e-4, 1e-8], 1e-3, 1e-10)

    @parameterized.parameters("polynomial", "cosine", "constant")
    def test_ends(self, name):
        for warmup in (0, 10):
            schedule = optimizer.learning_rate_schedule(name, 1e-3, 100, warmup)
            self.assertAlmostEqual(float(schedule(warmup)), 1e-3, places=9)
            self.assertAlmostEqual(float(schedule(0)), 1e-8 if warmup else 1e-3, places=9)
            self.assertAlmostEqual(
                float(schedule(100)), 1e-3 if name == "constant" else 1e-8, places=9
            )
        middle = {"polynomial": 5e-4, "cosine": 5e-4, "constant": 1e-3}[name]
        schedule = optimizer.learning_rate_schedule(name, 1e-3, 110, 10)
        self.assertAlmostEqual(float(schedule(60)), middle, places=6)

    @parameterized.parameters(
        (("linear", 1e-3, 100, 0), "schedule"),
        (("cosine", 1e-3, 100, 100), "warmup_steps"),
        (("cosine", 1e-3, 100, -1), "warmup_steps"),
        (("cosine", 0.0, 100, 0), "learning_rate"),
    )
    def test_impossible_values(self, arguments, field):
        with self.assertRaises(UserError) as caught:
            optimizer.learning_rate_schedule(*arguments)
        self.assertEqual(caught.exception.field, field)


class AdamTest(parameterized.TestCase):
    def steps(self, transform, gradients):
        params = jnp.array([1.0, -2.0])
        state = transform.init(params)
        for gradient in gradients:
            updates, state = transform.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    def test_is_optax_adam(self):
        gradients = [jnp.array([0.3, 5.0]), jnp.array([-1.0, 2.0])]
        ours = self.steps(optimizer.adam(0.1, 0.9, 0.95, 1e-6), gradients)
        np.testing.assert_allclose(ours, self.steps(optax.adam(0.1, 0.9, 0.95, 1e-6), gradients))
        decayed = self.steps(optimizer.adam(0.1, weight_decay=0.1), gradients)
        np.testing.assert_allclose(
            decayed, self.steps(optax.adamw(0.1, weight_decay=0.1), gradients)
        )

    def test_clipping_bounds_the_global_norm(self):
        long, short = jnp.array([30.0, 40.0]), jnp.array([0.3, 0.4])
        clipped = self.steps(optimizer.adam(0.1, eps=1.0, clip_norm=0.5), [long])
        np.testing.assert_allclose(clipped, self.steps(optimizer.adam(0.1, eps=1.0), [short]))

    @parameterized.parameters(
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"b2": 1.0}, "b2"),
    )
    def test_impossible_values(self, options, field):
        with self.assertRaises(UserError) as caught:
            optimizer.adam(0.1, **options)
        self.assertEqual(caught.exception.field, field)


if __name__ == "__main__":
    absltest.main()
