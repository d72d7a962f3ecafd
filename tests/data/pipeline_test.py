from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.data import pipeline
from flowmatch_jax.data.sources import Source


def numbers(n):
    """A source whose items are their own indices."""
    x = np.arange(n, dtype=np.float32)[:, None]
    return Source("numbers", "1", "train", x, label=np.arange(n, dtype=np.int32))


def take(batches, n):
    return [next(batches) for _ in range(n)]


class PipelineTest(parameterized.TestCase):
    def test_each_epoch_is_a_new_permutation(self):
        batches = take(pipeline.train_batches(numbers(60), 10, seed=0), 18)
        epochs = np.concatenate([batch["x"][:, 0] for batch in batches]).reshape(3, 60)
        for epoch in epochs:
            self.assertCountEqual(epoch, range(60))
        self.assertLen({epoch.tobytes() for epoch in epochs}, 3)
        for batch in batches:
            np.testing.assert_array_equal(batch["x"][:, 0], batch["label"])

    def test_order_depends_on_the_seed_alone(self):
        one, again, other = (
            np.stack([b["label"] for b in take(pipeline.train_batches(numbers(60), 8, s, t), 20)])
            for s, t in ((0, 1), (0, 4), (1, 1))
        )
        np.testing.assert_array_equal(one, again)
        self.assertFalse(np.array_equal(one, other))

    def test_a_restored_position_gives_the_batches_that_would_have_come(self):
        batches = pipeline.train_batches(numbers(60), 7, seed=0)
        take(batches, 13)  # past the first epoch
        state = batches.get_state()
        expected = take(batches, 10)
        fresh = pipeline.train_batches(numbers(60), 7, seed=0)
        fresh.set_state(state)
        for batch, wanted in zip(take(fresh, 10), expected, strict=True):
            np.testing.assert_array_equal(batch["label"], wanted["label"])

    def test_processes_read_disjoint_parts(self):
        parts = []
        for index in range(3):
            with (
                mock.patch.object(jax, "process_count", return_value=3),
                mock.patch.object(jax, "process_index", return_value=index),
            ):
                batches = take(pipeline.train_batches(numbers(60), 12, seed=0), 10)
            self.assertEqual(batches[0]["label"].shape, (4,))
            parts.append({int(label) for batch in batches for label in batch["label"]})
        self.assertEqual([len(part) for part in parts], [20, 20, 20])
        self.assertEqual(set.union(*parts), set(range(60)))

    def test_ordered_batches_cover_a_split_once(self):
        batches = pipeline.ordered_batches(numbers(25), 10, None)
        self.assertEqual([len(batch) for batch in batches], [10, 10, 5])
        np.testing.assert_array_equal(np.concatenate(batches)[:, 0], range(25))
        self.assertEqual([len(b) for b in pipeline.ordered_batches(numbers(25), 10, 12)], [10, 2])


if __name__ == "__main__":
    absltest.main()
