import contextlib
import io
import shlex
import subprocess
from pathlib import Path
from unittest import mock

import jax
from absl.testing import absltest, parameterized

from flowmatch_jax import modes
from flowmatch_jax.metrics.__main__ import main as metrics_command
from flowmatch_jax.networks.convert.__main__ import main as convert_command
from flowmatch_jax.networks.export.__main__ import main as export_command
from tests.end_to_end.runs import DIGITS, ROOT, command, run, run_process

EIGHT_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


class MistakesTest(parameterized.TestCase):
    """Each ends with exit code 2 and one line that names the field, what it got, what it may be."""

    def check(self, flags, *said, run=run, **variables):
        workdir = Path(self.create_tempdir().full_path)
        given = any(flag.startswith("--workdir") for flag in flags)
        with mock.patch.object(modes, "train", side_effect=AssertionError("it trains")):
            child = run(*flags, *([] if given else [f"--workdir={workdir}"]), **variables)
        self.assertEqual(child.returncode, 2, child.stderr)
        self.assertEqual(child.stderr.count("\n"), 1, child.stderr)
        self.assertStartsWith(child.stderr, "error: ")
        for words in said:
            self.assertIn(words, child.stderr)
        self.assertEmpty([path for path in workdir.rglob("*") if path.is_file()])

    @parameterized.named_parameters(
        ("no_config", (), "there is no run", "--config=configs/"),
        ("no_such_config", ("--config=configs/nope.py",), "configs/nope.py", "no such file"),
        ("no_such_config_after_a_space", ("--config", "configs/nope.py"), "no such file"),
        ("not_a_config", ("--config=README.md",), "--config", "not a config file"),
        (
            "no_such_field_after_a_space",
            (DIGITS, "--config.train.stepz", "5"),
            "--config.train.stepz: got '5'; no such field",
        ),
        ("no_such_flag", (DIGITS, "--wordir=x"), "wordir"),
        (
            "no_such_mode",
            (DIGITS, "--mode=fly"),
            "--mode",
            "'fly'",
            "figures, fit_solver, generate, generate_pairs, report, sample, train, upsample",
        ),
        ("report_of_nothing", ("--mode=report",), "--runs", "a,b"),
        ("report_of_no_run", ("--mode=report", "--runs=docs"), "--runs", "no config.json"),
        ("report_takes_no_config", (DIGITS, "--mode=report"), "--config", "no use for it"),
        ("report_takes_no_field", ("--mode=report", "--config.seed=1"), "--config.seed=1"),
        ("training_takes_no_runs", (DIGITS, "--runs=a"), "--runs", "train has no use for it"),
        ("profile_of_something_else", (DIGITS, "--profile=memory"), "--profile", "steps"),
        (
            "profile_of_samples",
            (DIGITS, "--mode=sample", "--profile=steps"),
            "--profile",
            "sample has no use for it",
        ),
        (
            "sweep_of_samples",
            (DIGITS, "--mode=sample", "--sweep=config.optimizer.learning_rate=1e-4"),
            "--sweep",
            "sample has no use for it",
        ),
        (
            "profile_of_a_sweep",
            (DIGITS, "--profile=steps", "--sweep=config.optimizer.learning_rate=1e-4"),
            "--profile: got 'steps'; it is of one run: leave out --sweep",
        ),
        (
            "sweep_of_no_field",
            (DIGITS, "--sweep=learning_rate=1e-4"),
            "--sweep: got 'learning_rate=1e-4'; it is written",
        ),
        (
            "sweep_checks_before_it_trains",
            ("--config=configs/checkerboard_ot.py", "--sweep=config.optimizer.ema_decay=0.9,2"),
            "config.optimizer.ema_decay: got 2.0",
        ),
        ("compare_unknown_data", ("--mode=compare", "--data=moons"), "configs/moons_ot.py"),
        ("compare_no_seed", ("--mode=compare", "--seeds=x"), "--seeds", "0,1,10-19"),
        (
            "compare_checks_before_it_trains",
            ("--mode=compare", "--config.evaluate.probes=0"),
            "config.evaluate.probes",
        ),
        (
            "compare_unknown_method",
            ("--mode=compare", "--data=digits_sr4_8", "--methods=sr4"),
            "configs/digits_sr4_8_sr4.py",
        ),
        (
            "low_resolution_that_does_not_divide",
            (DIGITS, "--config.condition.low_resolution=3"),
            "config.condition.low_resolution: got 3",
            "below the images' 8x8 pixels and divide them",
        ),
        (
            "labels_of_points",
            ("--config=configs/checkerboard_ot.py", "--config.condition.labels=True"),
            "config.condition.labels",
        ),
        ("figures_before_training", (DIGITS, "--mode=figures"), "--workdir", "train one first"),
        (
            "scoreflow_on_ot",
            ("--config=configs/digits_scoreflow.py", "--config.path.name=ot"),
            "config.objective",
        ),
        ("no_dequantisation", (DIGITS, "--config.evaluate.dequantisations=(0,)"), "1 or more"),
        ("stray_argument", (DIGITS, "train"), "'train'", "--name=value"),
        (
            "no_such_field",
            (DIGITS, "--config.train.stepz=5"),
            "--config.train.stepz",
            "'5'",
            "no such field; did you mean steps? there are: accumulate, batch_size, ",
        ),
        (
            "no_such_section",
            (DIGITS, "--config.trian.steps=5"),
            "--config.trian.steps",
            "solver, source, sr3, train",
        ),
        (
            "wrong_type",
            (DIGITS, "--config.train.steps=many"),
            "--config.train.steps",
            "'many'",
            "int",
        ),
        (
            "wrong_value",
            (DIGITS, "--config.path.name=linear"),
            "config.path.name",
            "'linear'",
            "cosine, ot, ve, vp",
        ),
        (
            "image_size",
            (DIGITS, "--config.network.unet.multipliers=(1,2,2,2,2)"),
            "config.network.unet.multipliers",
            "(1, 2, 2, 2, 2)",
            "at most 4",
        ),
        (
            "steps_for_an_adaptive_method",
            (DIGITS, "--config.solver.steps=20"),
            "config.solver.steps",
            "20",
            "leave steps unset",
        ),
        (
            "no_steps_for_a_fixed_method",
            (DIGITS, "--config.solver.method=midpoint"),
            "config.solver.steps",
            "None",
            "midpoint",
        ),
        (
            "unwritable_workdir",
            (DIGITS, "--workdir=/proc/run"),
            "--workdir",
            "'/proc/run'",
            "cannot be written",
        ),
        (
            "nothing_to_evaluate",
            (DIGITS, "--mode=evaluate"),
            "--workdir",
            "there is no run (no config.json)",
        ),
        (
            "accumulation_that_does_not_divide_the_batch",
            (DIGITS, "--config.train.accumulate=3"),
            "config.train.batch_size: got 128",
            "times accumulate, 3",
        ),
        (
            "dispatches_that_intervals_are_no_multiples_of",
            (DIGITS, "--config.train.steps_per_dispatch=40"),
            "config.train.log_every: got 50",
            "steps_per_dispatch = 40 must divide it",
        ),
        ("no_skipping", (DIGITS, "--config.train.max_skipped=0"), "config.train.max_skipped"),
        (
            "guidance_without_classes",
            (DIGITS, "--config.guidance.scale=2"),
            "config.guidance.scale: got 2.0",
            "given no labels (config.condition.labels)",
        ),
        (
            "no_such_class",
            ("--config=configs/digits_class.py", "--config.evaluate.classes=(3,10)"),
            "config.evaluate.classes: got 10; the labels of digits are 0 to 9",
        ),
        (
            "classes_of_points",
            ("--config=configs/checkerboard_ot.py", "--config.condition.labels=True"),
            "config.condition.labels: got True; these data have none",
        ),
        (
            "guidance_beyond_the_end",
            ("--config=configs/digits_class.py", "--config.guidance.interval=(0.5,2.0)"),
            "config.guidance.interval: got (0.5, 2.0)",
            "0 <= from < to <= 1",
        ),
        ("upsample_nothing", (DIGITS, "--mode=upsample"), "--input: got None", "a folder of them"),
        (
            "upsample_to_nowhere",
            (DIGITS, "--mode=upsample", "--input=docs"),
            "--output: got None",
        ),
        ("training_takes_no_input", (DIGITS, "--input=docs"), "--input", "no use for it"),
        (
            "tiles_that_lie_on_their_neighbours",
            ("--config=configs/digits_sr4_8.py", "--config.upsample.overlap=0.9"),
            "config.upsample.overlap: got 0.9",
        ),
        ("fsdp_beyond_the_devices", (DIGITS, "--config.mesh.fsdp=2"), "config.mesh.fsdp: got 2"),
        ("one_flag_of_three", (DIGITS, "--process=1"), "--coordinator", "--processes"),
        (
            "process_beyond_their_number",
            (DIGITS, "--coordinator=127.0.0.1:1", "--processes=2", "--process=2"),
            "--process: got 2",
            "from 0 to 1",
        ),
    )
    def test_mistake(self, flags, *said):
        self.check(flags, *said)

    def test_batch_that_the_devices_do_not_divide(self):
        self.check(
            (DIGITS, "--config.train.batch_size=100"),
            "config.train.batch_size",
            "100",
            "a multiple of the number of devices, 8",
            run=run_process,
            **EIGHT_DEVICES,
        )

    def test_in_a_process(self):
        self.check((DIGITS, "--mode=fly"), "--mode: got 'fly'", run=run_process)

    def test_devices_that_are_not_there(self):
        said = "JAX_PLATFORMS: got 'nope'"
        self.check((DIGITS,), said, run=run_process, JAX_PLATFORMS="nope")

    @parameterized.parameters(
        (metrics_command, ("a", "b")),
        (export_command, ("run", "--to=net.safetensors")),
        (convert_command, ("net.safetensors", "--to=run")),
    )
    def test_other_commands_tell_of_devices_that_are_not_there(self, main, arguments):
        with (
            mock.patch.object(jax, "devices", side_effect=RuntimeError("no such\nbackend")),
            contextlib.redirect_stderr(io.StringIO()) as said,
        ):
            self.assertEqual(main(arguments), 2)
        self.assertStartsWith(said.getvalue(), "error: JAX_PLATFORMS: got ")
        self.assertIn("no such devices (no such); unset it", said.getvalue())

    def test_jax_without_jit(self):
        with jax.disable_jit():
            self.check((DIGITS,), "JAX_DISABLE_JIT", "compiled")

    def test_a_closed_error_stream(self):
        """No file that is opened later takes its place, and nothing crashes."""
        command_line = f"{shlex.join(command('--mode=fly'))} 2>&-"
        child = subprocess.run(
            ["bash", "-c", command_line], cwd=ROOT, capture_output=True, check=False
        )
        self.assertEqual((child.returncode, child.stderr), (2, b""))

    def test_help_is_not_a_mistake(self):
        for flag in ("--help", "-h"):
            child = run(flag)
            self.assertEqual((child.returncode, child.stderr), (0, ""))
            self.assertIn("--workdir", child.stdout)


if __name__ == "__main__":
    absltest.main()
