import jax
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowmatch_jax.data.images import resolution
from flowmatch_jax.runtime.errors import UserError

PILLOWS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}


def pictures():
    """Noise, black and white dots (where a filter overshoots most) and a photograph."""
    from sklearn.datasets import load_sample_images

    rng = np.random.RandomState(0)
    noise = rng.randint(0, 256, (60, 48, 3))
    return [noise, 255 * (noise > 127), load_sample_images().images[0][:60, 100:148]]


class ResizeTest(parameterized.TestCase):
    @parameterized.product(
        filter=tuple(PILLOWS),
        sides=((15, 12), (30, 24), (5, 4), (45, 36), (120, 96)),
    )
    def test_agrees_with_pillow_to_a_grey_level(self, filter, sides):
        for image in pictures():
            image = image.astype(np.uint8)
            height, width = sides
            pillow = Image.fromarray(image).resize((width, height), PILLOWS[filter])
            ours = np.asarray(resolution.resize(image, sides, filter, levels=256))
            difference = np.abs(ours - np.asarray(pillow, int))
            self.assertLessEqual(difference.max(), 1)
        # Pillow's weights have 22 bits, so that halves may be rounded down; there are few here.
        self.assertLess((difference > 0).mean(), 0.06)

    def test_any_batch_and_dtype(self):
        images = np.random.RandomState(0).randint(0, 17, (2, 3, 8, 8, 1)).astype(np.uint8)
        small = jax.jit(lambda x: resolution.resize(x, (4, 4), levels=17))(images)
        self.assertEqual((small.shape, small.dtype), ((2, 3, 4, 4, 1), np.int32))
        self.assertBetween(int(small.min()), 0, 16)
        one = resolution.resize(images[1, 2], (4, 4), levels=17)
        np.testing.assert_array_equal(small[1, 2], one)
        self.assertEqual(resolution.resize(images, (16, 16)).dtype, np.float32)

    def test_box_is_the_mean_of_blocks(self):
        x = np.random.RandomState(0).randn(4, 12, 6, 2).astype(np.float32)
        blocks = x.reshape(4, 4, 3, 2, 3, 2).mean(axis=(2, 4))
        np.testing.assert_allclose(resolution.resize(x, (4, 2), "box"), blocks, atol=1e-6)

    @settings(deadline=None, max_examples=40)
    @given(st.sampled_from(sorted(PILLOWS)), st.integers(2, 40), st.integers(1, 40))
    def test_laws_of_the_weights(self, filter, old, new):
        """Constant images stay, and a mirrored image gives the mirrored result."""
        weights = resolution.weights(old, new, filter)
        self.assertEqual(weights.shape, (new, old))
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
        if filter != "box":  # an edge belongs to the pixel at its right
            np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-12)

    def test_bicubic_is_exact_for_parabolas(self):
        """Within the image, as the filter's order says."""
        x = np.arange(20.0) + 0.5
        fine = (np.arange(40) + 0.5) / 2
        enlarged = resolution.weights(20, 40, "bicubic") @ (x**2 - 3 * x)
        np.testing.assert_allclose(enlarged[4:-4], (fine**2 - 3 * fine)[4:-4], atol=1e-10)

    def test_the_same_sides(self):
        for filter in PILLOWS:
            np.testing.assert_allclose(resolution.weights(9, 9, filter), np.eye(9), atol=1e-12)

    def test_no_such_filter(self):
        with self.assertRaisesRegex(UserError, "filter: got 'sinc'; .*bicubic, bilinear, box"):
            resolution.resize(np.zeros((8, 8, 1)), (4, 4), "sinc")


if __name__ == "__main__":
    absltest.main()
