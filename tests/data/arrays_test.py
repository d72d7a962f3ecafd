from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.data.arrays import ArrayOptions, open_arrays
from flowmatch_jax.runtime.errors import UserError

N = 60
RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.randint(0, 256, (N, 4, 4, 3)).astype(np.uint8)
POINTS = RANDOM.randn(N, 2)
LABELS = np.arange(N) % 3


class ArraysTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)

    def save(self, name, *arrays, **named):
        path = self.folder / name
        if named:
            np.savez(path, **named)
        else:
            np.save(path, *arrays)
        return str(path)

    def open(self, train, test=None, **options):
        options = ArrayOptions(train, test, **options)
        return [open_arrays(options, split) for split in ("train", "test")]


class FilesTest(ArraysTestCase):
    def test_images(self):
        train = self.save("train.npy", IMAGES)
        train, test = self.open(train, self.save("test.npy", IMAGES[:5]))
        np.testing.assert_array_equal(train.x, IMAGES)
        np.testing.assert_array_equal(test.x, IMAGES[:5])
        self.assertIsInstance(train.x, np.memmap)
        self.assertEqual((train.name, train.levels, train.num_classes), ("train", 256, None))
        for dataset in (train, test):
            dataset.validate()

    @parameterized.parameters(np.float16, np.float32, np.float64, ">f4")
    def test_points_of_any_precision(self, dtype):
        points = POINTS.astype(dtype)
        path = self.save("points.npy", points)
        train, _ = self.open(path, path)
        np.testing.assert_array_equal(train.x, points.astype(np.float32))
        self.assertEqual((train.x.dtype, train.levels), (np.float32, None))
        train.validate()

    @parameterized.parameters("images", "points", "x", "anything")
    def test_the_array_of_an_archive(self, name):
        x = POINTS if name == "points" else IMAGES
        for labels in ("labels", "label"):
            others = {} if name == "anything" else {"seed": np.arange(N)}
            path = self.save("a.npz", **{name: x, labels: LABELS}, **others)
            train, test = self.open(path, path)
            np.testing.assert_array_equal(train.x, x.astype(test.x.dtype))
            np.testing.assert_array_equal(train.label, LABELS)
            self.assertEqual((train.label.dtype, train.num_classes), (np.int32, 3))
            train.validate()

    def test_classes_of_both_splits_count(self):
        train = self.save("a.npz", x=IMAGES, labels=LABELS)
        test = self.save("b.npz", x=IMAGES, labels=LABELS + 4)
        self.assertEqual([split.num_classes for split in self.open(train, test)], [7, 7])

    def test_the_content_identifies_the_data(self):
        first, second = (self.save(f"{name}.npy", IMAGES) for name in "ab")
        hashes = [self.open(path, path)[0].content_hash for path in (first, second)]
        self.assertEqual(*hashes)
        labelled = [self.save(f"{i}.npz", x=IMAGES, label=(LABELS + i) % 3) for i in range(2)]
        hashes += [self.open(path, path)[0].content_hash for path in labelled]
        hashes.append(self.open(first, first)[0].content_hash)
        self.assertLen(set(hashes), 3)


class SplitTest(ArraysTestCase):
    def test_the_splits_are_disjoint_and_complete(self):
        path = self.save("a.npz", x=IMAGES, labels=LABELS)
        train, test = self.open(path, test_fraction=0.25)
        # 60 hashes with probability 1/4 each: 15 +- 3.4.
        self.assertBetween(len(test), 15 - 4 * 3.4, 15 + 4 * 3.4)
        label = {x.tobytes(): y for x, y in zip(IMAGES, LABELS, strict=True)}
        both = [(x.tobytes(), y) for s in (train, test) for x, y in zip(s.x, s.label, strict=True)]
        self.assertEqual(dict(both), label)
        self.assertLen(both, N)
        self.assertEqual((train.num_classes, test.num_classes), (3, 3))

    def test_an_item_stays_in_its_split_when_others_come_and_go(self):
        few, all_ = (self.save(f"{n}.npy", POINTS[:n][::-1]) for n in (N // 2, N))
        for before, after in zip(self.open(few), self.open(all_), strict=True):
            self.assertContainsSubset(set(map(tuple, before.x)), set(map(tuple, after.x)))

    def test_equal_items_are_in_one_split(self):
        path = self.save("a.npy", np.repeat(POINTS, 3, axis=0))
        train, test = (set(map(tuple, split.x)) for split in self.open(path))
        self.assertEmpty(train & test)

    def test_too_few(self):
        path = self.save("a.npy", POINTS)
        message = f"^test_fraction: got 0.0; that leaves the test split 0 of {N} items in {path}"
        with self.assertRaisesRegex(UserError, message):
            self.open(path, test_fraction=0.0)


class MistakesTest(ArraysTestCase):
    @parameterized.parameters(
        (IMAGES / 255, r"float64 \(60, 4, 4, 3\)'; images are uint8 \[N, H, W, C\]"),
        (IMAGES[..., 0], r"uint8 \(60, 4, 4\)'; images are uint8 \[N, H, W, C\]"),
        (IMAGES.astype(np.int64), "int64"),
        (POINTS.astype(np.int64), r"int64 \(60, 2\)'; .* points are floats \[N, D\]"),
        (POINTS[:, 0], r"float64 \(60,\)"),
        (np.float64(3), r"float64 \(\)"),
        (POINTS[:0], r"\(0, 2\)'; it is empty"),
        (IMAGES[:0], r"\(0, 4, 4, 3\)'; it is empty"),
        (np.where(POINTS > 2, np.nan, POINTS), "points are finite"),
        (1e300 * POINTS, "points are finite, also in float32"),
    )
    def test_arrays_that_are_no_items(self, array, message):
        path = self.save("a.npy", array)
        with self.assertRaisesRegex(UserError, f"^train: got '{path}: .*{message}"):
            self.open(path)

    def test_grey_levels(self):
        path = self.save("a.npy", IMAGES % 17)
        self.assertEqual(self.open(path, levels=17)[0].levels, 17)
        with self.assertRaisesRegex(UserError, "^train: .* up to 16'; with levels = 16 they are 0"):
            self.open(path, levels=16)

    @parameterized.parameters(
        ({"a": POINTS, "b": POINTS}, "a, b"),
        ({"images": IMAGES, "points": POINTS}, "images, points"),
        ({"labels": LABELS}, "labels"),
        ({"x": POINTS, "labels": LABELS, "label": LABELS}, "x, labels, label"),
    )
    def test_archives_of_which_it_is_unclear_what_to_take(self, arrays, listed):
        path = self.save("a.npz", **arrays)
        message = f"^train: got '{path}: {listed}'; name the array of its items images, points or x"
        with self.assertRaisesRegex(UserError, message):
            self.open(path)

    @parameterized.parameters(
        (LABELS[:5],), (LABELS / 2,), (LABELS - 1,), (LABELS + 2**31,), (LABELS[:, None],)
    )
    def test_labels(self, labels):
        path = self.save("a.npz", x=POINTS, labels=labels)
        message = f"^train: got '{path}: labels .*; labels are integers from 0, one for each of the"
        with self.assertRaisesRegex(UserError, message):
            self.open(path)

    @parameterized.parameters(
        "cut.npy", "cut.npz", "bits.npz", "text.npy", "nothing.npy", "object.npy"
    )
    def test_files_that_cannot_be_read(self, name):
        path = self.folder / name
        self.save("whole.npy", IMAGES)
        self.save("whole.npz", x=IMAGES)
        whole = (self.folder / f"whole{path.suffix}").read_bytes()
        content = {
            "cut": whole[:-100],
            "bits": whole[:500] + bytes(100) + whole[600:],
            "text": b"x y\n0 1\n",
            "nothing": b"",
        }
        if name == "object.npy":
            np.save(path, np.array([None, 1], object), allow_pickle=True)
        else:
            path.write_bytes(content[path.stem])
        with self.assertRaisesRegex(UserError, f"^train: got '{path}'; it is no .npy or .npz"):
            self.open(str(path))

    def test_splits_that_are_unlike(self):
        train = self.save("a.npy", IMAGES)
        for other in (IMAGES[:, :2], POINTS):
            test = self.save("b.npy", other)
            with self.assertRaisesRegex(UserError, f"^test: got '{test}: .* give a test split of"):
                self.open(train, test)
        labelled = self.save("c.npz", x=IMAGES, label=LABELS)
        with self.assertRaisesRegex(UserError, "^test: .* without labels'; .* with labels: give"):
            self.open(labelled, train)

    def test_options(self):
        for options, message in (
            (ArrayOptions(), "train: got None; name a .npy or .npz file"),
            (ArrayOptions("a.npy", test_fraction=1.0), "test_fraction: got 1.0"),
            (ArrayOptions("a.npy", levels=1), "levels: got 1; bytes have 2 to 256"),
            (ArrayOptions("a.npy", levels=257), "levels: got 257"),
        ):
            with self.assertRaisesRegex(UserError, message):
                options.validate()
        with self.assertRaisesRegex(UserError, "^train: got 'nope.npy'; there is no such file"):
            self.open("nope.npy")


if __name__ == "__main__":
    absltest.main()
