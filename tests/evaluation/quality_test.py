import dataclasses
import signal
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from flowmatch_jax.couplings import draw_source
from flowmatch_jax.evaluation import quality
from flowmatch_jax.evaluation.reference import make_reference
from flowmatch_jax.evaluation.samples import make_sampler
from flowmatch_jax.metrics.features.extractors import pixels
from flowmatch_jax.metrics.frechet import Moments, frechet_distance
from flowmatch_jax.metrics.scores import FeatureSet
from flowmatch_jax.pixels import quantise
from flowmatch_jax.runtime.errors import RunStopped, UserError
from tests.evaluation.cases import source_key
from tests.evaluation.experiments import images

ONE = jnp.ones(())


def reference(features):
    return FeatureSet(Moments.empty(features.shape[1]).add(features), features)


class NumberTest(absltest.TestCase):
    def test_at_most_the_items_that_samples_start_from(self):
        experiment, source = images(), SimpleNamespace(test=range(7))
        of_source = dataclasses.replace(experiment, source=source)
        of_condition = images(condition__low_resolution=4)
        self.assertEqual(quality.number_judged(experiment, 5000), 5000)
        self.assertEqual(quality.number_judged(of_source, 5000), 7)
        self.assertEqual(quality.number_judged(of_source, 5), 5)
        items = len(of_condition.test_data)
        self.assertEqual(quality.number_judged(of_condition, 5000), items)

    def test_too_few_for_a_score(self):
        experiment = images(evaluate__scores=("precision_recall",))
        self.assertEqual(quality.number_judged(experiment, 4), 4)
        source = SimpleNamespace(test=range(3))
        said = "config.evaluate.scores: got 'precision_recall'; .* 4 samples .* there are 3"
        with self.assertRaisesRegex(UserError, said):
            quality.number_judged(dataclasses.replace(experiment, source=source), 5000)


class QualityTest(absltest.TestCase):
    def judge(self, count, reference, rate=0.0, partial=None, sampler=None, **fields):
        experiment = images(rate, **fields)
        sampler = sampler or make_sampler(experiment, 8)
        return quality.judge_samples(
            experiment, sampler, ONE, count, reference, silent=True, partial=partial
        )

    def noise(self, batches):
        """Features of the samples of a field that is zero, and its scores' reference."""
        x = np.concatenate([draw_source(source_key(1, i), (8, 8, 8, 1)) for i in range(batches)])
        return pixels(np.asarray(quantise(x, 17)), 17)

    def test_samples_are_quantised_and_no_more_than_asked_for(self):
        """The field is zero: samples are the noise, and have no distance from its own moments."""
        features = self.noise(3)
        same = self.judge(20, reference(features[:20]))
        self.assertAlmostEqual(same["fd_pixels"], 0, places=9)
        self.assertTrue(same["samples_converged"])
        other = self.judge(20, reference(features[:19]))
        self.assertGreater(other["fd_pixels"], 1e-3)

    def test_a_field_that_is_not_finite_has_no_distance(self):
        judged = self.judge(8, make_reference(images()), rate=float("nan"))
        self.assertIsNone(judged["fd_pixels"])
        self.assertFalse(judged["samples_converged"])

    def test_a_killed_evaluation_goes_on_to_the_same_bits(self):
        """Killed after three batches of six, and again after five."""
        path = Path(self.create_tempdir().full_path) / "evaluation" / "partial.npz"
        held = reference(self.noise(2))
        scores = {"evaluate__scores": ("kernel_distance", "precision_recall")}
        options = scores | {"condition__low_resolution": 4}
        whole = self.judge(44, held, **options)
        sampler = make_sampler(images(**options), 8)
        drawn = []

        def killed_at(batches):
            def sample(params, batch):
                if len(drawn) == batches:
                    raise KeyboardInterrupt
                drawn.append(batch)
                return sampler(params, batch)

            return sample

        with mock.patch.object(quality, "SAVE_EVERY", -1.0):
            for batches in (3, 5):
                with self.assertRaises(KeyboardInterrupt):
                    self.judge(44, held, partial=(path, "a"), sampler=killed_at(batches), **options)
            last = self.judge(44, held, partial=(path, "a"), sampler=killed_at(9), **options)
        self.assertLen(drawn, 6)  # none is drawn twice
        self.assertEqual(last, whole)
        self.assertFalse(path.exists())

    def test_samples_that_are_not_finite_are_counted_and_left_out(self):
        held, sampler = reference(self.noise(2)), make_sampler(images(), 8)

        def broken(params, batch):
            solution = sampler(params, batch)
            return solution._replace(x=solution.x.at[3, 0, 0, 0].set(np.nan))

        judged = self.judge(16, held, sampler=broken)
        self.assertEqual(judged["samples_not_finite"], 2)
        rest = np.delete(self.noise(2), (3, 11), axis=0)
        expected = frechet_distance(reference(rest).moments, held.moments)
        self.assertAlmostEqual(judged["fd_pixels"], expected, places=9)

    def test_a_partial_evaluation_that_is_cut_is_begun_anew(self):
        held, path = reference(self.noise(2)), Path(self.create_tempdir().full_path) / "p.npz"
        expected = self.judge(20, held)
        for data in (b"", b"PK\3\4 cut", b"\xff" * 100):
            path.write_bytes(data)
            with self.assertLogs("flowmatch_jax.evaluation.tally", "WARNING") as logs:
                self.assertEqual(self.judge(20, held, partial=(path, "{}")), expected)
            self.assertIn("drawn again", logs.output[0])

    def test_a_signal_keeps_what_is_known(self):
        held, path = reference(self.noise(2)), Path(self.create_tempdir().full_path) / "p.npz"
        whole, sampler = self.judge(40, held), make_sampler(images(), 8)

        def stopped(params, batch):
            if batch == 1:
                signal.raise_signal(signal.SIGTERM)
            return sampler(params, batch)

        with self.assertRaisesRegex(RunStopped, "SIGTERM: stopped after 16 of 40 samples, .* kept"):
            self.judge(40, held, partial=(path, "{}"), sampler=stopped)
        with self.assertLogs("flowmatch_jax.evaluation.quality", "INFO") as logs:
            self.assertEqual(self.judge(40, held, partial=(path, "{}")), whole)
        self.assertIn("Resuming with 16 samples", logs.output[0])

    def test_scores_besides_the_distance(self):
        held = reference(self.noise(5))
        judged = self.judge(40, held, evaluate__scores=("kernel_distance", "precision_recall"))
        # The samples are the reference itself.
        self.assertEqual((judged["precision_pixels"], judged["recall_pixels"]), (1, 1))
        self.assertLess(judged["kd_pixels"], 0)  # unbiased: equal sets are nearer than chance
        self.assertGreater(judged["kd_pixels_standard_error"], 0)

    def test_too_few_samples_for_the_features_are_warned_of_in_the_result(self):
        (warning,) = self.judge(20, reference(self.noise(3)))["warnings"]
        self.assertIn("20 samples are too few for 64 features", warning)
        self.assertNotIn("warnings", self.judge(72, reference(self.noise(9))))


if __name__ == "__main__":
    absltest.main()
