import numpy as np
from absl.testing import absltest
from PIL import Image

from flowmatch_jax.data.conditioning import Conditioning
from flowmatch_jax.evaluation.super_resolution import pair_scores, side_by_side, summary
from flowmatch_jax.metrics.similarity import ssim

RNG = np.random.RandomState(0)


class PairScoresTest(absltest.TestCase):
    def test_of_images_that_differ_by_a_constant(self):
        conditioning = Conditioning(low_resolution=4, levels=17)
        originals = np.full((3, 8, 8, 1), 5)
        images = originals + np.array([1, 2, 4]).reshape(3, 1, 1, 1)
        psnr, likeness, consistency = pair_scores(conditioning, images, originals).T
        np.testing.assert_allclose(psnr, 20 * np.log10(16 / np.array([1, 2, 4])))
        np.testing.assert_allclose(consistency, [1, 4, 16])
        self.assertTrue(np.isnan(likeness).all())  # 8 pixels are fewer than its window's 11

    def test_consistency_is_of_the_images_as_pillow_reduces_them(self):
        conditioning = Conditioning(low_resolution=16, levels=256)
        a, b = RNG.randint(0, 256, (2, 1, 64, 64, 3)).astype(np.uint8)
        small = lambda x: np.asarray(Image.fromarray(x[0]).resize((16, 16), 3), float)  # noqa: E731
        ((_, likeness, consistency),) = pair_scores(conditioning, a, b)
        self.assertAlmostEqual(consistency / np.mean((small(a) - small(b)) ** 2), 1, delta=1e-3)
        self.assertEqual(likeness, ssim(a, b)[0])

    def test_summary(self):
        scores = np.array([[20.0, 0.5, 1.0], [22.0, 0.7, 9.0], [27.0, 0.9, 5.0]])
        found = summary(scores)
        self.assertAlmostEqual(found["psnr"], 23)
        self.assertAlmostEqual(found["psnr_standard_error"], np.sqrt(13 / 3))
        self.assertAlmostEqual(found["ssim"], 0.7)
        self.assertAlmostEqual(found["consistency_rmse"], np.sqrt(5))
        scores[0, 0], scores[0, 1] = np.inf, np.nan
        found = summary(scores)
        for name in ("psnr", "ssim"):
            self.assertIsNone(found[name])
            self.assertIsNone(found[f"{name}_standard_error"])


class SideBySideTest(absltest.TestCase):
    def test_rows(self):
        conditioning = Conditioning(low_resolution=4, levels=17)
        originals, made = RNG.randint(0, 17, (5, 8, 8, 1)), RNG.randn(5, 8, 8, 1)
        rows = side_by_side(conditioning, originals, sample=made)
        self.assertEqual(list(rows), ["low resolution", "bicubic", "sample", "original"])
        self.assertIs(rows["sample"], made)
        np.testing.assert_allclose(rows["original"], (2 * originals + 1) / 17 - 1, atol=1e-6)
        blocks = rows["low resolution"].reshape(5, 4, 2, 4, 2)
        np.testing.assert_array_equal(blocks, blocks[:, :, :1, :, :1].repeat(2, 2).repeat(2, 4))
        np.testing.assert_allclose(
            blocks[:, :, 0, :, 0, None],
            (2 * np.asarray(conditioning.reduce(originals)) + 1) / 17 - 1,
            atol=1e-6,
        )


if __name__ == "__main__":
    absltest.main()
