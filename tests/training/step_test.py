import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from flowmatch_jax import objectives, paths
from flowmatch_jax.networks import pure_apply
from flowmatch_jax.networks.mlp import MLP
from flowmatch_jax.pixels import quantise
from flowmatch_jax.runtime.mesh import make_mesh, put_whole
from flowmatch_jax.training.optimizer import adam
from flowmatch_jax.training.state import init_state
from flowmatch_jax.training.step import make_gradient, make_train_step


def stack(*batches):
    """Batches as the n steps of a dispatch take them."""
    return jax.tree.map(lambda *x: np.stack(x), *batches)


class TrainStepTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        module = MLP(width=16, depth=2)
        cls.optimizer = adam(1e-2)

        def init_params(key):
            return module.init(key, jnp.zeros(1), jnp.zeros((1, 2)))["params"]

        cls.init = staticmethod(lambda: init_state(init_params, cls.optimizer, seed=0))
        cls.objective = staticmethod(
            objectives.matching("flow_matching", paths.optimal_transport())
        )
        cls.apply = staticmethod(pure_apply(module))
        cls.gradient = staticmethod(make_gradient(cls.objective, cls.apply, levels=None))
        cls.step = staticmethod(
            make_train_step(
                jax.eval_shape(cls.init),
                make_mesh(),
                cls.gradient,
                cls.optimizer,
                ema_decay=0.5,
            )
        )
        cls.batch = {"x": np.random.RandomState(0).randn(64, 2).astype(np.float32) + 3}

    def one_step(self, state, batch):
        state, metrics = self.step(state, stack(batch))
        return state, {name: m[0] for name, m in metrics.items()}

    def test_one_step_is_one_adam_update(self):
        state = self.init()
        before = jax.tree.map(np.array, state.params)
        *_, key = jax.random.split(jax.random.fold_in(state.key, 0), 4)
        loss = lambda p: self.objective(self.apply, p, self.batch, key)[0]  # noqa: E731
        value, gradient = jax.jit(jax.value_and_grad(loss))(before)
        updates, _ = self.optimizer.update(gradient, self.optimizer.init(before), before)
        new, metrics = self.one_step(state, self.batch)
        self.assertAlmostEqual(float(metrics["loss"]), float(value), places=4)
        for got, old, update in zip(
            *map(jax.tree.leaves, (new.params, before, updates)), strict=True
        ):
            np.testing.assert_allclose(got, old + update, atol=1e-5)
        for got, old, now in zip(*map(jax.tree.leaves, (new.ema, before, new.params)), strict=True):
            np.testing.assert_allclose(got, 0.1 * old + 0.9 * now, atol=1e-6)
        norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
        np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-3)
        self.assertEqual((new.skipped, metrics["skipped"]), (0, 0))

    def test_several_steps_at_once_are_as_many_single_ones(self):
        rng = np.random.RandomState(3)
        batches = [{"x": rng.randn(64, 2).astype(np.float32)} for _ in range(3)]
        singly, losses = self.init(), []
        for batch in batches:
            singly, metrics = self.one_step(singly, batch)
            losses.append(metrics["loss"])
        together, metrics = self.step(self.init(), stack(*batches))
        np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
        self.assertEqual(together.step, 3)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            (together.params, together.ema, together.opt_state),
            (singly.params, singly.ema, singly.opt_state),
        )

    def test_update_that_is_not_finite_is_not_made(self):
        bad = {"x": np.full((64, 2), np.nan, np.float32)}
        before = self.init()
        state, metrics = self.step(self.init(), stack(bad, bad))
        np.testing.assert_array_equal(metrics["skipped"], [1, 2])
        self.assertEqual((state.step, state.skipped), (2, 2))
        for name in ("params", "ema", "opt_state"):
            jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(before, name))
        state, metrics = self.one_step(state, self.batch)  # the count begins anew
        self.assertEqual((state.skipped, metrics["skipped"]), (0, 0))
        now, then = (jax.tree.leaves(s.params) for s in (state, before))
        self.assertFalse(all(np.array_equal(a, b) for a, b in zip(now, then, strict=True)))

    def test_gradient_that_overflows_counts_though_the_loss_is_finite(self):
        objective = lambda apply, params, batch, key: (  # noqa: E731
            jnp.sqrt(params["w"]) + 0 * batch["x"].sum(),
            {"loss": params["w"]},
        )
        init = lambda: init_state(lambda key: {"w": jnp.zeros(())}, self.optimizer, 0)  # noqa: E731
        gradient = make_gradient(objective, None, levels=None)
        step = make_train_step(jax.eval_shape(init), make_mesh(), gradient, self.optimizer, 0.5)
        state, metrics = step(init(), stack(self.batch))
        self.assertEqual((float(metrics["loss"][0]), state.skipped), (0.0, 1))
        self.assertEqual(state.params["w"], 0)

    def test_images_are_dequantised(self):
        """The objective sees model space, and a value's own bin of it."""

        def objective(apply, params, batch, key):
            wrong = (quantise(batch["x"], 17) != images["x"]).sum()
            spread = jnp.std(batch["x"] * 17 / 2 - images["x"])
            return 0.0 * params["w"], {"wrong": wrong, "spread": spread}

        images = {"x": np.arange(16, dtype=np.uint8).reshape(4, 2, 2, 1)}
        gradient = jax.jit(make_gradient(objective, None, levels=17))
        _, metrics = gradient({"w": jnp.zeros(())}, images, jax.random.key(0))
        self.assertEqual(metrics["wrong"], 0)
        self.assertGreater(metrics["spread"], 0.1)

    def test_images_on_the_device_are_picked_by_index(self):
        """The same bits as with the images in the batch."""
        images = np.random.RandomState(1).randn(50, 2).astype(np.float32)
        index = np.random.RandomState(2).randint(0, 50, 64)
        whole = put_whole(images, make_mesh())
        picked, _ = self.step(self.init(), stack({"index": index}), whole)
        given, _ = self.step(self.init(), stack({"x": images[index]}))
        jax.tree.map(np.testing.assert_array_equal, picked.params, given.params)

    def test_labels_go_with_images_on_the_device(self):
        objective = lambda apply, params, batch, key: (  # noqa: E731
            0.0 * params["w"],
            {"loss": jnp.zeros(()), "apart": jnp.abs(batch["x"][:, 0] - batch["label"]).max()},
        )
        init = lambda: init_state(lambda key: {"w": jnp.zeros(())}, self.optimizer, 0)  # noqa: E731
        labels = lambda batch, key: {"label": batch["label"]}  # noqa: E731
        gradient = make_gradient(objective, None, None, training_inputs=labels)
        step = make_train_step(jax.eval_shape(init), make_mesh(), gradient, self.optimizer, 0.5)
        x, index = np.arange(50, dtype=np.float32)[:, None], np.array([7, 3, 3, 49])
        _, metrics = step(
            init(), stack({"index": index, "label": index}), put_whole(x, make_mesh())
        )
        self.assertEqual(metrics["apart"], 0)

    def test_inputs_are_of_the_images_as_the_objective_sees_them(self):
        """Whole levels, after flips; with a key of their own, one for each part of the batch."""

        def objective(apply, params, batch, key):
            same = (quantise(batch["x"], 256) == batch["condition"]).all()
            return 0.0 * params["w"], {"same": same, "label": batch["label"].sum()}

        def training_inputs(batch, key):
            label = jnp.where(jax.random.bernoulli(key, 0.5, batch["label"].shape), 0, 1)
            return {"condition": batch["x"], "label": label}

        images = {
            "x": np.random.RandomState(0).randint(0, 256, (64, 4, 4, 1)).astype(np.uint8),
            "label": np.zeros(64, np.int32),
        }
        for parts in (1, 2):
            gradient = jax.jit(make_gradient(objective, None, 256, True, parts, training_inputs))
            params = {"w": jnp.zeros(())}
            (_, first), (_, second) = (gradient(params, images, jax.random.key(i)) for i in (0, 1))
            self.assertEqual((first["same"], second["same"]), (1, 1))
            self.assertNotEqual(first["label"], second["label"])

    def test_flips_change_with_the_key(self):
        def objective(apply, params, batch, key):
            mirrored = quantise(batch["x"], 256)[:, 0, 0, 0] == 1
            return 0.0 * params["w"], {"mirrored": mirrored.astype(jnp.float32)}

        images = {"x": np.tile(np.array([0, 1], np.uint8), (32, 1)).reshape(32, 1, 2, 1)}
        gradient = jax.jit(make_gradient(objective, None, 256, flip=True))
        params = {"w": jnp.zeros(())}
        (_, first), (_, second) = (gradient(params, images, jax.random.key(i)) for i in (0, 1))
        self.assertBetween(float(first["mirrored"].sum()), 4, 28)  # 16 +- 2.8
        self.assertFalse(np.array_equal(first["mirrored"], second["mirrored"]))

    def test_noise_of_the_batch_stays_with_its_image(self):
        """Through flips and micro-batches."""

        def objective(apply, params, batch, key):
            same = jnp.abs(batch["x0"] - batch["x"]).max() < 2 / 256
            return 0.0 * params["w"], {"same": same, "mirrored": batch["x"][:, 0, 0, 0].mean()}

        x = np.random.RandomState(0).randint(0, 256, (64, 4, 4, 1)).astype(np.uint8)
        images = {"x": x, "x0": (2 * x.astype(np.float32) + 1) / 256 - 1}
        for parts in (1, 4):
            gradient = jax.jit(make_gradient(objective, None, 256, True, parts))
            _, metrics = gradient({"w": jnp.zeros(())}, images, jax.random.key(0))
            self.assertEqual(metrics["same"], 1)
            unflipped = images["x0"][:, 0, 0, 0].mean()
            self.assertGreater(abs(float(metrics["mirrored"]) - unflipped), 1e-3)

    def test_images_that_samples_start_from_are_dequantised(self):
        """To their own levels, with their own noise, and through flips with their image."""

        def objective(apply, params, batch, key):
            x0, x1 = batch["x0"], batch["x"]
            same = (quantise(x0, 17) == quantise(x1, 256)).all()
            u0, u1 = ((x + 1) * (n / 2) % 1 for x, n in ((x0, 17), (x1, 256)))
            share = jnp.corrcoef(u0.ravel(), u1.ravel())[0, 1]
            return 0.0 * params["w"], {"same": same, "share": share}

        x = np.random.RandomState(0).randint(0, 17, (64, 8, 8, 1)).astype(np.uint8)
        gradient = jax.jit(make_gradient(objective, None, 256, flip=True, source_levels=17))
        _, metrics = gradient({"w": jnp.zeros(())}, {"x": x, "x0": x}, jax.random.key(0))
        self.assertEqual(metrics["same"], 1)
        self.assertLess(abs(metrics["share"]), 5 / 64)  # 4,096 independent pairs

    def test_state_given_is_donated(self):
        state = self.init()
        self.one_step(state, self.batch)
        self.assertTrue(all(p.is_deleted() for p in jax.tree.leaves(state.params)))

    def test_noise_changes_with_each_step_and_repeats_with_the_run(self):
        losses = []
        for _ in range(2):
            state = self.init()
            run = []
            for _ in range(3):
                state, metrics = self.one_step(state, self.batch)
                run.append(float(metrics["loss"]))
            losses.append(run)
        self.assertEqual(losses[0], losses[1])
        self.assertLen(set(losses[0]), 3)

    def test_it_learns(self):
        state = self.init()
        losses = []
        for _ in range(300):
            state, metrics = self.one_step(state, self.batch)
            losses.append(metrics["loss"])
        self.assertLess(np.mean(losses[-20:]), 0.5 * np.mean(losses[:20]))
        self.assertEqual(state.step, 300)


class AccumulationTest(absltest.TestCase):
    """Gradients of parts of a batch, against the gradient of the whole."""

    def test_mean_over_the_parts_is_the_gradient_of_the_batch(self):
        """Of an objective without noise; each item is in one part."""

        def objective(apply, params, batch, key):
            error = batch["x"] @ params["w"] - 1
            return jnp.mean(error**2), {"loss": jnp.mean(error**2), "mean": jnp.mean(batch["x"])}

        params = {"w": jnp.array([[1.0], [-2.0], [0.5]])}
        batch = {"x": np.random.RandomState(0).randn(24, 3).astype(np.float32)}
        key = jax.random.key(0)
        whole, of_whole = jax.jit(make_gradient(objective, None, None))(params, batch, key)
        for n in (2, 3, 8):
            of_n = jax.jit(make_gradient(objective, None, None, microbatches=n))
            parts, of_parts = of_n(params, batch, key)
            np.testing.assert_allclose(parts["w"], whole["w"], rtol=1e-5)
            for name in of_whole:
                np.testing.assert_allclose(of_parts[name], of_whole[name], rtol=1e-5, atol=1e-7)

    def test_parts_have_noise_of_their_own(self):
        objective = lambda apply, params, batch, key: (  # noqa: E731
            0.0 * params["w"],
            {"noise": jax.random.normal(key)},
        )
        seen = []
        for n in (1, 2):
            gradient = jax.jit(make_gradient(objective, None, None, microbatches=n))
            _, metrics = gradient({"w": 0.0}, {"x": np.zeros((4, 1))}, jax.random.key(0))
            seen.append(float(metrics["noise"]))
        self.assertNotEqual(*seen)


if __name__ == "__main__":
    absltest.main()
