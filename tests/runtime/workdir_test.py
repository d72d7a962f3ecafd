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
    open_workdir,
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
        open_workdir(self.workdir, json.loads(self.config.to_json()))
        write_config(self.workdir, json.loads(self.config.to_json()))
        (self.workdir / "checkpoints" / "10").mkdir(parents=True)

    def test_config_is_recorded(self):
        self.start_run()
        recorded = json.loads((self.workdir / "config.json").read_text())
        self.assertEqual(recorded["train"]["steps"], self.config.train.steps)
        self.assertEqual(recorded["network"]["unet"]["multipliers"], [1, 2])

    def test_steps_optimiser_and_evaluation_may_change(self):
        self.start_run()
        self.config.train.steps = 5
        self.config.optimizer.learning_rate = 1.0
        self.config.solver.method = "tsit5"
        self.config.network.dtype = "bfloat16"
        self.config.network.mlp.width = 7  # not this run's network
        self.config.path.vp.beta_max = 7.0  # not this run's path
        self.config.objective["younger"] = "default"  # a field that the run's record lacks
        open_workdir(self.workdir, json.loads(self.config.to_json()))

    @parameterized.parameters(
        ("network.unet.channels", 64),
        ("network.unet.multipliers", (1, 2, 2)),
        ("data.name", "checkerboard"),
        ("data.size", 16),
        ("path.name", "vp"),
        ("path.ot.sigma_min", 0.1),
        ("seed", 1),
        ("train.batch_size", 64),
        ("condition.labels", True),
        ("condition.low_resolution", 4),
    )
    def test_another_experiment_is_refused(self, field, value):
        self.start_run()
        before = {path: path.read_bytes() for path in self.workdir.rglob("*.*")}
        self.config.update_from_flattened_dict({field: value})
        with self.assertRaisesRegex(UserError, "give another --workdir") as caught:
            open_workdir(self.workdir, json.loads(self.config.to_json()))
        self.assertEqual(caught.exception.field, f"config.{field}")
        self.assertEqual(before, {path: path.read_bytes() for path in self.workdir.rglob("*.*")})

    def test_training_that_may_change_is_the_network_s_dropout_alone(self):
        self.config.condition.labels = True
        self.start_run()
        self.config.network.unet.dropout = 0.3
        open_workdir(self.workdir, json.loads(self.config.to_json()))
        self.config.condition.label_dropout = 0.3
        with self.assertRaisesRegex(UserError, "config.condition.label_dropout: got 0.3"):
            open_workdir(self.workdir, json.loads(self.config.to_json()))

    @parameterized.parameters(
        ("network", "time_input", "log_snr", "'t'"), ("condition", "max_noise", 0.4, "0.0")
    )
    def test_a_run_from_before_a_field_went_by_what_there_was(self, section, field, value, was):
        self.start_run()
        recorded = json.loads((self.workdir / "config.json").read_text())
        del recorded[section][field]
        (self.workdir / "config.json").write_text(json.dumps(recorded))
        open_workdir(self.workdir, json.loads(self.config.to_json()))
        self.config[section][field] = value
        with self.assertRaisesRegex(UserError, f"config.{section}.{field}: .* has {was}; go on"):
            open_workdir(self.workdir, json.loads(self.config.to_json()))

    def test_a_folder_of_images_may_move_but_not_be_read_otherwise(self):
        self.config.data.name, self.config.data.size = "folder", 64
        self.config.data.folder.path = "/a"
        self.start_run()
        self.config.data.folder.path, self.config.data.storage = "/b", "records"
        open_workdir(self.workdir, json.loads(self.config.to_json()))
        self.config.data.folder.background = "black"
        with self.assertRaisesRegex(UserError, "config.data.folder.background: got 'black'"):
            open_workdir(self.workdir, json.loads(self.config.to_json()))

    def test_other_images_under_the_same_name_are_refused(self):
        source = digits("train")
        self.start_run()
        check_data(self.workdir, source.facts())  # a run that recorded nothing yet
        write_data(self.workdir, source)
        check_data(self.workdir, digits("train").facts())
        other = replace(source, x=np.concatenate([source.x, source.x[:1]]))
        message = "config.data: got 'digits uci.*other digits data .*1500 items.*another --workdir"
        with self.assertRaisesRegex(UserError, message):
            check_data(self.workdir, other.facts())

    def test_without_checkpoints_nothing_is_lost_by_starting_over(self):
        open_workdir(self.workdir, json.loads(self.config.to_json()))
        write_config(self.workdir, json.loads(self.config.to_json()))
        (self.workdir / "checkpoints").mkdir()  # as a run leaves it that stopped early
        self.config.network.unet.channels = 64
        open_workdir(self.workdir, json.loads(self.config.to_json()))

    @parameterized.parameters(b"", b"{", b"[]", b"\xff")
    def test_records_that_are_cut_are_told_and_may_be_deleted(self, data):
        self.start_run()
        write_data(self.workdir, digits("train").facts())
        config, source = self.workdir / "config.json", digits("train")
        for path, check in (
            (config, lambda: open_workdir(self.workdir, json.loads(self.config.to_json()))),
            (self.workdir / "data.json", lambda: check_data(self.workdir, source.facts())),
        ):
            path.write_bytes(data)
            with self.assertRaisesRegex(UserError, f"{path.name} in it cannot be read .*delete"):
                check()
            path.unlink()
            check()

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
            open_workdir(self.workdir / name / "run", json.loads(self.config.to_json()))
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
            open_workdir(self.workdir, json.loads(self.config.to_json()))  # evaluation may
        with trained_by_this_run(self.workdir):
            pass

    def test_a_folder_that_cannot_be_written(self):
        occupied = self.create_tempfile("file").full_path
        for workdir in (occupied, f"{occupied}/run", "/proc/run"):
            with self.assertRaisesRegex(UserError, "--workdir: .*cannot be written"):
                open_workdir(Path(workdir), json.loads(self.config.to_json()))


if __name__ == "__main__":
    absltest.main()
