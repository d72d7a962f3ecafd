import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy.stats import kstest

from flowmatch_jax.data.conditioning import Conditioning
from flowmatch_jax.data.images.resolution import resize
from flowmatch_jax.runtime.errors import UserError

SHAPE, CLASSES = (8, 8, 1), 10


def batch(n=6):
    rng = np.random.RandomState(0)
    x = rng.randint(0, 17, (n, *SHAPE)).astype(np.uint8)
    return {"x": x, "label": rng.randint(0, CLASSES, n).astype(np.int32)}


class InputsTest(parameterized.TestCase):
    def test_nothing_by_default(self):
        nothing = Conditioning(levels=17)
        self.assertFalse(nothing)
        self.assertEqual(nothing.inputs(batch()), {})
        self.assertEqual(nothing.training_inputs(batch(), jax.random.key(0)), {})

    def test_labels_are_the_batch_s(self):
        conditioning = Conditioning(labels=True, levels=17)
        self.assertTrue(conditioning)
        np.testing.assert_array_equal(conditioning.inputs(batch())["label"], batch()["label"])

    def test_condition_is_what_a_small_file_would_tell(self):
        """It is a function of the reduced image's whole levels, in model space."""
        conditioning = Conditioning(low_resolution=4, levels=17)
        small = resize(batch()["x"], (4, 4), levels=17)
        condition = conditioning.inputs(batch())["condition"]
        np.testing.assert_allclose(condition, (2 * resize(small, (8, 8)) + 1) / 17 - 1, atol=1e-6)
        flat = jnp.full((1, *SHAPE), 5)
        np.testing.assert_allclose(
            conditioning.inputs({"x": flat})["condition"], 11 / 17 - 1, atol=1e-6
        )

    def test_the_filter_that_enlarges(self):
        """To twice the side: three quarters of the nearest value and one of the next."""
        image = jnp.repeat(jnp.array([0, 4, 8, 16]), 4)
        conditioning = Conditioning(low_resolution=4, enlarging="bilinear", levels=17)
        column = conditioning.condition(image.reshape(1, 4, 4, 1), (8, 8))[0, :, 0, 0]
        levels = ((column + 1) * 17 - 1) / 2
        np.testing.assert_allclose(levels, [0, 1, 3, 5, 7, 10, 14, 16], atol=1e-4)

    def test_filter(self):
        condition = Conditioning(low_resolution=4, filter="box", levels=17).reduce(batch()["x"])
        across = np.floor(batch()["x"].reshape(6, 8, 4, 2, 1).mean(axis=3) + 0.5)
        down = np.floor(across.reshape(6, 4, 2, 4, 1).mean(axis=2) + 0.5)
        np.testing.assert_array_equal(condition, down)


class TrainingInputsTest(parameterized.TestCase):
    def test_labels_are_dropped_one_by_one(self):
        n, rate = 4000, 0.3
        conditioning = Conditioning(labels=True, label_dropout=rate, levels=17)
        given = conditioning.inputs(batch(n))["label"]
        label = conditioning.training_inputs(batch(n), jax.random.key(0))["label"]
        dropped = np.asarray(label) == -1
        self.assertEqual(label.dtype, jnp.int32)
        np.testing.assert_array_equal(label[~dropped], given[~dropped])
        standard_error = np.sqrt(rate * (1 - rate) / n)
        self.assertLess(abs(dropped.mean() - rate), 4 * standard_error)
        other = conditioning.training_inputs(batch(n), jax.random.key(1))["label"]
        self.assertFalse(np.array_equal(label, other))

    def test_noise_of_a_level_that_the_network_is_told(self):
        """Each image's level ~ U(0, max_noise), in the last channel; 0 outside of training."""
        conditioning, n = Conditioning(low_resolution=4, max_noise=0.4, levels=17), 2000
        plain = Conditioning(low_resolution=4, levels=17)
        clean = conditioning.inputs(batch(n))["condition"]
        self.assertEqual(clean.shape, (n, 8, 8, 2))
        self.assertEqual((conditioning.condition_channels(1), plain.condition_channels(1)), (2, 1))
        np.testing.assert_array_equal(clean[..., :1], plain.inputs(batch(n))["condition"])
        np.testing.assert_array_equal(clean[..., 1], 0)
        noisy = conditioning.training_inputs(batch(n), jax.random.key(0))["condition"]
        level = np.asarray(noisy[:, 0, 0, 1])
        np.testing.assert_array_equal(
            noisy[..., 1], np.broadcast_to(level[:, None, None], (n, 8, 8))
        )
        self.assertGreater(kstest(level / 0.4, "uniform").pvalue, 1e-3)
        noise = np.asarray(noisy - clean)[..., 0] / level[:, None, None]
        self.assertGreater(kstest(noise.ravel()[:20_000], "norm").pvalue, 1e-3)

    def test_without_augmentation_it_is_the_same(self):
        conditioning = Conditioning(labels=True, low_resolution=2, levels=17)
        training = conditioning.training_inputs(batch(), jax.random.key(0))
        jax.tree.map(np.testing.assert_array_equal, training, conditioning.inputs(batch()))


class MistakesTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"labels": True}, SHAPE, None, "labels: got True; these data have none"),
        ({"label_dropout": 1.0}, SHAPE, CLASSES, "label_dropout: got 1.0"),
        ({"filter": "sinc"}, SHAPE, CLASSES, "filter: got 'sinc'"),
        ({"max_noise": -1.0}, SHAPE, CLASSES, "max_noise: got -1.0"),
        ({"low_resolution": 8}, SHAPE, CLASSES, "low_resolution: got 8; .*below the images' 8x8"),
        ({"low_resolution": 3}, SHAPE, CLASSES, "low_resolution: got 3; .*divide"),
        ({"low_resolution": 0}, SHAPE, CLASSES, "low_resolution: got 0"),
        ({"low_resolution": 4}, (8, 16, 1), CLASSES, "low_resolution: got 4; .*8x16"),
        ({"low_resolution": 1, "levels": None}, (2,), None, "low_resolution: got 1; .*points"),
    )
    def test_what_cannot_be(self, fields, shape, num_classes, message):
        conditioning = Conditioning(**{"levels": 17} | fields)
        with self.assertRaisesRegex(UserError, message):
            conditioning.validate(shape, num_classes)

    def test_what_can_be(self):
        Conditioning(labels=True, low_resolution=4, levels=17).validate(SHAPE, CLASSES)
        Conditioning().validate((2,), None)


if __name__ == "__main__":
    absltest.main()
