import json
import os
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from configs import digits_ot
from flowmatch_jax.data.digits import digits
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.workdir import (
    check_data,
    check_run,
    open_workdir,
    recorded_data,
    trained_by_this_run,
    user_cache,
    write_config,
    write_data,
)


class WorkdirTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = Path(self.create_tempdir().full_path) / "deep" / "run"
        self.config = digits_ot.get_config()

    def start_run(self):
        open_workdir(self.workdir)
        write_config(self.workdir, json.loads(self.config.to_json()))
        (self.workdir / "checkpoints" / "10").mkdir(parents=True)

    def test_config_is_recorded(self):
        self.start_run()
        recorded = json.loads((self.workdir / "config.json").read_text())
        self.assertEqual(recorded["train"]["steps"], self.config.train.steps)
        self.assertEqual(recorded["network"]["unet"]["multipliers"], [1, 2])

    def test_other_images_under_the_same_name_are_refused(self):
        source = digits("train")
        self.start_run()
        check_data(self.workdir, source.facts())  # a run that recorded nothing yet
        write_data(self.workdir, source.facts(), digits("test").facts())
        check_data(self.workdir, digits("train").facts())
        other = replace(source, x=np.concatenate([source.x, source.x[:1]]))
        message = "config.data: got 'digits uci.*other digits data .*1500 items.*another --workdir"
        with self.assertRaisesRegex(UserError, message):
            check_data(self.workdir, other.facts())

    def test_other_pairs_are_refused(self):
        splits = [digits(split).facts() for split in ("train", "test")]
        pairs = splits[0] | {"name": "pairs of digits", "version": "a", "sha256": "a"}
        self.start_run()
        write_data(self.workdir, *splits, pairs=pairs)
        check_data(self.workdir, splits[0], pairs)
        self.assertEqual(recorded_data(self.workdir), {"train": splits[0], "test": splits[1]})
        with self.assertRaisesRegex(UserError, "config.data.pairs: got 'pairs of.*other pairs"):
            check_data(self.workdir, splits[0], pairs | {"sha256": "b"})

    def test_another_source_is_refused(self):
        splits = [digits(split).facts() for split in ("train", "test")]
        source = {
            name: each | {"name": "threes"}
            for name, each in zip(("train", "test"), splits, strict=True)
        }
        self.start_run()
        write_data(self.workdir, *splits)
        with self.assertRaisesRegex(UserError, "config.source: got 'threes .*another source"):
            check_data(self.workdir, splits[0], source=source["train"])
        write_data(self.workdir, *splits, source=source)
        with self.assertRaisesRegex(UserError, "config.source: got 'noise'.*another source"):
            check_data(self.workdir, splits[0])
        check_data(self.workdir, splits[0], source=source["train"])
        self.assertEqual(
            recorded_data(self.workdir), {"train": splits[0], "test": splits[1], "source": source}
        )
        with self.assertRaisesRegex(UserError, "config.source: got 'threes .*another source"):
            check_data(self.workdir, splits[0], source=source["train"] | {"sha256": "b"})

    def test_images_that_are_described_alone(self):
        self.start_run()
        source = digits("train")
        facts = source.facts() | {"sha256": None, "items": None}
        write_data(self.workdir, facts, facts)
        check_data(self.workdir, source.facts())
        with self.assertRaisesRegex(UserError, "other digits data"):
            check_data(self.workdir, source.facts() | {"shape": [16, 16, 1]})

    @parameterized.parameters(b"", b"{", b"[]", b"\xff")
    def test_records_that_are_cut_are_told_and_may_be_deleted(self, data):
        self.start_run()
        write_data(self.workdir, digits("train").facts(), digits("test").facts())
        facts, path = digits("train").facts(), self.workdir / "data.json"
        path.write_bytes(data)
        with self.assertRaisesRegex(UserError, "data.json in it cannot be read .*delete"):
            check_data(self.workdir, facts)
        path.unlink()
        check_data(self.workdir, facts)

    def test_the_recorded_data(self):
        self.assertIsNone(recorded_data(self.workdir))
        facts = [digits(split).facts() for split in ("train", "test")]
        write_data(self.workdir, *facts)
        self.assertEqual(
            recorded_data(self.workdir), dict(zip(("train", "test"), facts, strict=True))
        )
        record = json.loads((self.workdir / "data.json").read_text())
        del record["test"]  # as runs have it that are older than this record
        (self.workdir / "data.json").write_text(json.dumps(record))
        self.assertIsNone(recorded_data(self.workdir))

    def test_a_folder_without_a_run(self):
        with self.assertRaisesRegex(UserError, "--workdir: .*there is no run"):
            check_run(self.workdir)
        self.assertFalse(self.workdir.exists())
        self.start_run()
        check_run(self.workdir)

    def test_a_cache_without_a_home(self):
        for environment in ({}, {"XDG_CACHE_HOME": ""}):
            with (
                mock.patch.dict(os.environ, environment, clear=True),
                mock.patch.object(Path, "home", side_effect=RuntimeError("no home")),
            ):
                self.assertTrue(user_cache().is_absolute())
        with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": "/a"}):
            self.assertEqual(user_cache(), Path("/a/flowmatch_jax"))

    @parameterized.parameters("a[1]", "a*", "what?")
    def test_a_path_that_orbax_takes_for_a_pattern(self, name):
        with self.assertRaisesRegex(UserError, r"--workdir: .* without \* \? \["):
            open_workdir(self.workdir / name / "run")
        self.assertFalse(self.workdir.exists())

    def test_one_run_trains_in_it_at_a_time(self):
        self.start_run()
        with trained_by_this_run(self.workdir):
            with (
                self.assertRaisesRegex(
                    UserError, r"--workdir: .*process \d+ on .* is training in it"
                ),
                trained_by_this_run(self.workdir),
            ):
                pass
            open_workdir(self.workdir)  # evaluation may
        with trained_by_this_run(self.workdir):
            pass

    def test_a_folder_that_cannot_be_written(self):
        occupied = self.create_tempfile("file").full_path
        for workdir in (occupied, f"{occupied}/run", "/proc/run"):
            with self.assertRaisesRegex(UserError, "--workdir: .*cannot be written"):
                open_workdir(Path(workdir))


if __name__ == "__main__":
    absltest.main()
