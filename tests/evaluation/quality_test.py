import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from flowmatch_jax.evaluation import quality
from flowmatch_jax.evaluation.samples import make_sampler, sample_key
from flowmatch_jax.metrics.extractors import pixels
from flowmatch_jax.metrics.frechet import Moments
from flowmatch_jax.pixels import quantise
from flowmatch_jax.sampling import draw_source
from tests.evaluation.experiments import images

ONE = jnp.ones(())


class QualityTest(absltest.TestCase):
    def judge(self, count, reference, rate=0.0):
        experiment = images(rate)
        return quality.judge_samples(
            experiment, make_sampler(experiment, 8), ONE, count, reference, silent=True
        )

    def test_samples_are_quantised_and_no_more_than_asked_for(self):
        """The field is zero: samples are the noise, and have no distance from its own moments."""
        noise = np.concatenate([draw_source(sample_key(1, i), (8, 8, 8, 1)) for i in range(3)])
        features = pixels(np.asarray(quantise(noise, 17)), 17)
        same = self.judge(20, Moments.empty(64).add(features[:20]))
        self.assertAlmostEqual(same["fd_pixels"], 0, places=9)
        self.assertTrue(same["samples_converged"])
        other = self.judge(20, Moments.empty(64).add(features[:19]))
        self.assertGreater(other["fd_pixels"], 1e-3)

    def test_reference_is_the_training_images(self):
        moments = quality.reference_moments(images())
        self.assertEqual((moments.count, moments.mean.shape), (1500, (64,)))
        self.assertAlmostEqual(moments.mean[0], -16 / 17)  # a corner no digit touches
        self.assertLen(quality.moments_hash(moments), 64)
        self.assertEqual(quality.distance_name(images()), "fd_pixels")

    def test_a_field_that_is_not_finite_has_no_distance(self):
        judged = self.judge(8, quality.reference_moments(images()), rate=float("nan"))
        self.assertIsNone(judged["fd_pixels"])
        self.assertFalse(judged["samples_converged"])


if __name__ == "__main__":
    absltest.main()
