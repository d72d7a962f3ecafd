import os
import threading
import time
from pathlib import Path
from unittest import mock

from absl.testing import absltest

from flowmatch_jax.files import locked, move_folder, write_atomically


class FilesTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)

    def test_text_and_bytes(self):
        path = self.folder / "a.json"
        write_atomically(path, "grün")
        self.assertEqual(path.read_text(), "grün")
        write_atomically(path, b"\0\1")
        self.assertEqual(path.read_bytes(), b"\0\1")
        self.assertEqual(os.listdir(self.folder), ["a.json"])

    def test_a_write_that_fails_leaves_the_file_as_it_was(self):
        path = self.folder / "a.json"
        write_atomically(path, "before")
        with (
            mock.patch.object(os, "fsync", side_effect=OSError("full")),
            self.assertRaises(OSError),
        ):
            write_atomically(path, "after")
        self.assertEqual(path.read_text(), "before")
        self.assertEqual(os.listdir(self.folder), ["a.json"])

    def test_many_writers_of_one_file(self):
        path = self.folder / "a.json"
        texts = [str(i) * 10_000 for i in range(8)]
        threads = [threading.Thread(target=write_atomically, args=(path, t)) for t in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertIn(path.read_text(), texts)
        self.assertEqual(os.listdir(self.folder), ["a.json"])

    def test_a_folder_is_on_the_disk_before_it_has_its_name(self):
        partial, final = self.folder / "x.partial", self.folder / "x"
        (partial / "deep").mkdir(parents=True)
        (partial / "deep" / "file").write_text("1")
        order, rename, fsync = [], Path.rename, os.fsync
        with (
            mock.patch.object(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd))),
            mock.patch.object(Path, "rename", lambda *a: (order.append("rename"), rename(*a))),
        ):
            move_folder(partial, final)
        self.assertEqual(order, ["fsync"] * 3 + ["rename", "fsync"])
        self.assertEqual((final / "deep" / "file").read_text(), "1")

    def test_one_at_a_time(self):
        inside, most = [], []

        def enter():
            with locked(self.folder / "lock"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.01)
                inside.pop()

        threads = [threading.Thread(target=enter) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(most, [1] * 5)


if __name__ == "__main__":
    absltest.main()
