import os
from dataclasses import replace
from unittest import mock

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

    def test_reference_is_computed_once_for_equal_images(self):
        """Kept under the hash of the images, wherever they lie and whatever they are called."""
        cache = self.create_tempdir().full_path
        with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": cache}):
            first = quality.reference_moments(images())
            with mock.patch.object(quality, "ordered_batches", side_effect=AssertionError):
                again = quality.reference_moments(images())
            np.testing.assert_array_equal(again.cov, first.cov)
            experiment = images()
            x = experiment.train_source.x.copy()
            x[0] = 16 - x[0]
            source = replace(experiment.train_source, x=x)
            other = quality.reference_moments(replace(experiment, train_source=source))
        self.assertNotEqual(quality.moments_hash(other), quality.moments_hash(first))
        self.assertLen(os.listdir(f"{cache}/flowmatch_jax/reference"), 2)

    def test_reference_of_many_images_goes_in_parts(self):
        with (
            mock.patch.object(quality, "REFERENCE_BATCH", 400),
            mock.patch.dict(os.environ, {"XDG_CACHE_HOME": self.create_tempdir().full_path}),
        ):
            parts = quality.reference_moments(images())
        whole = np.cov(pixels(images().train_source.x, 17), rowvar=False)
        np.testing.assert_allclose(parts.cov, whole, atol=1e-12)

    def test_a_field_that_is_not_finite_has_no_distance(self):
        judged = self.judge(8, quality.reference_moments(images()), rate=float("nan"))
        self.assertIsNone(judged["fd_pixels"])
        self.assertFalse(judged["samples_converged"])


if __name__ == "__main__":
    absltest.main()
