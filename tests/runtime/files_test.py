import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

from absl.testing import absltest

from flowmatch_jax.runtime.errors import RunStopped
from flowmatch_jax.runtime.files import (
    Unreadable,
    full_disk_stops,
    locked,
    move_folder,
    owned,
    read_json,
    remembered,
    write_atomically,
)


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

    def test_json_that_is_whole(self):
        path = self.folder / "a.json"
        with self.assertRaises(FileNotFoundError):
            read_json(path)
        path.write_text('{"a": [1]}')
        self.assertEqual(read_json(path), {"a": [1]})
        for data in (b"", b'{"a": [', b"\xff"):
            path.write_bytes(data)
            with self.assertRaisesRegex(Unreadable, "a.json: it is no whole JSON"):
                read_json(path)

    def test_what_is_remembered_is_made_once_and_never_worth_a_run(self):
        path, made = self.folder / "deep" / "n.json", []

        def recall():
            dump = lambda n: json.dumps(n).encode()  # noqa: E731
            return remembered(path, read_json, lambda: made.append(1) or 7, dump)

        self.assertEqual((recall(), recall(), len(made)), (7, 7, 1))
        path.write_bytes(b"")
        with self.assertLogs("flowmatch_jax.runtime.files", "WARNING") as logs:
            self.assertEqual(recall(), 7)
        self.assertIn("n.json cannot be read and is computed again", logs.output[0])
        self.assertEqual((recall(), len(made)), (7, 2))
        path.unlink()
        full = OSError(errno.ENOSPC, "No space left on device")
        with (
            mock.patch.object(os, "fsync", side_effect=full),
            self.assertLogs("flowmatch_jax.runtime.files", "WARNING") as logs,
        ):
            self.assertEqual(recall(), 7)
        self.assertIn("No space left", logs.output[0])

    def test_one_owner(self):
        path = self.folder / "lock"
        with owned(path, "process 1") as first, owned(path, "process 2") as second:
            self.assertEqual((first, second), (None, "process 1"))
        with owned(path, "process 3") as third:
            self.assertIsNone(third)
        self.assertEqual(path.read_text(), "process 3\n")

    def test_a_killed_owner_owns_nothing(self):
        path = self.folder / "lock"
        code = (
            "import os, sys; from pathlib import Path\n"
            "from flowmatch_jax.runtime.files import owned\n"
            "with owned(Path(sys.argv[1]), 'it') as other: print(other); os.kill(os.getpid(), 9)"
        )
        killed = subprocess.run([sys.executable, "-c", code, path], check=False)
        self.assertEqual(killed.returncode, -9)
        with owned(path, "us") as other:
            self.assertIsNone(other)

    def test_a_file_system_without_locks(self):
        no_locks = OSError(errno.ENOLCK, "No locks available")
        with (
            mock.patch("fcntl.flock", side_effect=no_locks),
            self.assertLogs("flowmatch_jax.runtime.files", "WARNING") as logs,
            owned(self.folder / "lock", "us") as other,
        ):
            self.assertIsNone(other)
        self.assertIn("cannot be locked", logs.output[0])

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

    def test_full_disk_ends_a_run_in_one_line(self):
        """As Python tells it, as libraries in C++ do, and as what another error came of."""

        def wrapped():
            try:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
            except OSError:
                raise ValueError("the save failed")  # noqa: B904

        def raises(error):
            raise error

        for write in (
            lambda: raises(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
            lambda: raises(ValueError("RESOURCE_EXHAUSTED: write: No space left on device [x]")),
            wrapped,
        ):
            with self.assertRaises(RunStopped) as caught, full_disk_stops(self.folder):
                write()
            self.assertIn(f"the disk of {self.folder} is full", str(caught.exception))

    def test_other_errors_pass(self):
        with self.assertRaises(PermissionError), full_disk_stops(self.folder):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with self.assertRaises(KeyboardInterrupt), full_disk_stops(self.folder):
            raise KeyboardInterrupt


if __name__ == "__main__":
    absltest.main()
