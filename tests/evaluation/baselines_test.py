import numpy as np
from absl.testing import absltest

from flowmatch_jax.data.images.resolution import resize
from flowmatch_jax.evaluation.baselines import judge_baselines
from flowmatch_jax.evaluation.reference import make_reference
from flowmatch_jax.metrics.features.extractors import pixels
from flowmatch_jax.metrics.frechet import Moments, frechet_distance
from flowmatch_jax.metrics.similarity import psnr
from flowmatch_jax.pixels import quantise
from tests.evaluation.experiments import images

FIELDS = {"condition__low_resolution": 4, "evaluate__generated": 400, "evaluate__samples": 64}


class BaselinesTest(absltest.TestCase):
    def test_by_hand(self):
        """Of all 297 test images, though more are asked for and batches are of 64."""
        experiment = images(**FIELDS)
        reference = make_reference(experiment)
        found = judge_baselines(experiment, reference)
        x = experiment.test_data.x
        self.assertEqual(set(found), {"Reference", "Bicubic"})
        moments = Moments.empty(64).add(pixels(x, 17))
        expected = frechet_distance(moments, reference.moments)
        self.assertAlmostEqual(found["Reference"]["fd_pixels"], expected, places=6)
        self.assertNotIn("psnr", found["Reference"])
        self.assertNotIn("psnr_standard_error", found["Reference"])
        bicubic = resize(resize(x, (4, 4), levels=17), (8, 8))
        bicubic = np.asarray(quantise((2 * bicubic + 1) / 17 - 1, 17))
        self.assertAlmostEqual(found["Bicubic"]["psnr"], psnr(bicubic, x, 16).mean(), places=6)
        self.assertEqual(found["Bicubic"]["sample_nfe"], 0)
        self.assertGreater(found["Bicubic"]["fd_pixels"], found["Reference"]["fd_pixels"])


if __name__ == "__main__":
    absltest.main()
