import json
import shutil
from pathlib import Path

from absl.testing import absltest, parameterized

from configs import digits_ot
from flowmatch_jax.config.field import copied
from flowmatch_jax.config.identity import check_identity, from_record, record
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.workdir import write_config


class IdentityTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = Path(self.create_tempdir().full_path) / "run"
        self.config = digits_ot.get_config()

    def start_run(self):
        write_config(self.workdir, record(self.config))
        (self.workdir / "checkpoints" / "10").mkdir(parents=True)

    def test_steps_optimiser_and_evaluation_may_change(self):
        self.start_run()
        self.config.train.steps = 5
        self.config.optimizer.learning_rate = 1.0
        self.config.solver.method = "tsit5"
        self.config.network.dtype = "bfloat16"
        self.config.network.mlp.width = 7  # not this run's network
        self.config.path.vp.beta_max = 7.0  # not this run's path
        self.config.objective["younger"] = "default"  # a field that the run's record lacks
        check_identity(self.workdir, self.config)

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
        ("condition.enlarging", "box"),
        ("data.classes", (3, 8)),
        ("minibatch_ot.method", "sinkhorn"),
        ("minibatch_ot.batches", 8),
        ("network.unet.conventions", "ddpm"),
        ("source.name", "digits"),
        ("source.paired", True),
        ("source.noise", 0.5),
    )
    def test_another_experiment_is_refused(self, field, value):
        """And so is the way back, also where a field is recorded only if it is set."""
        other = copied(self.config)
        other.update_from_flattened_dict({field: value})
        write_config(self.workdir, record(other))
        (self.workdir / "checkpoints" / "10").mkdir(parents=True)
        with self.assertRaisesRegex(UserError, "give another --workdir") as caught:
            check_identity(self.workdir, self.config)
        self.assertEqual(caught.exception.field, f"config.{field}")
        shutil.rmtree(self.workdir)

        self.start_run()
        before = {path: path.read_bytes() for path in self.workdir.rglob("*.*")}
        self.config.update_from_flattened_dict({field: value})
        with self.assertRaisesRegex(UserError, "give another --workdir") as caught:
            check_identity(self.workdir, self.config)
        self.assertEqual(caught.exception.field, f"config.{field}")
        self.assertEqual(before, {path: path.read_bytes() for path in self.workdir.rglob("*.*")})

    def test_training_that_may_change_is_the_network_s_dropout_alone(self):
        self.config.condition.labels = True
        self.start_run()
        self.config.network.unet.dropout = 0.3
        check_identity(self.workdir, self.config)
        self.config.condition.label_dropout = 0.3
        with self.assertRaisesRegex(UserError, "config.condition.label_dropout: got 0.3"):
            check_identity(self.workdir, self.config)

    @parameterized.parameters(
        ("network", "time_input", "log_snr", "'t'"), ("condition", "max_noise", 0.4, "0.0")
    )
    def test_a_run_from_before_a_field_went_by_what_there_was(self, section, field, value, was):
        self.start_run()
        recorded = json.loads((self.workdir / "config.json").read_text())
        del recorded[section][field]
        (self.workdir / "config.json").write_text(json.dumps(recorded))
        check_identity(self.workdir, self.config)
        self.config[section][field] = value
        with self.assertRaisesRegex(UserError, f"config.{section}.{field}: .* has {was}; go on"):
            check_identity(self.workdir, self.config)

    @parameterized.parameters(
        ({"width": 9}, "{'width': 9}", "{'width': 8}"),
        ({}, "{}", "{'width': 8}"),
        ({"width": 8, "depth": 1}, "{'depth': 1, 'width': 8}", "{'width': 8}"),
    )
    def test_options_of_one_s_own_parts(self, options, got, was):
        self.config.network.update(name="mine:make", options={"width": 8})
        self.start_run()
        check_identity(self.workdir, self.config)
        self.config.network.options = options
        with self.assertRaisesRegex(
            UserError, f"^config.network.options: got {got}; .* has {was}; go on"
        ):
            check_identity(self.workdir, self.config)

    def test_a_run_from_before_one_s_own_parts_has_no_options(self):
        self.start_run()
        recorded = json.loads((self.workdir / "config.json").read_text())
        del recorded["path"]["options"]
        (self.workdir / "config.json").write_text(json.dumps(recorded))
        check_identity(self.workdir, self.config)
        self.config.path.options = {"power": 2}
        with self.assertRaisesRegex(UserError, "config.path.options: got {'power': 2}; .* has {}"):
            check_identity(self.workdir, self.config)

    def test_options_come_back_from_the_record(self):
        self.config.network.update(name="mine:make", options={"widths": (8, 4), "norm": None})
        self.config.solver.grid_options = {"power": 2.0, "name": "x"}
        again = from_record(record(self.config))
        self.assertEqual(again.to_dict(), self.config.to_dict())

    def test_a_folder_of_images_may_move_but_not_be_read_otherwise(self):
        self.config.data.name, self.config.data.size = "folder", 64
        self.config.data.folder.path = "/a"
        self.start_run()
        self.config.data.folder.path, self.config.data.storage = "/b", "records"
        check_identity(self.workdir, self.config)
        self.config.data.folder.background = "black"
        with self.assertRaisesRegex(UserError, "config.data.folder.background: got 'black'"):
            check_identity(self.workdir, self.config)

    def test_without_checkpoints_nothing_is_lost_by_starting_over(self):
        write_config(self.workdir, record(self.config))
        (self.workdir / "checkpoints").mkdir()  # as a run leaves it that stopped early
        self.config.network.unet.channels = 64
        check_identity(self.workdir, self.config)

    def test_a_record_that_is_cut_is_told(self):
        self.start_run()
        (self.workdir / "config.json").write_text("{")
        with self.assertRaisesRegex(UserError, "config.json in it cannot be read .*delete"):
            check_identity(self.workdir, self.config)


if __name__ == "__main__":
    absltest.main()
