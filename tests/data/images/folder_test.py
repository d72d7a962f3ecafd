import shutil
from pathlib import Path

import numpy as np
from absl.testing import absltest

from flowmatch_jax.data.images.folder import open_folder
from flowmatch_jax.runtime.errors import UserError
from tests.data.prepare.archive_cases import picture


class FolderTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.root = Path(self.create_tempdir("pictures").full_path)
        self.cache = Path(self.create_tempdir("cache").full_path)
        for i in range(60):
            self.write(f"{'cats' if i % 3 else 'dogs'}/{i}.png", i)

    def write(self, name, seed):
        path = self.root / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(picture(seed, 4, 4, "PNG"))

    def open(self, split, fraction=0.25, **options):
        return open_folder(self.root, split, self.cache, fraction, **options)

    def test_splits_are_disjoint_and_complete(self):
        train, test = self.open("train"), self.open("test")
        self.assertLen({*train.paths, *test.paths}, 60)
        self.assertEqual(len(train) + len(test), 60)
        # 60 hashes with probability 1/4 each: 15 +- 3.4.
        self.assertBetween(len(test), 15 - 4 * 3.4, 15 + 4 * 3.4)
        self.assertEqual(train.read(0), (self.root / train.name(0)).read_bytes())

    def test_subfolders_are_classes(self):
        train = self.open("train")
        self.assertEqual(train.classes, ("cats", "dogs"))
        self.assertEqual(train.label.dtype, np.int32)
        for path, label in zip(train.paths, train.label, strict=True):
            self.assertEqual(path.split("/")[0], train.classes[label])
        self.write("loose.png", 1000)
        self.assertIsNone(self.open("train").label)

    def test_an_image_stays_in_its_split_when_others_come_and_names_change(self):
        before = set(self.open("test").sha256)
        for i in range(100, 130):
            self.write(f"cats/{i}.png", i)
        shutil.move(self.root / "dogs", self.root / "wolves")
        after = self.open("test")
        self.assertLess(before, set(after.sha256))
        self.assertEqual(after.classes, ("cats", "wolves"))

    def test_duplicates_count_once(self):
        hashes = self.open("train").content_hash
        shutil.copytree(self.root / "cats", self.root / "dogs" / "copies")
        train, test = self.open("train"), self.open("test")
        self.assertEqual(len(train) + len(test), 60)
        self.assertEqual(train.content_hash, hashes)
        self.assertFalse(any("copies" in path for path in train.paths))

    def test_what_was_found_is_said_once(self):
        shutil.copy(self.root / "cats" / "1.png", self.root / "cats" / "copy.png")
        with self.assertLogs("flowmatch_jax.data.images.folder", "INFO") as logs:
            train, test = self.open("train"), self.open("test")
            self.open("train")
        (line,) = (record.getMessage() for record in logs.records)
        self.assertEqual(
            line,
            f"{self.root}: 60 pictures, 1 duplicate; {len(train)} to train, {len(test)} to test; "
            "classes 0 cats, 1 dogs",
        )
        (self.root / "cats" / "copy.png").unlink()
        self.write("loose.png", 1000)
        with self.assertLogs("flowmatch_jax.data.images.folder", "INFO") as logs:
            self.open("train")
        self.assertRegex(logs.output[0], "61 pictures; [0-9]+ to train, [0-9]+ to test; no classes")

    def test_many_classes_are_shortened(self):
        for i in range(100, 160):
            self.write(f"{i}/{i}.png", i)
        with self.assertLogs("flowmatch_jax.data.images.folder", "INFO") as logs:
            self.open("train")
        self.assertEndsWith(logs.output[0], "8 108, 9 109, ... 61 dogs")

    def test_other_files_and_excluded_ones_are_no_images(self):
        (self.root / "notes.txt").write_text("x")
        self.write("cats/._0.png", 200)
        self.write(".thumbnails/0.png", 201)
        (self.root / "cats" / "folder.png").mkdir()
        self.write("cats/100-small.png", 100)
        self.write("cats/UPPER.PNG", 101)
        train, test = (self.open(s, exclude=("*-small.*",)) for s in ("train", "test"))
        self.assertEqual(len(train) + len(test), 61)

    def test_a_changed_file_is_hashed_again(self):
        before = self.open("train").content_hash
        self.assertEqual(self.open("train").content_hash, before)
        for i in range(20):
            self.write(f"cats/{3 * i + 1}.png", 500 + i)
        self.assertNotEqual(self.open("train").content_hash, before)

    def test_mistakes(self):
        empty = Path(self.create_tempdir("empty").full_path)
        (empty / "readme.txt").write_text("x")
        with self.assertRaisesRegex(UserError, r"path: .*no image in it \(.png, .jpg"):
            open_folder(empty, "train", self.cache, 0.1)
        with self.assertRaisesRegex(UserError, "path: .*no such folder"):
            open_folder(empty / "absent", "train", self.cache, 0.1)
        with self.assertRaisesRegex(
            UserError, "test_fraction: got 0.0; .*the test split 0 of 60 images"
        ):
            self.open("test", 0.0)


if __name__ == "__main__":
    absltest.main()
