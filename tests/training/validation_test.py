import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from absl.testing import absltest

from flowmatch_jax.training.validation import (
    held_out_batches,
    make_validation,
    validation_key,
)
from tests.evaluation.experiments import images, points

TWO = {"train__validation_batches": 2, "train__batch_size": 32}
BOTH = {"evaluate__weights": ("ema", "raw")}


def state(ema=0.0, raw=0.0):
    return SimpleNamespace(ema=jnp.float32(ema), params=jnp.float32(raw))


class ValidationTest(absltest.TestCase):
    def test_none_by_default(self):
        self.assertEqual(make_validation(points())(state()), {})

    def test_loss_of_a_linear_field(self):
        """Eq. 23 in NumPy, of the noise and the times that the keys give: v = a x."""
        experiment = points(rate=1.0, path__ot__sigma_min=0.1, **TWO, **BOTH)
        key, expected = validation_key(experiment.config.evaluate.seed), {"ema": [], "raw": []}
        for i, batch in enumerate(held_out_batches(experiment)):
            *_, objective_key = jax.random.split(jax.random.fold_in(key, i), 4)
            noise_key, time_key, _ = jax.random.split(objective_key, 3)
            x1 = batch["x"].astype(np.float64)
            x0 = np.asarray(jax.random.normal(noise_key, x1.shape))
            t = np.asarray(jax.random.uniform(time_key, (len(x1), 1)))
            x_t, u_t = (1 - 0.9 * t) * x0 + t * x1, x1 - 0.9 * x0
            for kind, a in (("ema", 0.5), ("raw", -2.0)):
                expected[kind].append(np.mean((a * x_t - u_t) ** 2))
        losses = make_validation(experiment)(state(0.5, -2.0))
        self.assertEqual(list(losses), ["validation_loss_ema", "validation_loss_raw"])
        for kind, values in expected.items():
            found = losses[f"validation_loss_{kind}"]
            np.testing.assert_allclose(found, np.mean(values), rtol=1e-5)

    def test_paired_noise(self):
        """Of the batch, as in training: v = 0 has the loss E (x_1 - 0.9 x_0)^2 of the pairs."""
        experiment = points(
            rate=0.0, path__ot__sigma_min=0.1, objective__coupling="minibatch_ot", **TWO
        )
        errors = [batch["x"] - 0.9 * batch["x0"] for batch in held_out_batches(experiment)]
        loss = make_validation(experiment)(state())["validation_loss_ema"]
        np.testing.assert_allclose(loss, np.mean(np.square(errors)), rtol=1e-5)
        independent = make_validation(points(rate=0.0, path__ot__sigma_min=0.1, **TWO))(state())
        self.assertLess(loss, 0.8 * independent["validation_loss_ema"])

    def test_noise_is_paired_over_as_many_batches_as_in_training(self):
        """Three batches have the assignment with the least cost, also if two of them are read."""
        fields = {"objective__coupling": "minibatch_ot", "minibatch_ot__batches": 3}
        three, two = (
            list(
                held_out_batches(
                    points(train__batch_size=16, train__validation_batches=n, **fields)
                )
            )
            for n in (3, 2)
        )
        x0, x1 = (np.concatenate([batch[name] for batch in three]) for name in ("x0", "x"))
        self.assertEqual(x0.shape, (48, 2))
        cost = np.square(x0[:, None] - x1).sum(-1)
        least = cost[scipy.optimize.linear_sum_assignment(cost)].sum()
        np.testing.assert_allclose(np.trace(cost), least, rtol=1e-5)
        self.assertLen(two, 2)
        np.testing.assert_array_equal([b["x0"] for b in two], [b["x0"] for b in three[:2]])

    def test_losses_differ_by_the_weights_only(self):
        validate = make_validation(points(**TWO))
        first, other, again = (validate(state(ema))["validation_loss_ema"] for ema in (1, 2, 1))
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)

    def test_a_loss_that_is_not_finite_has_no_value(self):
        validate = make_validation(points(**TWO))
        self.assertEqual(validate(state(float("nan"))), {"validation_loss_ema": None})

    def test_items_are_those_of_the_test_split(self):
        """Each once, in random order; from the first again where there are fewer."""
        experiment = images(train__validation_batches=4, train__batch_size=100)
        batches = list(held_out_batches(experiment))
        self.assertEqual([batch["x"].shape for batch in batches], [(100, 8, 8, 1)] * 4)
        x = np.concatenate([batch["x"] for batch in batches])
        n = len(experiment.test_data)  # 297
        np.testing.assert_array_equal(x[n:], x[: 400 - n])
        order = np.lexsort(x[:n].reshape(n, -1).T)
        split = experiment.test_data.x
        np.testing.assert_array_equal(x[order], split[np.lexsort(split.reshape(n, -1).T)])
        self.assertFalse(np.array_equal(x[:n], split))

    def test_the_network_is_given_what_an_evaluation_gives_it(self):
        """No dropout, no dropped labels, no flips; images in their own bin of the model space."""

        def apply(params, t, x, label, key=None):
            self.assertIsNone(key)
            seen.append(label)
            return x

        def objective(apply, params, batch, key):
            apply(params, 0.0, batch["x"], label=batch["label"], key=key)
            first = jnp.abs(batch["x"] - (2 * stored["x"] + 1) / 17 + 1).max()
            return first + 0.0 * params, {}

        seen = []
        experiment = images(
            apply=apply,
            condition__labels=True,
            condition__label_dropout=0.9,
            data__flip=True,
            train__validation_batches=1,
            train__batch_size=64,
        )
        (stored,) = held_out_batches(experiment)
        experiment = dataclasses.replace(experiment, objective=objective)
        with jax.disable_jit():
            losses = make_validation(experiment)(state())
        np.testing.assert_array_equal(seen[0], stored["label"])
        self.assertLessEqual(losses["validation_loss_ema"], 1 / 17 + 1e-6)


if __name__ == "__main__":
    absltest.main()
