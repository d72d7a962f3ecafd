import errno
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.data.arrays import ArrayOptions
from flowmatch_jax.data.dataset import Dataset
from flowmatch_jax.data.images import decode as images
from flowmatch_jax.data.images import encoded
from flowmatch_jax.data.images.encoded import CorruptImage
from flowmatch_jax.data.images.folder import open_folder
from flowmatch_jax.data.prepare import prepare
from flowmatch_jax.data.sets import NAMES, FolderOptions, Options, open_dataset
from flowmatch_jax.runtime.errors import UserError
from tests.data.prepare import archive_cases

ROOT = Path(__file__).parents[2]


class PreparedTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.data_dir = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.archives = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        for name in ("cifar10", "imagenet32/old"):
            layout = archive_cases.make(name, cls.archives)
            prepare.prepare(layout, cls.data_dir, cls.archives)

    def open(self, split="train", name="cifar10", **options):
        return open_dataset(Options(name, data_dir=str(self.data_dir), **options), split)

    def test_what_was_prepared_comes_back_whichever_way_it_is_kept(self):
        for split, n in (("train", 30), ("test", 6)):
            memory, records = self.open(split), self.open(split, storage="records")
            self.assertEqual((len(memory), memory.shape, memory.levels), (n, (32, 32, 3), 256))
            self.assertEqual((memory.num_classes, memory.version), (10, "1.0.0"))
            np.testing.assert_array_equal(memory.x, np.stack([records.x[i] for i in range(n)]))
            np.testing.assert_array_equal(memory.label, records.label)
            self.assertEqual(memory.content_hash, records.content_hash)
            self.assertEqual(self.open(split, storage="device").x.dtype, np.uint8)

    def test_versions_and_sets_without_labels(self):
        source = self.open(name="imagenet32", version="old")
        self.assertEqual((source.version, source.label, source.num_classes), ("old", None, None))
        self.assertNotIn("label", source[0])

    def test_some_classes(self):
        whole, some = self.open(), self.open(classes=(2, 5))
        kept = np.isin(whole.label, (2, 5))
        np.testing.assert_array_equal(some.x, whole.x[kept])
        np.testing.assert_array_equal(some.label, whole.label[kept])
        self.assertEqual((some.num_classes, some.shape), (10, whole.shape))
        self.assertNotEqual(some.content_hash, whole.content_hash)
        self.assertEqual(some.content_hash, self.open(classes=(5, 2)).content_hash)
        with self.assertRaisesRegex(UserError, r"classes: got \(2,\); images decoded on access"):
            Options("cifar10", storage="records", classes=(2,)).validate()

    def test_another_size_is_another_set(self):
        small, whole = self.open(size=16), self.open()
        self.assertEqual(small.shape, (16, 16, 3))
        means = whole.x.reshape(30, 16, 2, 16, 2, 3).mean(axis=(2, 4))
        self.assertLessEqual(np.abs(small.x - means).max(), 0.5)
        self.assertNotEqual(small.content_hash, whole.content_hash)
        np.testing.assert_array_equal(self.open().x, whole.x)

    def test_a_set_that_is_not_prepared_says_how_to(self):
        command = f"flowmatch_jax.data.prepare imagenet64/antialiased --data_dir={self.data_dir}"
        with self.assertRaisesRegex(UserError, f"name: got .*not prepared; run: .*{command}"):
            self.open(name="imagenet64", version="antialiased")

    def test_a_damaged_set_is_refused(self):
        layout = archive_cases.make("cifar10", self.archives, (10, 3))
        folder = prepare.prepare(layout, self.data_dir / "damaged", self.archives)
        options = Options("cifar10", data_dir=str(self.data_dir / "damaged"))
        for name in (
            "cifar10-train.array_record-00000-of-00001",
            "labels-train.npy",
            "manifest.json",
        ):
            data = (folder / name).read_bytes()
            for damaged in (data[: len(data) // 2], b""):
                (folder / name).write_bytes(damaged)
                with self.assertRaisesRegex(
                    UserError, f"{name} is damaged .*; remove .* and run: "
                ):
                    open_dataset(options, "train")
            (folder / name).unlink()
            with self.assertRaisesRegex(UserError, f"{name} is damaged .*No such file"):
                open_dataset(options, "train")
            (folder / name).write_bytes(data)
        self.assertLen(open_dataset(options, "train"), 10)

    def test_a_damaged_record_is_a_corrupt_image(self):
        layout = archive_cases.make("imagenet32/old", self.archives, (10, 3))
        folder = prepare.prepare(layout, self.data_dir / "bits", self.archives)
        shard = next(folder.glob("*train.array_record*"))
        data = bytearray(shard.read_bytes())
        place = data.find(b"IDAT", 1000)
        data[place : place + 50] = bytes(50)
        shard.write_bytes(data)
        options = Options("imagenet32", "old", str(self.data_dir / "bits"), storage="records")
        source, corrupt = open_dataset(options, "train"), 0
        for i in range(10):
            try:
                source.x[i]
            except CorruptImage as error:
                corrupt += 1
                self.assertEqual(error.name, f"imagenet32 train {i}")
        self.assertBetween(corrupt, 1, 9)

    def test_a_data_dir_that_is_a_file(self):
        options = Options("cifar10", data_dir=str(next(self.archives.iterdir())))
        with self.assertRaisesRegex(UserError, "name: got 'cifar10'; not prepared"):
            open_dataset(options, "train")

    def test_reading_imports_no_tensorflow(self):
        code = (
            "import sys\n"
            "from flowmatch_jax.data.sets import Options, open_dataset\n"
            f"source = open_dataset(Options('cifar10', data_dir={str(self.data_dir)!r}, "
            "storage='records'), 'train')\n"
            "print(source.x[3].shape, 'tensorflow' in sys.modules)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        self.assertEqual(done.stdout, "(32, 32, 3) False\n")


class FolderTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.data_dir = Path(self.create_tempdir("data").full_path)
        self.root = Path(self.create_tempdir("pictures").full_path)
        kinds = (("PNG", "RGBA"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("PNG", "L"))
        for i in range(40):
            kind, mode = kinds[i % 4]
            path = self.root / "ab"[i % 2] / f"{i}.{kind.lower()}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(archive_cases.picture(i, 10 + i, 30, kind, mode))

    def open(self, split="train", size=8, folder=None, **options):
        how = FolderOptions(path=str(self.root), test_fraction=0.3, **(folder or {}))
        options = Options("folder", data_dir=str(self.data_dir), size=size, folder=how, **options)
        return open_dataset(options, split)

    def test_mixed_files_become_squares_of_one_size(self):
        train, test = self.open(), self.open("test")
        self.assertEqual(len(train) + len(test), 40)
        self.assertEqual((train.shape, train.levels, train.num_classes), ((8, 8, 3), 256, 2))
        self.assertEqual((train.name, train.label.shape), ("pictures", (len(train),)))
        self.assertNotEqual(train.content_hash, test.content_hash)
        self.assertEqual(self.open(folder={"channels": 1}).shape, (8, 8, 1))

    def test_memory_and_records_agree(self):
        memory, records = self.open(), self.open(storage="records")
        np.testing.assert_array_equal(
            memory.x, np.stack([records.x[i] for i in range(len(memory))])
        )

    def test_how_it_is_read_is_part_of_its_hash(self):
        hashes = {
            self.open(**options).content_hash
            for options in (
                {},
                {"size": 9},
                {"folder": {"background": "black"}},
                {"folder": {"channels": 1}},
            )
        }
        self.assertLen(hashes, 4)

    def test_unreadable_files_are_skipped_up_to_the_limit(self):
        train = self.open()
        (self.root / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
        (self.root / "a" / "empty.jpg").write_bytes(b"")
        with self.assertLogs("flowmatch_jax", "WARNING") as logs:
            both = [self.open(split, max_corrupt=2) for split in ("train", "test")]
        self.assertEqual(sum(map(len, both)), 40)
        self.assertEqual(both[0].label.shape, (len(train),))
        np.testing.assert_array_equal(both[0].x, train.x)
        self.assertIn("a/broken.png", "".join(logs.output))
        with (
            self.assertLogs("flowmatch_jax", "WARNING"),
            self.assertRaisesRegex(UserError, "max_corrupt: got 0"),
        ):
            [self.open(split, max_corrupt=0) for split in ("train", "test")]

    def test_what_cannot_be_read_is_part_of_the_hash(self):
        """Two readings of the same files that kept other images are other data."""
        whole = self.open()
        files = open_folder(self.root, "train", self.data_dir / "folder", 0.3)
        shutil.rmtree(self.data_dir / "folder")
        unlucky = files.read(5)

        def decode(data, *arguments):
            if data == unlucky:
                raise ValueError("out of memory")
            return images.decode(data, *arguments)

        with (
            mock.patch.object(encoded, "decode", decode),
            self.assertLogs("flowmatch_jax", "WARNING"),
        ):
            less = self.open()
        self.assertLen(less, len(whole) - 1)
        self.assertNotEqual(less.content_hash, whole.content_hash)

    def test_nothing_that_can_be_read(self):
        for path in self.root.rglob("*.*"):
            path.write_bytes(b"broken" + path.name.encode())
        with (
            self.assertLogs("flowmatch_jax", "WARNING"),
            self.assertRaisesRegex(UserError, "max_corrupt: got 50; it leaves the train split 0"),
        ):
            self.open(max_corrupt=50)

    @parameterized.parameters(50, 3)
    def test_nothing_that_can_be_read_of_records(self, max_corrupt):
        """It is told when the split is opened, not when it is evaluated."""
        self.open(storage="records", max_corrupt=max_corrupt)
        for path in self.root.rglob("*.*"):
            path.write_bytes(b"broken" + path.name.encode())
        tried = r"of the first \d+ images of the test split 0 can be read"
        with self.assertRaisesRegex(UserError, f"max_corrupt: got {max_corrupt}; {tried}"):
            self.open("test", storage="records", max_corrupt=max_corrupt)

    def test_an_empty_folder(self):
        empty = FolderOptions(path=self.create_tempdir("empty").full_path)
        with self.assertRaisesRegex(UserError, "folder.path: .*no image"):
            open_dataset(
                Options("folder", data_dir=str(self.data_dir), size=8, folder=empty), "train"
            )

    def test_a_data_dir_that_cannot_be_written(self):
        """Hashes are done without; decoded images need the room, and records none."""
        self.data_dir = Path(self.create_tempfile("occupied").full_path)
        with self.assertLogs("flowmatch_jax.runtime.files", "WARNING") as logs:
            with self.assertRaisesRegex(UserError, "storage: got 'memory'; .*occupied.*=records"):
                self.open()
            self.open(storage="records")
        self.assertIn("cannot be", logs.output[0])

    def test_a_folder_that_cannot_be_read(self):
        error = PermissionError(errno.EACCES, "Permission denied")
        with (
            mock.patch.object(Path, "read_bytes", side_effect=error),
            self.assertRaisesRegex(UserError, "folder.path: got .*cannot be read: .*denied"),
        ):
            self.open()

    def test_decoded_images_are_made_once(self):
        self.open()
        made = {p: p.stat().st_mtime_ns for p in self.data_dir.rglob("*.npy")}
        self.open()
        self.assertEqual({p: p.stat().st_mtime_ns for p in self.data_dir.rglob("*.npy")}, made)
        self.assertLen(made, 2)


class ValidateTest(parameterized.TestCase):
    @parameterized.parameters(
        (Options("mnist"), "name: got 'mnist'; it may be one of: "),
        (Options("cifar10", storage="disk"), "storage: got 'disk'"),
        (Options("cifar10", version="old"), "version: got 'old'; cifar10 has one"),
        (Options("imagenet64"), "version: got None; it may be one of: antialiased, old"),
        (Options("imagenet32", version="new"), "version: got 'new'"),
        (Options("digits", size=16), "size: got 16; digits has its own"),
        (Options("mine:make", size=16), "size: got 16; mine:make has its own"),
        (Options("mine:make", version="old"), "version: got 'old'; mine:make has one"),
        (Options("mine.py:make"), "name: got 'mine.py:make'; your own is module:function"),
        (Options("arrays"), "arrays.train: got None; name a .npy or .npz file"),
        (Options("arrays", arrays=ArrayOptions("x.npy"), size=8), "size: got 8; arrays has its"),
        (Options("folder", size=8), "folder.path: got None; name the folder"),
        (Options("folder", folder=FolderOptions("x")), "size: got None; pictures of a folder"),
        (Options("cifar10", size=0), "size: got 0"),
        (
            Options("folder", size=8, folder=FolderOptions("x", channels=2)),
            "folder.channels: got 2",
        ),
        (
            Options("folder", size=8, folder=FolderOptions("x", test_fraction=1.0)),
            "folder.test_fraction",
        ),
        (Options("folder", size=8, folder=FolderOptions("x", background="?")), "folder.background"),
    )
    def test_mistakes(self, options, message):
        with self.assertRaisesRegex(UserError, message):
            options.validate()

    def test_all_names(self):
        for name in ("digits", "rings", "cifar10", "imagenet256", "folder", "arrays"):
            self.assertIn(name, NAMES)

    def test_one_s_own_data_are_given_the_split_and_the_options(self):
        module = types.ModuleType("own_data")
        module.make = lambda split, n: Dataset("own", "1", split, np.zeros((n, 2), np.float32))
        module.none = lambda split: None
        with mock.patch.dict(sys.modules, own_data=module):
            dataset = open_dataset(Options("own_data:make", options={"n": 3}), "test")
            self.assertEqual((dataset.split, dataset.shape, len(dataset)), ("test", (2,), 3))
            with self.assertRaisesRegex(UserError, "^name: .*it raised TypeError: .*'m'"):
                open_dataset(Options("own_data:make", options={"m": 3}), "test")
            with self.assertRaisesRegex(UserError, "it returns NoneType for the split 'train'"):
                open_dataset(Options("own_data:none"), "train")


if __name__ == "__main__":
    absltest.main()
