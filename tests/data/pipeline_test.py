from functools import partial
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.couplings import MinibatchOT
from flowmatch_jax.data import pipeline
from flowmatch_jax.data.dataset import Dataset, Items
from flowmatch_jax.data.images.encoded import Pictures
from flowmatch_jax.data.pairing import Pairing
from flowmatch_jax.runtime.errors import UserError
from tests.data.images.encoded_test import Encoded


def numbers(n):
    """A source whose items are their own indices."""
    x = np.arange(n, dtype=np.float32)[:, None]
    return Dataset("numbers", "1", "train", x, label=np.arange(n, dtype=np.int32))


def take(batches, n):
    return [next(batches) for _ in range(n)]


def labels(batches):
    return np.stack([batch["label"] for batch in batches])


def noise(batches):
    return np.stack([batch["x0"] for batch in batches])


def pairing(batches, levels=256):
    return Pairing(MinibatchOT(batches=batches), levels, by_label=False, seed=7)


def pictures(n=60, broken=()):
    """A source of pictures that are decoded when read, each full of its own index."""
    files = Encoded(n, tuple(broken))
    return Dataset(
        "pictures",
        "1",
        "train",
        Pictures(files, (n, 4, 4, 3)),
        label=np.arange(n, dtype=np.int32),
        levels=256,
    )


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
            labels(take(pipeline.train_batches(numbers(60), 8, seed, threads=threads), 20))
            for seed, threads in ((0, 1), (0, 4), (1, 1))
        )
        np.testing.assert_array_equal(one, again)
        self.assertFalse(np.array_equal(one, other))

    def test_going_on_gives_the_batches_that_would_have_come(self):
        whole = labels(take(pipeline.train_batches(numbers(60), 7, seed=0), 40))
        for start in (1, 13, 30):  # the epochs end within batches 8, 17, 25, 34
            rest = take(pipeline.train_batches(numbers(60), 7, seed=0, start=start), 40 - start)
            np.testing.assert_array_equal(labels(rest), whole[start:])

    def test_processes_read_parts_of_the_batches_of_one(self):
        whole = labels(take(pipeline.train_batches(numbers(60), 12, seed=0), 10))
        parts = []
        for index in range(3):
            with (
                mock.patch.object(jax, "process_count", return_value=3),
                mock.patch.object(jax, "process_index", return_value=index),
            ):
                batches = take(pipeline.train_batches(numbers(60), 12, seed=0), 10)
            self.assertEqual(batches[0]["x"].shape, (4, 1))
            parts.append(labels(batches))
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)

    def test_workers_give_the_batches_that_threads_give(self):
        """And go on where the others stopped."""
        wanted = take(pipeline.train_batches(pictures(), 7, seed=3), 12)
        got = take(pipeline.train_batches(pictures(), 7, seed=3, workers=2), 5)
        got += take(pipeline.train_batches(pictures(), 7, seed=3, workers=1, start=5), 7)
        for batch, other in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(batch["x"], other["x"])
            np.testing.assert_array_equal(batch["x"][:, 0, 0, 0], batch["label"])

    def test_unreadable_images_are_replaced_named_and_counted(self):
        wanted = labels(take(pipeline.train_batches(pictures(), 6, seed=0), 10))
        batches = pipeline.train_batches(pictures(broken=(4, 5, 59)), 6, seed=0, max_corrupt=3)
        with self.assertLogs("flowmatch_jax", "WARNING") as logs:
            got = take(batches, 10)
        stands_in = {4: 6, 5: 6, 59: 0}
        expected = np.vectorize(lambda i: stands_in.get(i, i))(wanted)
        np.testing.assert_array_equal(labels(got), expected)
        np.testing.assert_array_equal(np.stack([b["x"][:, 0, 0, 0] for b in got]), expected)
        self.assertLen(logs.output, 3)
        self.assertIn("number 59", "".join(logs.output))
        self.assertEqual(got[0].keys(), {"x", "label"})

    def test_too_many_unreadable_images_are_an_error(self):
        for workers in (0, 1):
            source = pictures(broken=(4, 5))
            batches = pipeline.train_batches(source, 6, seed=0, max_corrupt=1, workers=workers)
            with (
                self.assertLogs("flowmatch_jax", "WARNING"),
                self.assertRaisesRegex(UserError, "max_corrupt: got 1; 2 images"),
            ):
                take(batches, 10)

    def test_indices_of_images_that_are_on_the_device(self):
        wanted = take(pipeline.train_batches(numbers(60), 8, seed=0), 10)
        for batch, other in zip(
            take(pipeline.train_batches(numbers(60), 8, seed=0, indices_only=True), 10),
            wanted,
            strict=True,
        ):
            self.assertEqual(batch["index"].dtype, np.int32)
            np.testing.assert_array_equal(batch["index"], other["label"])

    def test_a_pairing_adds_noise_and_leaves_the_rest(self):
        """Whatever the threads and the workers, and whether items or indices are read."""
        plain = take(pipeline.train_batches(pictures(), 6, seed=0), 8)
        for batches in (1, 3):
            options = {"pairing": pairing(batches)}
            read = partial(pipeline.train_batches, pictures(), 6, seed=0, **options)
            wanted = take(read(), 8)
            for got, without in zip(wanted, plain, strict=True):
                self.assertEqual((got["x0"].shape, got["x0"].dtype), ((6, 4, 4, 3), np.float32))
                for name in ("x", "label"):
                    np.testing.assert_array_equal(got[name], without[name])
            np.testing.assert_array_equal(noise(take(read(threads=4), 8)), noise(wanted))
            for start in (1, 3, 5):
                np.testing.assert_array_equal(
                    noise(take(read(start=start), 8 - start)), noise(wanted)[start:]
                )
        np.testing.assert_array_equal(noise(take(read(workers=1), 8)), noise(wanted))
        # Points, of which only the indices may be read.
        read = partial(pipeline.train_batches, numbers(60), 6, seed=0, pairing=pairing(2, None))
        wanted, got = take(read(), 8), take(read(indices_only=True), 8)
        np.testing.assert_array_equal(noise(got), noise(wanted))
        self.assertCountEqual(got[0], ["index", "label", "x0"])

    def test_items_of_a_source_that_are_paired_with_nothing(self):
        source = Dataset("points", "1", "train", -1.0 - np.arange(9, dtype=np.float32)[:, None])
        alone = Pairing(None, None, by_label=False, seed=0, source=source)
        got = take(pipeline.train_batches(numbers(60), 6, seed=0, pairing=alone), 8)
        wanted = take(pipeline.train_batches(numbers(60), 6, seed=0), 8)
        for n, (batch, plain) in enumerate(zip(got, wanted, strict=True)):
            np.testing.assert_array_equal(batch["x"], plain["x"])
            np.testing.assert_array_equal(batch["x0"], alone.draw(n, batch["x"], None))

    def test_batches_that_are_paired_at_once(self):
        """Of two batches in one process, and of the parts that two processes have of them."""
        options = {"seed": 0, "pairing": pairing(2, None)}
        both = take(pipeline.train_batches(numbers(60), 6, **options), 2)
        x1 = np.concatenate([batch["x"] for batch in both])
        np.testing.assert_array_equal(
            np.concatenate(noise(both)), pairing(2, None).draw(0, x1, None)
        )
        plain = labels(take(pipeline.train_batches(numbers(60), 6, seed=0), 2))
        for index in range(2):
            with (
                mock.patch.object(jax, "process_count", return_value=2),
                mock.patch.object(jax, "process_index", return_value=index),
            ):
                part = take(pipeline.train_batches(numbers(60), 6, **options), 2)
            np.testing.assert_array_equal(labels(part), plain[:, 3 * index : 3 * index + 3])
            x1 = np.concatenate([batch["x"] for batch in part])
            expected = pairing(2, None).draw(0, x1, None)
            np.testing.assert_array_equal(np.concatenate(noise(part)), expected)

    def test_ordered_batches_cover_a_split_once(self):
        batches = list(pipeline.ordered_batches(numbers(25), 10))
        self.assertEqual([len(batch["x"]) for batch in batches], [10, 10, 5])
        np.testing.assert_array_equal(np.concatenate([b["x"] for b in batches])[:, 0], range(25))
        np.testing.assert_array_equal(np.concatenate([b["label"] for b in batches]), range(25))
        some = pipeline.ordered_batches(numbers(25), 10, 12)
        self.assertEqual([len(batch["x"]) for batch in some], [10, 2])

    def test_items_of_a_file_are_read_at_once(self):
        file, reads = numbers(60).x, []

        class File:
            shape = file.shape

            def __getitem__(self, indices):
                reads.append(indices)
                return file[indices]

        source = Dataset("items", "1", "train", Items(File(), np.arange(0, 50, 2)))
        x = np.concatenate([batch["x"] for batch in pipeline.ordered_batches(source, 10)])
        np.testing.assert_array_equal(x[:, 0], range(0, 50, 2))
        self.assertLen(reads, 3)
        pipeline.items_at(source, np.array([24, 0, 3]))
        self.assertLen(reads, 4)

    def test_ordered_batches_leave_unreadable_images_out(self):
        source = pictures(25, broken=(3, 24))
        with self.assertLogs("flowmatch_jax", "WARNING"):
            batches = list(pipeline.ordered_batches(source, 12, max_corrupt=2))
        for batch, n in zip(batches, (11, 12), strict=False):
            self.assertLen(batch["x"], n)
            np.testing.assert_array_equal(batch["x"][:, 0, 0, 0], batch["label"])
        with (
            self.assertLogs("flowmatch_jax", "WARNING"),
            self.assertRaisesRegex(UserError, "max_corrupt: got 1"),
        ):
            list(pipeline.ordered_batches(source, 12, max_corrupt=1))

    def test_ordered_batches_without_a_readable_image(self):
        source = pictures(25, broken=(0, 1))
        none = "max_corrupt: got 5; none of the first 2 images of the train split"
        with (
            self.assertLogs("flowmatch_jax", "WARNING"),
            self.assertRaisesRegex(UserError, none),
        ):
            list(pipeline.ordered_batches(source, 12, limit=2, max_corrupt=5))

    def test_items_at_indices(self):
        items = pipeline.items_at(numbers(25), np.array([24, 0, 3]))
        np.testing.assert_array_equal(items["x"][:, 0], [24, 0, 3])
        np.testing.assert_array_equal(items["label"], [24, 0, 3])
        with self.assertLogs("flowmatch_jax", "WARNING"):
            items = pipeline.items_at(pictures(25, broken=(3,)), np.array([3, 5]), max_corrupt=1)
        np.testing.assert_array_equal(items["x"][:, 0, 0, 0], [4, 5])  # the next stands in
        np.testing.assert_array_equal(items["label"], [4, 5])


if __name__ == "__main__":
    absltest.main()
