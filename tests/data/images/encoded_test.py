import json
import os
import resource
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl.testing import absltest

from flowmatch_jax.data.images.decode import encode
from flowmatch_jax.data.images.encoded import CorruptCount, CorruptImage, Pictures, decoded
from flowmatch_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Encoded:
    """Pictures of 4 x 4 in memory, image i full of i; those in ``broken`` are cut short."""

    n: int
    broken: tuple = ()

    def __len__(self):
        return self.n

    def read(self, i):
        data = encode(np.full((4, 4, 3), i % 256, np.uint8))
        return data[:40] if i in self.broken else data

    def name(self, i):
        return f"number {i}"


def pictures(n=10, broken=()):
    return Pictures(Encoded(n, broken), (n, 4, 4, 3))


class EncodedTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path) / "train"

    def test_pictures_are_decoded_when_read(self):
        np.testing.assert_array_equal(pictures()[7], np.full((4, 4, 3), 7))
        self.assertLen(pictures(), 10)
        with self.assertRaisesRegex(CorruptImage, "number 3: "):
            pictures(broken=(3,))[3]
        with self.assertRaisesRegex(CorruptImage, r"number 0: its shape is \(4, 4, 3\)"):
            Pictures(Encoded(1), (1, 5, 5, 3))[0]

    def test_decoded_once_and_mapped(self):
        x, kept = decoded(pictures(300), self.folder, 0, "test")
        np.testing.assert_array_equal(x[:, 0, 0, 0], np.arange(300) % 256)
        np.testing.assert_array_equal(kept, range(300))
        self.assertIsInstance(x, np.memmap)
        self.assertFalse(x.flags.writeable)
        before = (self.folder / "x.npy").stat().st_mtime_ns
        again, _ = decoded(pictures(300), self.folder, 0, "test")
        np.testing.assert_array_equal(again, x)
        self.assertEqual((self.folder / "x.npy").stat().st_mtime_ns, before)

    def test_what_is_no_longer_what_was_decoded_is_decoded_again(self):
        def zeros(path):
            path.write_bytes(path.read_bytes()[:128] + bytes(path.stat().st_size - 128))

        harms = {
            "x.npy": (
                zeros,
                lambda p: os.truncate(p, 5000),
                lambda p: p.write_bytes(b""),
                os.remove,
            ),
            "kept.npy": (lambda p: os.truncate(p, 60), lambda p: np.save(p, np.arange(3))),
            "corrupt.json": (lambda p: p.write_text("{"), lambda p: p.write_bytes(b"\xff")),
            "seal.txt": (lambda p: p.write_bytes(b"\xff"),),
        }
        for name, kinds in harms.items():
            for harm in kinds:
                decoded(pictures(300), self.folder, 0, "test")
                harm(self.folder / name)
                with self.assertLogs("flowmatch_jax", "WARNING") as logs:
                    x, kept = decoded(pictures(300), self.folder, 0, "test")
                self.assertIn("decoded again", logs.output[0])
                np.testing.assert_array_equal(x[:, 0, 0, 0], np.arange(300) % 256)
                self.assertLen(kept, 300)

    def test_what_was_decoded_before_there_were_seals_is_used(self):
        decoded(pictures(), self.folder, 0, "test")
        (self.folder / "seal.txt").unlink()
        before = (self.folder / "x.npy").stat().st_mtime_ns
        decoded(pictures(), self.folder, 0, "test")
        self.assertEqual((self.folder / "x.npy").stat().st_mtime_ns, before)

    def test_unreadable_ones_are_left_out_and_logged_by_name(self):
        with self.assertLogs("flowmatch_jax", "WARNING") as logs:
            x, kept = decoded(pictures(broken=(2, 5)), self.folder, 2, "test")
        self.assertEqual(list(kept), [0, 1, 3, 4, 6, 7, 8, 9])
        np.testing.assert_array_equal(x[:, 0, 0, 0], kept)
        self.assertIn("number 5", "".join(logs.output))
        # The limit holds for what was decoded before, too.
        with self.assertRaisesRegex(UserError, "max_corrupt: got 1; 2 images cannot be read"):
            decoded(pictures(broken=(2, 5)), self.folder, 1, "test")

    def test_too_many_leave_nothing_behind(self):
        with self.assertRaisesRegex(UserError, "max_corrupt: got 1"):
            decoded(pictures(broken=(2, 5)), self.folder, 1, "test")
        self.assertEqual([p.name for p in self.folder.parent.iterdir()], ["train.lock"])

    def test_leftovers_of_a_killed_process_are_not_taken_for_the_set(self):
        partial = self.folder.with_suffix(".partial")
        partial.mkdir()
        (partial / "x.npy").write_bytes(b"half")
        x, _ = decoded(pictures(), self.folder, 0, "test")
        self.assertLen(x, 10)
        self.assertFalse(partial.exists())

    def test_one_builds_and_the_others_wait(self):
        reads = []

        class Counted(Encoded):
            def read(self, i):
                reads.append(i)
                return super().read(i)

        source = Pictures(Counted(10), (10, 4, 4, 3))
        results = []
        threads = [
            threading.Thread(
                target=lambda: results.append(decoded(source, self.folder, 0, "test")[0].sum())
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertCountEqual(reads, range(10))
        self.assertEqual(results, [results[0]] * 4)

    def test_a_full_disk_is_told_and_leaves_nothing_behind(self):
        # A limit on the size of files stands for the disk: the write fails in the same way.
        code = (
            "import resource, sys; from pathlib import Path\n"
            "from tests.data.images.encoded_test import pictures\n"
            "from flowmatch_jax.data.images.encoded import decoded\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, (4096, {resource.RLIM_INFINITY}))\n"
            "decoded(pictures(200), Path(sys.argv[1]), 0, 'test')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(self.folder)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertIn("UserError: storage: got 'memory'", done.stderr)
        self.assertIn("File too large", done.stderr)
        self.assertEqual([p.name for p in self.folder.parent.iterdir()], ["train.lock"])

    def test_a_folder_that_cannot_be_written(self):
        blocked = Path(self.create_tempfile("file").full_path)
        with self.assertRaisesRegex(UserError, "storage: got 'memory'.*storage=records"):
            decoded(pictures(), blocked / "decoded" / "train", 0, "test")

    def test_each_unreadable_image_counts_once(self):
        count = CorruptCount(1)
        with self.assertLogs("flowmatch_jax", "WARNING") as logs:
            count.add({"a": "cut"})
            count.add({"a": "cut once more"})
        self.assertLen(logs.output, 1)
        with (
            self.assertLogs("flowmatch_jax", "WARNING"),
            self.assertRaisesRegex(UserError, "max_corrupt: got 1; 2 images cannot be read .a, b"),
        ):
            count.add({"b": "cut"})

    def test_what_was_skipped_is_recorded(self):
        with self.assertLogs("flowmatch_jax", "WARNING"):
            decoded(pictures(broken=(4,)), self.folder, 1, "test")
        corrupt = json.loads((self.folder / "corrupt.json").read_text())
        self.assertEqual(list(corrupt), ["number 4"])


if __name__ == "__main__":
    absltest.main()
