import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from flowmatch_jax import objectives, paths
from flowmatch_jax.mesh import make_mesh, put_whole
from flowmatch_jax.networks import pure_apply
from flowmatch_jax.networks.mlp import MLP
from flowmatch_jax.pixels import quantise
from flowmatch_jax.training.optimizer import adam
from flowmatch_jax.training.state import init_state
from flowmatch_jax.training.step import make_train_step


class TrainStepTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        module = MLP(width=16, depth=2)
        cls.optimizer = adam(1e-2)

        def init_params(key):
            return module.init(key, jnp.zeros(1), jnp.zeros((1, 2)))["params"]

        cls.init = staticmethod(lambda: init_state(init_params, cls.optimizer, seed=0))
        cls.objective = staticmethod(objectives.flow_matching(paths.optimal_transport()))
        cls.apply = staticmethod(pure_apply(module))
        cls.step = staticmethod(
            make_train_step(
                jax.eval_shape(cls.init),
                make_mesh(),
                cls.objective,
                cls.apply,
                cls.optimizer,
                ema_decay=0.5,
                levels=None,
            )
        )
        cls.batch = {"x": np.random.RandomState(0).randn(64, 2).astype(np.float32) + 3}

    def test_one_step_is_one_adam_update(self):
        state = self.init()
        before = jax.tree.map(np.array, state.params)
        _, key = jax.random.split(jax.random.fold_in(state.key, 0))
        loss = lambda p: self.objective(self.apply, p, self.batch, key)[0]  # noqa: E731
        gradient = jax.grad(loss)(before)
        updates, _ = self.optimizer.update(gradient, self.optimizer.init(before), before)
        new, metrics = self.step(state, self.batch)
        self.assertAlmostEqual(float(metrics["loss"]), float(loss(before)), places=4)
        for got, old, update in zip(
            *map(jax.tree.leaves, (new.params, before, updates)), strict=True
        ):
            np.testing.assert_allclose(got, old + update, atol=1e-5)
        for got, old, now in zip(*map(jax.tree.leaves, (new.ema, before, new.params)), strict=True):
            np.testing.assert_allclose(got, 0.1 * old + 0.9 * now, atol=1e-6)
        norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
        np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-3)

    def test_images_are_dequantised(self):
        """The objective sees model space, and a value's own bin of it."""

        def objective(apply, params, batch, key):
            wrong = (quantise(batch["x"], 17) != images["x"]).sum()
            spread = jnp.std(batch["x"] * 17 / 2 - images["x"])
            return 0.0 * params["w"], {"wrong": wrong, "spread": spread}

        images = {"x": np.arange(16, dtype=np.uint8).reshape(4, 2, 2, 1)}
        init = lambda: init_state(lambda key: {"w": jnp.zeros(())}, self.optimizer, 0)  # noqa: E731
        shapes = jax.eval_shape(init)
        step = make_train_step(shapes, make_mesh(), objective, None, self.optimizer, 0.5, levels=17)
        _, metrics = step(init(), images)
        self.assertEqual(metrics["wrong"], 0)
        self.assertGreater(metrics["spread"], 0.1)

    def test_images_on_the_device_are_picked_by_index(self):
        """The same bits as with the images in the batch."""
        images = np.random.RandomState(1).randn(50, 2).astype(np.float32)
        index = np.random.RandomState(2).randint(0, 50, 16)
        make = lambda images: make_train_step(  # noqa: E731
            jax.eval_shape(self.init),
            make_mesh(),
            self.objective,
            self.apply,
            self.optimizer,
            ema_decay=0.5,
            levels=None,
            images=images,
        )
        picked, _ = make(put_whole(images, make_mesh()))(self.init(), {"index": index})
        given, _ = make(None)(self.init(), {"x": images[index]})
        jax.tree.map(np.testing.assert_array_equal, picked.params, given.params)

    def test_flips_change_with_each_step(self):
        def objective(apply, params, batch, key):
            mirrored = quantise(batch["x"], 256)[:, 0, 0, 0] == 1
            return 0.0 * params["w"], {"mirrored": mirrored.astype(jnp.float32)}

        images = {"x": np.tile(np.array([0, 1], np.uint8), (32, 1)).reshape(32, 1, 2, 1)}
        init = lambda: init_state(lambda key: {"w": jnp.zeros(())}, self.optimizer, 0)  # noqa: E731
        shapes, mesh = jax.eval_shape(init), make_mesh()
        step = make_train_step(shapes, mesh, objective, None, self.optimizer, 0.5, 256, flip=True)
        state, first = step(init(), images)
        _, second = step(state, images)
        self.assertBetween(float(first["mirrored"].sum()), 4, 28)  # 16 +- 2.8
        self.assertFalse(np.array_equal(first["mirrored"], second["mirrored"]))

    def test_state_given_is_donated(self):
        state = self.init()
        self.step(state, self.batch)
        self.assertTrue(all(p.is_deleted() for p in jax.tree.leaves(state.params)))

    def test_noise_changes_with_each_step_and_repeats_with_the_run(self):
        losses = []
        for _ in range(2):
            state = self.init()
            run = []
            for _ in range(3):
                state, metrics = self.step(state, self.batch)
                run.append(float(metrics["loss"]))
            losses.append(run)
        self.assertEqual(losses[0], losses[1])
        self.assertLen(set(losses[0]), 3)

    def test_it_learns(self):
        state = self.init()
        losses = []
        for _ in range(300):
            state, metrics = self.step(state, self.batch)
            losses.append(metrics["loss"])
        self.assertLess(np.mean(losses[-20:]), 0.5 * np.mean(losses[:20]))
        self.assertEqual(state.step, 300)


if __name__ == "__main__":
    absltest.main()
