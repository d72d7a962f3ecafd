from itertools import islice

import jax
import numpy as np
from absl.testing import absltest, parameterized
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import chi2_contingency, chisquare, kstest

from flowmatch_jax.couplings import MinibatchOT
from flowmatch_jax.data.dataset import Dataset
from flowmatch_jax.data.digits import digits
from flowmatch_jax.data.pairing import Pairing
from flowmatch_jax.data.pipeline import train_batches
from flowmatch_jax.pixels import centres, dequantise

POINTS = np.random.RandomState(0).randn(400, 2).astype(np.float32) + 3
LABELS = np.arange(400, dtype=np.int32) % 5


def pairing(seed=0, process=0, by_label=False, levels=None, **options):
    return Pairing(MinibatchOT(**options), levels, by_label, seed, process)


def sides(x, normal):
    """Which points are on each side of the plane through 0."""
    return x @ normal > 0, x @ normal <= 0


def squared(x0, x1):
    return cdist(x0.reshape(len(x0), -1), x1.reshape(len(x1), -1), "sqeuclidean")


class PairingTest(parameterized.TestCase):
    @parameterized.parameters({}, {"by_label": True}, {"method": "sinkhorn"})
    def test_noise_is_unit_gaussian(self, **options):
        x0 = np.concatenate([pairing(**options).draw(n, POINTS, LABELS) for n in range(3)])
        self.assertEqual((x0.shape, x0.dtype), ((1200, 2), np.float32))
        if "method" not in options:  # draws from a plan repeat samples, so they are dependent
            self.assertGreater(kstest(x0.ravel(), "norm").pvalue, 1e-3)
        np.testing.assert_allclose(x0.mean(axis=0), 0, atol=8 / np.sqrt(1200))
        np.testing.assert_allclose(x0.std(axis=0), 1, atol=8 / np.sqrt(2 * 1200))

    def test_within_a_label_noise_is_unit_gaussian(self):
        """Labels are far apart here, so without them noise would be taken from one side each."""
        x1 = POINTS + 10 * LABELS[:, None].astype(np.float32)
        for by_label in (True, False):
            x0 = pairing(by_label=by_label).draw(0, x1, LABELS)
            p = kstest(x0[LABELS == 4].sum(axis=1) / np.sqrt(2), "norm").pvalue
            self.assertEqual(p > 1e-3, by_label)

    def test_classes_of_training_batches_keep_their_frequencies(self):
        """And with the labels given, noise says nothing of the class: chi-squared tests on digits.

        Noise is told apart by its side of the plane between the means of two classes.
        """
        data = digits("train")
        x = centres(data.x, data.levels).reshape(len(data), -1)
        normal = x[data.label == 0].mean(axis=0) - x[data.label == 1].mean(axis=0)
        for by_label in (True, False):
            paired = pairing(by_label=by_label, levels=data.levels)
            batches = list(islice(train_batches(data, 128, seed=0, pairing=paired), 30))
            label = np.concatenate([batch["label"] for batch in batches])
            noise = np.concatenate([batch["x0"].reshape(128, -1) for batch in batches])
            counts = np.bincount(label, minlength=10)
            expected = len(label) * np.asarray(data.label_counts) / len(data)
            self.assertGreater(chisquare(counts, expected).pvalue, 1e-3)
            table = [[np.sum(side[label == c]) for c in range(10)] for side in sides(noise, normal)]
            self.assertEqual(chi2_contingency(table).pvalue > 1e-3, by_label)

    def test_it_depends_on_seed_batch_and_process_alone(self):
        first = pairing().draw(0, POINTS, None)
        np.testing.assert_array_equal(first, pairing().draw(0, POINTS, None))
        others = [
            pairing(1).draw(0, POINTS, None),
            pairing().draw(1, POINTS, None),
            pairing(process=1).draw(0, POINTS, None),
        ]
        for other in others:
            self.assertEmpty(np.intersect1d(first, other))
        self.assertEqual(Pairing(MinibatchOT(), None, False, 0).process, jax.process_index())

    def test_items_of_a_source(self):
        """Each is as frequent as the others, and belongs to the nearest data if asked for."""
        corners = np.array([[0, 0], [0, 9], [9, 0], [9, 9]], np.float32)
        source = Dataset("corners", "1", "train", corners)
        alone = Pairing(None, None, by_label=False, seed=0, source=source)
        x0 = np.concatenate([alone.draw(n, POINTS, None) for n in range(5)])
        found, counts = np.unique(x0, axis=0, return_counts=True)
        np.testing.assert_array_equal(found, corners)
        self.assertGreater(chisquare(counts).pvalue, 1e-3)
        transport = Pairing(MinibatchOT(), None, by_label=False, seed=0, source=source)
        x0, before = transport.draw(0, POINTS, None), alone.draw(0, POINTS, None)
        np.testing.assert_array_equal(*(np.sort(x[:, 0]) for x in (x0, before)))
        cost = squared(x0, POINTS)
        np.testing.assert_allclose(
            np.trace(cost), cost[linear_sum_assignment(cost)].sum(), rtol=1e-5
        )

    def test_images_of_a_source_are_paired_in_model_space(self):
        """Levels of two datasets compare as grey values: 0 and 16 of 17, 0 and 255 of 256."""
        source = Dataset("ends", "1", "train", np.array([[[[0]]], [[[16]]]], np.uint8), levels=17)
        stored = np.array([0, 255, 0, 255] * 8, np.uint8).reshape(32, 1, 1, 1)
        pairs = Pairing(MinibatchOT(), 256, by_label=False, seed=0, source=source)
        x0 = pairs.draw(0, stored, None).ravel()
        self.assertEqual(x0.dtype, np.uint8)
        # As many as possible are paired with their like.
        alike = min((x0 == 0).sum(), 16) + min((x0 == 16).sum(), 16)
        self.assertEqual(((x0 == 16) == (stored.ravel() == 255)).sum(), alike)

    def test_images_are_paired_in_model_space(self):
        """At the centres: with the noise of dequantisation, pairs are within 1% of the optimum."""
        images = np.random.RandomState(0).randint(0, 17, (64, 4, 4, 1)).astype(np.uint8)
        x0 = pairing(levels=17).draw(0, images, None)
        x1 = (2 * images.astype(float) + 1) / 17 - 1
        cost = squared(x0, x1)
        optimum = cost[linear_sum_assignment(cost)].sum()
        np.testing.assert_allclose(np.trace(cost), optimum, rtol=1e-5)
        cost = squared(x0, np.asarray(dequantise(jax.random.key(0), images, 17)))
        self.assertLess(np.trace(cost), 1.01 * cost[linear_sum_assignment(cost)].sum())


if __name__ == "__main__":
    absltest.main()
