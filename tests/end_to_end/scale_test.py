"""Several processes and devices make the run that one makes, and go on with each other's."""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl.testing import absltest

from tests.end_to_end.runs import (
    DIGITS,
    ROOT,
    SMALL_NET,
    TINY_POINTS,
    UNSCORED,
    bits,
    command,
    environment,
    evaluations,
    metrics,
    run,
    saved_state,
)

STEPS = 20
# With Adam's own eps the update of a parameter whose gradient is 0 but for rounding is the sign of
# that rounding.
SAME = (
    f"--config.train.steps={STEPS}",
    "--config.train.log_every=1",
    "--config.optimizer.eps=1e-3",
    "--config.train.validation_batches=2",
)
POINTS = (
    "--config=configs/checkerboard_ot.py",
    *TINY_POINTS,
    *SAME,
    "--config.evaluate.images=24",
)
PICTURES = (DIGITS, *SMALL_NET, *SAME, "--config.evaluate.images=16")


def launched(*flags, processes=2, devices=1):
    """The command of a run in several processes."""
    launcher = ("-m", "flowmatch_jax.launch", f"--processes={processes}", f"--devices={devices}")
    return [sys.executable, *launcher, *command(*flags)[1:]]


class SeveralProcessesTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        cls.points = cls.folder / "points"
        child = run(*POINTS, f"--workdir={cls.points}")
        if child.returncode:
            raise AssertionError(child.stderr)

    def launch(self, *flags, **layout):
        child = subprocess.run(
            launched(*flags, **layout),
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(child.returncode, 0, child.stderr)
        return child

    def check_same(self, workdir, wanted):
        """Losses, parameters and scores, to the order of float32 sums."""
        lines, wanted_lines = metrics(workdir), metrics(wanted)
        self.assertEqual([line["step"] for line in lines], list(range(1, STEPS + 1)))
        for name in ("loss", "gradient_norm", "validation_loss_ema"):
            got, expected = ([line[name] for line in each] for each in (lines, wanted_lines))
            np.testing.assert_allclose(got, expected, rtol=2e-5)
        (step, state), (_, expected) = map(saved_state, (workdir, wanted))
        self.assertEqual(step, STEPS)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            *(bits({part: s[part] for part in ("params", "ema")}) for s in (state, expected)),
        )
        ((got,), (expected,)) = (evaluations(w, STEPS) for w in (workdir, wanted))
        results, expected = (e["results"]["ema"] for e in (got, expected))
        self.assertEqual(results.keys(), expected.keys())
        for name, value in expected.items():
            if not isinstance(value, list):
                np.testing.assert_allclose(results[name], value, 1e-4, err_msg=name)

    def test_eight_devices_of_two_processes(self):
        workdir = self.folder / "points_8_1"
        child = self.launch(*POINTS, f"--workdir={workdir}", devices=4)
        self.assertIn("8 x cpu (data=8 x fsdp=1), 2 process(es)", child.stderr)
        self.assertIn("total: optimiser", child.stderr)  # the table of what lies where
        self.check_same(workdir, self.points)

    def test_pictures(self):
        """Features and moments too, and parameters of convolutions split over both processes."""
        alone, together = self.folder / "alone", self.folder / "together"
        child = run(*PICTURES, f"--workdir={alone}")
        self.assertEqual(child.returncode, 0, child.stderr)
        self.launch(*PICTURES, "--config.mesh.fsdp=2", f"--workdir={together}")
        self.check_same(together, alone)
        self.assertTrue((together / "samples" / f"{STEPS}_ema.png").exists())

    def test_a_run_goes_on_with_other_devices(self):
        """10 steps split over eight devices of two processes, then 10 whole on one; and back."""

        def split(fsdp):
            return lambda *flags: self.launch(*flags, f"--config.mesh.fsdp={fsdp}", devices=4)

        for name, first, second in (("fewer", split(8), run), ("more", run, split(2))):
            workdir = self.folder / name
            flags = (*POINTS, "--config.optimizer.schedule=constant", f"--workdir={workdir}")
            first(*flags, UNSCORED, "--config.train.steps=10")
            child = second(*flags)
            self.assertIn("at step 10", child.stderr)
        steady = self.folder / "steady"
        run(*POINTS, "--config.optimizer.schedule=constant", f"--workdir={steady}")
        self.check_same(self.folder / "fewer", steady)
        self.check_same(self.folder / "more", steady)

    def test_a_signal_stops_all_and_the_run_goes_on(self):
        workdir = self.folder / "stopped"
        flags = (*POINTS, UNSCORED, "--config.train.steps=100000", f"--workdir={workdir}")
        with subprocess.Popen(
            launched(*flags),
            cwd=ROOT,
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            deadline = time.monotonic() + 300
            while not metrics(workdir):
                self.assertIsNone(child.poll(), "it ended before it could be stopped")
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.05)
            child.send_signal(signal.SIGTERM)
            _, stderr = child.communicate(timeout=120)
        self.assertEqual(child.returncode, 1, stderr)
        self.assertEqual(stderr.count("error: SIGTERM: training stopped at step"), 2, stderr)
        step, _ = saved_state(workdir)
        self.assertEqual(metrics(workdir)[-1]["step"], step)
        child = self.launch(*flags, f"--config.train.steps={step + 10}")  # above the warm-up's
        self.assertIn(f"at step {step}", child.stderr)

    def test_processes_of_different_commands_are_told_so(self):
        script = self.folder / "differ.py"
        script.write_text(
            "import runpy, sys\n"
            f"sys.path.insert(0, {str(ROOT)!r})\n"
            "me = sys.argv[-1].partition('=')[2]\n"
            "sys.argv = ['main.py', *sys.argv[1:], f'--config.seed={me}']\n"
            f"runpy.run_path({str(ROOT / 'main.py')!r}, run_name='__main__')\n"
        )
        flags = (*POINTS, f"--workdir={self.folder / 'differ'}")
        child = subprocess.run(
            [sys.executable, "-m", "flowmatch_jax.launch", "--processes=2", str(script), *flags],
            cwd=ROOT,
            env=environment(JAX_PLATFORMS="cpu"),
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(child.returncode, 2, child.stderr)
        self.assertIn("error: --config of process 1 of 2: got", child.stderr)
        self.assertNotIn("Traceback", child.stderr)
        self.assertFalse((self.folder / "differ" / "checkpoints").exists())


if __name__ == "__main__":
    absltest.main()
