import os
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest

from flowmatch_jax.evaluation import reference
from flowmatch_jax.evaluation.reference import make_reference, moments_hash
from flowmatch_jax.metrics.features.extractors import pixels
from flowmatch_jax.metrics.frechet import Moments
from flowmatch_jax.metrics.statistics import Statistics
from flowmatch_jax.runtime.errors import UserError
from tests.evaluation.experiments import images


class ReferenceTest(absltest.TestCase):
    def test_reference_is_the_training_images(self):
        moments = make_reference(images()).moments
        self.assertEqual((moments.count, moments.mean.shape), (1500, (64,)))
        self.assertAlmostEqual(moments.mean[0], -16 / 17)  # a corner no digit touches
        self.assertLen(moments_hash(moments), 64)

    def test_reference_is_computed_once_for_equal_images(self):
        """Kept under the hash of the images, wherever they lie and whatever they are called."""
        cache = self.create_tempdir().full_path
        with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": cache}):
            first = make_reference(images()).moments
            with mock.patch.object(reference, "ordered_batches", side_effect=AssertionError):
                again = make_reference(images()).moments
            np.testing.assert_array_equal(again.cov, first.cov)
            experiment = images()
            x = experiment.train_data.x.copy()
            x[0] = 16 - x[0]
            source = replace(experiment.train_data, x=x)
            other = make_reference(replace(experiment, train_data=source)).moments
        self.assertNotEqual(moments_hash(other), moments_hash(first))
        self.assertLen(os.listdir(f"{cache}/flowmatch_jax/reference"), 2)

    def test_reference_of_many_images_goes_in_parts(self):
        with (
            mock.patch.object(reference, "BATCH", 400),
            mock.patch.dict(os.environ, {"XDG_CACHE_HOME": self.create_tempdir().full_path}),
        ):
            parts = make_reference(images()).moments
        whole = np.cov(pixels(images().train_data.x, 17), rowvar=False)
        np.testing.assert_allclose(parts.cov, whole, atol=1e-12)

    def test_a_cache_is_not_worth_a_run(self):
        """Cut, of other features, in a folder that is a file: the reference is computed."""
        expected = moments_hash(make_reference(images()).moments)
        cache = Path(self.create_tempdir().full_path)
        with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(cache)}):
            make_reference(images())
            (path,) = (cache / "flowmatch_jax" / "reference").iterdir()
            whole, other = path.read_bytes(), cache / "other.npz"
            np.savez(other, mu=np.zeros(3), sigma=np.eye(3), count=1500)
            for data in (b"", whole[:200], other.read_bytes()):
                path.write_bytes(data)
                with self.assertLogs("flowmatch_jax.runtime.files", "WARNING"):
                    moments = make_reference(images()).moments
                self.assertEqual(moments_hash(moments), expected)
                self.assertEqual(path.read_bytes(), whole)
        with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(other)}):
            with self.assertLogs("flowmatch_jax.runtime.files", "WARNING") as logs:
                moments = make_reference(images()).moments
            self.assertIn("cannot be", logs.output[0])
            self.assertEqual(moments_hash(moments), expected)

    def test_a_published_reference(self):
        path = f"{self.create_tempdir().full_path}/stats.npz"
        features = np.random.RandomState(0).randn(99, 64)
        np.savez(path, mu=features.mean(axis=0), sigma=np.cov(features, rowvar=False))
        held = make_reference(images(evaluate__reference=path))
        self.assertIsNone(held.moments.count)
        np.testing.assert_array_equal(held.moments.mean, features.mean(axis=0))
        np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
        other = images(evaluate__reference=path, evaluate__seed=2)
        with self.assertRaisesRegex(UserError, "of 3 features'; pixels has 64 features"):
            make_reference(other)
        np.savez(path, mu=np.zeros(64), sigma=np.eye(64), shape=(4, 16, 1))
        with self.assertRaisesRegex(
            UserError, r"images \(4, 16, 1\)'; the samples are \(8, 8, 1\)"
        ):
            make_reference(other)
        saved = Statistics(Moments(9, np.zeros(64), np.eye(64)), "inception", (8, 8, 1))
        Path(path).write_bytes(saved.to_bytes())
        with self.assertRaisesRegex(UserError, "of inception'; the extractor is pixels"):
            make_reference(other)
        Path(path).write_bytes(b"no npz")
        with self.assertRaisesRegex(UserError, "config.evaluate.reference: .*cannot be read"):
            make_reference(other)


if __name__ == "__main__":
    absltest.main()
