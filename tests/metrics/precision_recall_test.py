from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmatch_jax.metrics import precision_recall as module
from flowmatch_jax.metrics.precision_recall import precision_recall
from flowmatch_jax.runtime.errors import UserError


def features(n, dims, seed=0, scale=1.0):
    return scale * np.random.RandomState(seed).randn(n, dims)


def on_a_line(*x):
    return np.array(x, float)[:, None]


def by_pairs(samples, data, k):
    """Both fractions from the definition, distance by distance."""

    def within(x, centres):
        between = np.linalg.norm(centres[:, None] - centres, axis=-1)
        radii = np.sort(between, axis=1)[:, k]  # column 0 is each itself
        return np.mean([(np.linalg.norm(centres - y, axis=1) <= radii).any() for y in x])

    return within(samples, data), within(data, samples)


class PrecisionRecallTest(parameterized.TestCase):
    def test_by_hand(self):
        """k = 1: the data's manifold is [-1, 4], the samples' [3, 5] and [4.5, 35.5]."""
        data, samples = on_a_line(0, 1, 2, 3), on_a_line(3.5, 4, 4.5, 20)
        result = precision_recall(samples, data, k=1)
        self.assertEqual(result, (0.5, 0.25))
        self.assertEqual((result.precision, result.recall), (0.5, 0.25))

    def test_three_neighbours(self):
        """The data's radii are 3, 2, 2, 3, so its manifold is [-3, 6]."""
        samples = on_a_line(-3, 6, 6.1, -3.1, 100, 200, 300, 400)
        self.assertEqual(precision_recall(samples, on_a_line(0, 1, 2, 3)).precision, 0.25)

    @parameterized.parameters((40, 30, 2, 1), (40, 30, 5, 3), (30, 50, 20, 5))
    def test_the_definition(self, n, m, dims, k):
        samples, data = features(n, dims), features(m, dims, seed=1, scale=1.3) + 0.3
        expected = by_pairs(samples, data, k)
        self.assertEqual(precision_recall(samples, data, k), expected)
        for block in (1, 7):
            with mock.patch.object(module, "BLOCK", block):
                self.assertEqual(precision_recall(samples, data, k), expected)

    def test_one_set_and_sets_apart(self):
        x = features(50, 8)
        self.assertEqual(precision_recall(x, x), (1, 1))
        self.assertEqual(precision_recall(x, x + 100), (0, 0))

    def test_one_picture_again_and_again(self):
        """It is precise, if it is of the data, and recalls itself alone: its balls are points."""
        data = features(40, 300) + 5
        samples = np.tile(data[7], (20, 1)).astype(np.float32)
        self.assertEqual(precision_recall(samples, data.astype(np.float32)), (1, 1 / 40))

    @settings(deadline=None, max_examples=30)
    @given(seed=st.integers(0, 1000), n=st.integers(4, 12), m=st.integers(4, 12))
    def test_laws(self, seed, n, m):
        """Precision is recall of the sets swapped; turned, moved, scaled, reordered they stay."""
        a, b, order = features(n, 3, seed), features(m, 3, seed + 1), np.arange(n)[::-1]
        result = precision_recall(a, b)
        self.assertEqual(precision_recall(b, a), result[::-1])
        turn = np.linalg.qr(features(3, 3, seed + 2))[0]
        moved = precision_recall(3 * a[order] @ turn + 1, 3 * b @ turn + 1)
        self.assertEqual(moved, result)

    @parameterized.parameters(
        (np.zeros((3, 2)), np.zeros((9, 2)), "^samples: .* N must be 4"),
        (np.zeros((9, 2)), np.zeros((0, 2)), "^data: .* N must be 4"),
        (np.zeros((9, 2)), np.zeros((9, 3)), "^data: .* that of samples, 2"),
        (np.full((9, 2), np.inf), np.zeros((9, 2)), "^samples: .*18 values"),
    )
    def test_what_it_refuses(self, samples, data, message):
        with self.assertRaisesRegex(UserError, message):
            precision_recall(samples, data)

    def test_no_neighbours(self):
        with self.assertRaisesRegex(UserError, "^k: got 0"):
            precision_recall(features(9, 2), features(9, 2), k=0)


if __name__ == "__main__":
    absltest.main()
