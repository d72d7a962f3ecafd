import contextlib
import hashlib
import http.server
import io
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.data.images import records
from flowmatch_jax.data.images.decode import decode, square
from flowmatch_jax.data.prepare import __main__ as command
from flowmatch_jax.data.prepare import prepare
from flowmatch_jax.data.prepare.layouts import LAYOUTS
from flowmatch_jax.runtime.errors import UserError
from tests.data.prepare import archive_cases

ROOT = Path(__file__).parents[3]


def files_of(folder):
    """Name -> hash of the content, of all files below a folder.

    Of shards the name alone: the order of an example's fields differs from process to process. The
    manifest holds the hashes of what is in them.
    """
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): "array_record" in path.name
        or hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def run(*arguments, layout=None):
    """prepare's main with a layout in place of the published one: (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    layouts = {layout.name: layout} if layout else {}
    with (
        mock.patch.dict(LAYOUTS, layouts),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = command.main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


class PrepareTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.archives = Path(self.create_tempdir("archives").full_path)
        self.data_dir = Path(self.create_tempdir("data").full_path)

    def prepare(self, layout, **options):
        return prepare.prepare(layout, self.data_dir, self.archives, **options)

    @parameterized.parameters(*archive_cases.MAKERS)
    def test_every_set_is_prepared_as_its_archives_have_it(self, name):
        layout = archive_cases.make(name, self.archives)
        code, out, _ = run(
            name, f"--data_dir={self.data_dir}", f"--archives={self.archives}", layout=layout
        )
        folder = self.data_dir / name / "1.0.0"
        self.assertEqual((code, out), (0, f"Prepared: {folder}\n"))
        for split, n in (("train", 30), ("test", 6)):
            files = records.open_records(self.data_dir, name, "1.0.0", split)
            self.assertLen(files, n)
            part = layout.splits[split]
            paths = [self.archives / archive.file for archive in part.archives]
            for i, item in enumerate(part.walk(paths)):
                image = square(decode(files.read(i), layout.shape[-1]), None)
                data = item.load()
                if isinstance(data, bytes):
                    data = square(decode(data), layout.shape[0])
                np.testing.assert_array_equal(image, data)
                if item.label is not None:
                    self.assertEqual(files.label[i], item.label)
        manifest = json.loads((folder / "manifest.json").read_text())
        self.assertEqual(manifest["splits"]["train"]["images"], 30)
        checksums = {archive.file: archive.sha256 for archive in layout.archives}
        self.assertEqual(manifest["archives"], checksums)
        self.assertCountEqual([p.name for p in folder.parent.iterdir()], ["1.0.0", "1.0.0.lock"])

    def test_tensorflow_datasets_reads_it_by_name(self):
        import tensorflow_datasets as tfds

        self.prepare(archive_cases.make("imagenet32/antialiased", self.archives))
        builder = tfds.builder_from_directory(self.data_dir / "imagenet32/antialiased/1.0.0")
        self.assertEqual(builder.info.splits["train"].num_examples, 30)
        self.assertEqual(builder.info.features["label"].num_classes, 1000)

    def test_done_once(self):
        layout = archive_cases.make("cifar10", self.archives)
        folder = self.prepare(layout)
        before = files_of(folder)
        for path in self.archives.iterdir():
            path.unlink()
        self.assertEqual(self.prepare(layout), folder)
        self.assertEqual(files_of(folder), before)

    def test_an_interrupted_preparation_goes_on_where_it_stopped(self):
        layout = archive_cases.make("cifar10", self.archives)
        with mock.patch.object(records, "SHARD", 4):
            shards = files_of(prepare.prepare(layout, self.data_dir / "shards", self.archives))
            loads = []

            def walk(paths):
                for item in layout.splits["train"].walk(paths):
                    load = lambda item=item: loads.append(item.name) or item.load()  # noqa: E731
                    if len(loads) == 22:
                        raise KeyboardInterrupt
                    yield item._replace(load=load)

            train = replace(layout.splits["train"], walk=walk)
            interrupted = replace(layout, splits=layout.splits | {"train": train})
            with self.assertRaises(KeyboardInterrupt):
                self.prepare(interrupted)
            self.assertFalse((self.data_dir / "cifar10/1.0.0").exists())
            loads.append("once more")
            folder = self.prepare(interrupted)
        self.assertEqual(files_of(folder), shards)
        # Five shards of four were whole; of the sixth two images are read again.
        self.assertLen(loads, 22 + 1 + 10)

    def test_killed_again_and_again(self):
        layout = archive_cases.make("cifar10", self.archives, (400, 50))
        with mock.patch.object(records, "SHARD", 8):
            wanted = files_of(prepare.prepare(layout, self.data_dir / "wanted", self.archives))
        code = (
            "import sys; from pathlib import Path\n"
            "from flowmatch_jax.data.images import records\n"
            "from flowmatch_jax.data.prepare import prepare\n"
            "from tests.data.prepare.archive_cases import small_layout\n"
            "data, archives = map(Path, sys.argv[1:])\n"
            "records.SHARD = 8\n"
            "prepare.prepare(small_layout('cifar10', archives, (400, 50)), data, archives)\n"
        )
        program = [sys.executable, "-c", code, str(self.data_dir), str(self.archives)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        folder, kills = self.data_dir / "cifar10/1.0.0", 0
        for attempt in itertools.count():
            process = subprocess.Popen(program, cwd=ROOT, **quiet)
            partial = folder.with_name("1.0.0.partial")
            written = len(list(partial.glob("*.array_record-*")))
            while process.poll() is None and attempt < 5:
                if len(list(partial.glob("*.array_record-*"))) > written + 5:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                    break
                time.sleep(0.001)
            if process.wait() == 0:
                break
            self.assertFalse(folder.exists())
        self.assertGreater(kills, 1)
        self.assertEqual(files_of(folder), wanted)

    def test_of_two_at_once_one_prepares_and_the_other_waits(self):
        layout = archive_cases.make("cifar10", self.archives)
        names = []
        write = records.write_shard

        def write_shard(path, *arguments):
            names.append(path.name)
            time.sleep(0.1)
            return write(path, *arguments)

        with mock.patch.object(records, "write_shard", write_shard):
            threads = [threading.Thread(target=self.prepare, args=(layout,)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertLen(names, 2)  # a shard of each split
        self.assertTrue((self.data_dir / "cifar10/1.0.0/manifest.json").exists())

    def test_stopped_by_hand(self):
        layout = archive_cases.make("cifar10", self.archives)
        with mock.patch.object(records, "write_shard", side_effect=KeyboardInterrupt):
            code, _, err = run(
                "cifar10",
                f"--data_dir={self.data_dir}",
                f"--archives={self.archives}",
                layout=layout,
            )
        self.assertEqual(code, 1)
        self.assertEndsWith(err, "stopped; run the same command to continue\n")

    def test_a_truncated_archive(self):
        for name in ("cifar10", "fashion_mnist"):
            layout = archive_cases.make(name, self.archives)
            path = self.archives / layout.archives[0].file
            path.write_bytes(path.read_bytes()[:-50])
            with self.assertRaisesRegex(UserError, f"{path.name}'; its sha256 is .*truncated"):
                self.prepare(layout)
            self.assertFalse((self.data_dir / name / "1.0.0").exists())

    def test_an_archive_checked_before_is_read_again_only_when_it_changed(self):
        layout = archive_cases.make("cifar10", self.archives)
        (archive,) = layout.archives
        path = self.archives / archive.file
        remembered = Path(self.create_tempdir().full_path) / "checked.json"
        prepare._check_archives({archive: path}, "", remembered)
        with mock.patch.object(prepare, "_sha256", side_effect=AssertionError):
            prepare._check_archives({archive: path}, "", remembered)
        path.write_bytes(b"another")
        with self.assertRaisesRegex(UserError, "its sha256 is"):
            prepare._check_archives({archive: path}, "", remembered)

    def test_missing_archives_are_named_at_once_with_their_place(self):
        begin = time.monotonic()
        code, _, err = run("imagenet64/antialiased", f"--data_dir={self.data_dir}")
        self.assertLess(time.monotonic() - begin, 5)
        self.assertEqual((code, err.count("\n")), (2, 1))
        self.assertIn(f"{self.data_dir}/downloads/manual", err)
        self.assertIn("Imagenet64_train_part2_npz.zip", err)
        self.assertIn("https://image-net.org", err)

    def test_without_a_network(self):
        layout = archive_cases.make("cifar10", self.archives)
        (archive,) = layout.archives
        train = layout.splits["train"]
        # Nobody listens at this port.
        unreachable = replace(archive, file="absent.tar.gz", url="http://127.0.0.1:9/absent.tar.gz")
        layout = replace(layout, splits={"train": replace(train, archives=(unreachable,))})
        with self.assertRaisesRegex(UserError, "put absent.tar.gz there .*refused"):
            self.prepare(layout)

    def test_an_archive_is_downloaded_where_it_is_missing(self):
        layout = archive_cases.make("cifar10", self.archives)
        handler = lambda *a: http.server.SimpleHTTPRequestHandler(*a, directory=self.archives)  # noqa: E731
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            (archive,) = layout.archives
            url = f"http://127.0.0.1:{server.server_port}/{archive.file}"
            archives = (replace(archive, url=url),)
            splits = {n: replace(s, archives=archives) for n, s in layout.splits.items()}
            prepare.prepare(replace(layout, splits=splits), self.data_dir)
            server.shutdown()
        self.assertTrue((self.data_dir / "downloads/manual" / archive.file).exists())

    def test_a_download_that_broke_off_is_not_kept(self):
        layout = archive_cases.make("cifar10", self.archives)
        (archive,) = layout.archives
        whole = (self.archives / archive.file).read_bytes()
        (self.archives / archive.file).write_bytes(whole[:-100])
        handler = lambda *a: http.server.SimpleHTTPRequestHandler(*a, directory=self.archives)  # noqa: E731
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/{archive.file}"
            archives = (replace(archive, url=url),)
            splits = {n: replace(s, archives=archives) for n, s in layout.splits.items()}
            layout = replace(layout, splits=splits)
            with self.assertRaisesRegex(UserError, "put cifar-10-binary.tar.gz there .*broke off"):
                prepare.prepare(layout, self.data_dir)
            self.assertEmpty(list((self.data_dir / "downloads/manual").iterdir()))
            (self.archives / archive.file).write_bytes(whole)
            prepare.prepare(layout, self.data_dir)
            server.shutdown()

    def test_where_a_package_put_the_archives(self):
        layout = archive_cases.make("fashion_mnist", self.archives)
        folder = prepare.prepare(replace(layout, found=(str(self.archives),)), self.data_dir)
        self.assertTrue((folder / "manifest.json").exists())

    def test_another_number_of_images(self):
        layout = archive_cases.make("cifar10", self.archives)
        for n in (29, 31):
            splits = layout.splits | {"train": replace(layout.splits["train"], images=n)}
            with self.assertRaisesRegex(UserError, f"it holds 30 images, cifar10 has {n}"):
                self.prepare(replace(layout, splits=splits))
            self.assertFalse((self.data_dir / "cifar10/1.0.0").exists())

    def test_labels_out_of_range(self):
        archive_cases.make_cifar10(self.archives, (5, 12), labels=11)
        layout = archive_cases.small_layout("cifar10", self.archives, (5, 12))
        with self.assertRaisesRegex(UserError, "test_batch.bin:10 has the label 10 of 10 classes"):
            self.prepare(layout)

    def test_an_archive_of_another_layout(self):
        archive_cases.make("cifar10", self.archives)
        path = self.archives / "cifar-10-binary.tar.gz"
        path.write_bytes(b"not a tar")
        layout = archive_cases.small_layout("cifar10", self.archives, (30, 6))
        with self.assertRaisesRegex(UserError, "not laid out as cifar10 is published"):
            self.prepare(layout)

    def test_a_full_disk(self):
        layout = archive_cases.make("cifar10", self.archives)
        # ArrayRecord says it in a RuntimeError.
        full = RuntimeError("write() failed: No space left on device; writing x")
        with (
            mock.patch("array_record.python.array_record_module.ArrayRecordWriter") as writer,
            self.assertRaisesRegex(UserError, "No space left on device.*the same command"),
        ):
            writer.return_value.write.side_effect = full
            self.prepare(layout)
        self.assertFalse((self.data_dir / "cifar10/1.0.0").exists())
        self.assertTrue((self.prepare(layout) / "manifest.json").exists())

    def test_a_file_that_cannot_grow_any_more(self):
        layout = archive_cases.make("cifar10", self.archives, (400, 50))
        code = (
            "import resource, sys; from pathlib import Path\n"
            "from flowmatch_jax.data.prepare import prepare\n"
            "from tests.data.prepare.archive_cases import small_layout\n"
            "data, archives = map(Path, sys.argv[1:])\n"
            "layout = small_layout('cifar10', archives, (400, 50))\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))\n"
            "prepare.prepare(layout, data, archives)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(self.data_dir), str(self.archives)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertIn("UserError: --data_dir", done.stderr)
        self.assertFalse((self.data_dir / "cifar10/1.0.0").exists())
        self.assertTrue((self.prepare(layout) / "manifest.json").exists())

    @parameterized.parameters(
        (["mnist"], "NAME: got 'mnist'; it may be one of: cifar10"),
        ([], "argument: "),
        (["cifar10", "--size=3"], "unrecognized arguments: --size=3"),
    )
    def test_mistakes_are_told_in_one_line(self, arguments, message):
        code, _, err = run(*arguments)
        self.assertEqual((code, err.count("\n")), (2, 1))
        self.assertIn(message, err)


if __name__ == "__main__":
    absltest.main()
