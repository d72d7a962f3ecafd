import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from sklearn.datasets import load_sample_images

from flowmatch_jax.metrics.features import extractors
from flowmatch_jax.runtime.errors import UserError


class ExtractorsTest(absltest.TestCase):
    def test_pixels_lie_at_the_centres_of_their_bins(self):
        image = np.array([[[[0], [16]], [[8], [4]]]], np.uint8)
        features = extractors.pixels(image, 17)
        self.assertEqual((features.shape, features.dtype), ((1, 4), np.float64))
        np.testing.assert_allclose(features[0], (2 * np.array([0, 16, 8, 4]) + 1) / 17 - 1)
        self.assertAlmostEqual(features[0, 2], 0)  # the middle level
        net = extractors.load_extractor("pixels", (2, 2, 1), 17)
        self.assertEqual((net.name, net.dims), ("pixels", 4))
        found, logits = extractors.features_of(net, jnp.asarray(image))
        np.testing.assert_array_equal(found, features)
        self.assertIsNone(logits)

    def test_levels_are_spread_over_bytes_for_a_net(self):
        """A photograph of 16 levels has the features of the same picture in 256."""
        photo = load_sample_images().images[0][100:164, 100:164] // 16
        coarse = extractors.load_extractor("efficientnet_lite0", (64, 64, 3), 16)
        full = extractors.load_extractor("efficientnet_lite0", (64, 64, 3), 256)
        a, _ = extractors.features_of(coarse, photo[None])
        b, _ = extractors.features_of(full, 17 * photo[None])
        self.assertEqual(a.shape, (1, 1280))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

    def test_only_inception_s_scores_have_the_field_s_names(self):
        names = [
            extractors.score_name(score, "inception") for score in ("fd", "is", "kd", "recall")
        ]
        self.assertEqual(names, ["fid", "inception_score", "kid", "recall"])
        self.assertEqual(extractors.score_name("fd", "efficientnet_lite0"), "fd_efficientnet_lite0")

    def test_mistakes(self):
        with self.assertRaisesRegex(UserError, "extractor: got 'vgg'; it may be one of"):
            extractors.load_extractor("vgg", (8, 8, 3), 256)
        with self.assertRaisesRegex(UserError, "weights_file: got None; name the file of FID's"):
            extractors.load_extractor("inception", (8, 8, 3), 256)
        with self.assertRaisesRegex(UserError, "weights_file: got 'absent.pth'; it cannot be read"):
            extractors.load_extractor("inception", (8, 8, 3), 256, "absent.pth")
        other = self.create_tempfile("other.pth", "other weights").full_path
        with self.assertRaisesRegex(UserError, "weights_file: .*6726825d0af5"):
            extractors.load_extractor("inception", (8, 8, 3), 256, other)
        with self.assertRaisesRegex(UserError, "weights_file: got 'x.pth'; pixels needs none"):
            extractors.load_extractor("pixels", (8, 8, 3), 256, "x.pth")


if __name__ == "__main__":
    absltest.main()
