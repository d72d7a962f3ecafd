import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmatch_jax.metrics.inception_score import inception_score
from flowmatch_jax.runtime.errors import UserError


def naive(logits, splits):
    """torch-fidelity's formula, unshuffled: softmax, parts i N // splits, np.std."""
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = []
    for i in range(splits):
        part = p[i * len(p) // splits : (i + 1) * len(p) // splits]
        kl = (part * (np.log(part) - np.log(part.mean(axis=0)))).sum(axis=1)
        scores.append(np.exp(kl.mean()))
    return np.mean(scores), np.std(scores)


def random_logits(n, classes, seed=0):
    return 2 * np.random.RandomState(seed).randn(n, classes)


class InceptionScoreTest(parameterized.TestCase):
    @parameterized.parameters(2, 10, 1000)
    def test_certain_and_of_all_classes_alike_is_their_number(self, classes):
        logits = 1e4 * np.eye(classes, dtype=np.float32)
        mean, std = inception_score(np.tile(logits, (3, 1)), splits=3)
        self.assertAlmostEqual(mean / classes, 1, places=12)
        self.assertAlmostEqual(std, 0, places=9)

    def test_all_alike_is_one(self):
        mean, std = inception_score(np.tile(random_logits(1, 5), (20, 1)))
        self.assertAlmostEqual(mean, 1, places=12)
        self.assertAlmostEqual(std, 0, places=12)

    def test_parts_are_consecutive_and_the_variance_is_divided_by_their_number(self):
        """The first part scores 2, the second 1."""
        logits = 1e3 * np.array([[1, 0], [0, 1], [1, 0], [1, 0]])
        np.testing.assert_allclose(inception_score(logits, splits=2), [1.5, 0.5], rtol=1e-12)

    @parameterized.parameters((20, 1), (20, 10), (23, 7))
    def test_the_formula(self, n, splits):
        logits = random_logits(n, 6)
        expected = naive(logits, splits)
        np.testing.assert_allclose(inception_score(logits, splits), expected, rtol=1e-10)

    @settings(deadline=None, max_examples=30)
    @given(seed=st.integers(0, 1000), n=st.integers(1, 30), classes=st.integers(1, 6))
    def test_laws(self, seed, n, classes):
        """In [1, C]; logits count up to a constant a sample; no order of samples or classes."""
        rng, logits = np.random.RandomState(seed), random_logits(n, classes, seed)
        mean = inception_score(logits, splits=1).mean
        self.assertBetween(mean, 1 - 1e-12, classes + 1e-12)
        shifted = logits[rng.permutation(n)][:, rng.permutation(classes)] + 100 * rng.randn(n, 1)
        self.assertAlmostEqual(inception_score(shifted, splits=1).mean, mean, places=9)

    @parameterized.parameters(
        (np.zeros((0, 3)), 1, "^logits: "),
        (np.zeros(3), 1, "^logits: .* shape"),
        (np.full((4, 3), np.nan), 2, "^logits: .*12 values"),
        (np.full((4, 3), -np.inf), 2, "^logits: .*finite"),
        (np.zeros((4, 3)), 5, "^splits: got 5; .* 4 samples"),
        (np.zeros((4, 3)), 0, "^splits: got 0"),
    )
    def test_what_it_refuses(self, logits, splits, message):
        with self.assertRaisesRegex(UserError, message):
            inception_score(logits, splits)


if __name__ == "__main__":
    absltest.main()
