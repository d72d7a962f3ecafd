"""What a run survives: kills at any moment, signals, a full disk, updates that are not finite."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from tests.end_to_end.runs import (
    ROOT,
    TINY_POINTS,
    UNSCORED,
    bits,
    command,
    environment,
    evaluations,
    metrics,
    run,
    run_process,
    saved_state,
)

LIMIT = 300  # seconds after which a run hangs
STEPS = 200
# Points, because what a run survives does not depend on its network.
RUN = (
    "--config=configs/checkerboard_ot.py",
    *TINY_POINTS,
    "--config.train.sample_every=1000000",
    "--config.train.keep_every=100",
    "--config.train.checkpoint_every=20",
    f"--config.train.steps={STEPS}",
)
ENDLESS = (*RUN, UNSCORED, "--config.optimizer.schedule=constant", "--config.train.steps=1000000")


class SurvivalTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        cls.whole = cls.folder / "whole"  # a run that nothing happened to
        child = run(*RUN, f"--workdir={cls.whole}")
        if child.returncode:
            raise AssertionError(child.stderr)

    def start(self, *flags):
        return subprocess.Popen(
            command(*flags),
            cwd=ROOT,
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, child, condition):
        deadline = time.monotonic() + LIMIT
        while not condition() and child.poll() is None:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.005)

    def check_same_end(self, workdir, wanted):
        """The same bits, and each step once in the record."""
        (step, state), (last, expected) = map(saved_state, (workdir, wanted))
        self.assertEqual(step, last)
        jax.tree.map(np.testing.assert_array_equal, bits(state), bits(expected))
        losses, expected = (
            {line["step"]: line["loss"] for line in metrics(w)} for w in (workdir, wanted)
        )
        self.assertLen(metrics(workdir), len(losses))
        self.assertEqual(list(losses), list(expected))
        self.assertEqual(losses[last], expected[last])

    def check_kills(self, kills, seconds, flags, workdir):
        """Every other one at any moment of the start, the others in the midst of training."""
        rng = np.random.RandomState(kills)
        for kill in range(kills):
            before = len(metrics(workdir))
            child = self.start(*flags, f"--workdir={workdir}")
            if kill % 2:
                self.wait_for(child, lambda before=before: len(metrics(workdir)) != before)
                time.sleep(rng.uniform(0, 0.5))
            else:
                time.sleep(rng.uniform(0, seconds))
            child.send_signal(signal.SIGKILL)
            child.communicate()

    def test_a_few_kills(self):
        workdir = self.folder / "killed"
        flags = (*RUN, f"--workdir={workdir}")
        self.check_kills(1, 8, RUN, workdir)
        for stop_at in (45, 115):  # between checkpoints: steps are lost and done again
            child = self.start(*flags)
            self.wait_for(child, lambda n=stop_at: any(m["step"] >= n for m in metrics(workdir)))
            self.assertIsNone(child.poll(), "it ended before it could be killed")
            child.send_signal(signal.SIGKILL)
            child.communicate()
        child = run(*flags)
        self.assertEqual(child.returncode, 0, child.stderr)
        self.assertIn("Resuming", child.stderr)
        self.check_same_end(workdir, self.whole)
        (got,), (wanted,) = (evaluations(w, STEPS) for w in (workdir, self.whole))
        self.assertEqual(got["results"], wanted["results"])

    @pytest.mark.slow
    def test_many_kills(self):
        flags = (*RUN, "--config.train.steps=6000")
        wanted, workdir = self.folder / "many_whole", self.folder / "many_killed"
        begin = time.monotonic()
        child = run_process(*flags, f"--workdir={wanted}")
        self.assertEqual(child.returncode, 0, child.stderr)
        self.check_kills(25, time.monotonic() - begin, flags, workdir)
        child = run_process(*flags, f"--workdir={workdir}")
        self.assertEqual(child.returncode, 0, child.stderr)
        self.check_same_end(workdir, wanted)

    @parameterized.parameters(signal.SIGTERM, signal.SIGINT)
    def test_signal_saves_the_step_it_stops_at(self, number):
        wanted, workdir = (self.folder / f"{name}_{number.name}" for name in ("steady", "stopped"))
        with self.start(*ENDLESS, f"--workdir={workdir}") as child:
            self.wait_for(child, lambda: metrics(workdir))
            child.send_signal(number)
            _, stderr = child.communicate(timeout=LIMIT)
        self.assertEqual(child.returncode, 1, stderr)
        step, _ = saved_state(workdir)
        self.assertIn(f"error: {number.name}: training stopped at step {step}", stderr)
        self.assertNotIn("Traceback", stderr)
        # To the same bits as a run that never stopped.
        some_more = (*ENDLESS, f"--config.train.steps={step + 7}")
        for folder in (workdir, wanted):
            child = run(*some_more, f"--workdir={folder}")
            self.assertEqual(child.returncode, 0, child.stderr)
        (_, state), (_, expected) = map(saved_state, (workdir, wanted))
        jax.tree.map(np.testing.assert_array_equal, bits(state), bits(expected))

    def test_damaged_newest_checkpoint(self):
        workdir = self.folder / "damaged_run"
        shutil.copytree(self.whole, workdir)
        for path in (workdir / "checkpoints" / f"{STEPS}").rglob("d/*"):
            os.truncate(path, 10)
        child = run(*RUN, UNSCORED, f"--workdir={workdir}")
        self.assertEqual(child.returncode, 0, child.stderr)
        self.assertIn(f"Checkpoint {STEPS} cannot be used, and is kept as", child.stderr)
        self.assertIn(f"at step {STEPS - 20}", child.stderr)
        self.check_same_end(workdir, self.whole)
        self.assertTrue((workdir / "damaged" / f"{STEPS}").is_dir())

    def test_full_disk(self):
        disk = self.folder / "disk"
        disk.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)],
            capture_output=True,
            check=False,
        )
        if mounted.returncode:
            self.skipTest(f"a small disk cannot be mounted here: {mounted.stderr.decode()}")
        self.addCleanup(subprocess.run, ["umount", str(disk)], check=True)
        workdir = disk / "run"
        keeping_all = "--config.train.keep_every=20"
        child = run_process(*ENDLESS, keeping_all, f"--workdir={workdir}")
        self.assertEqual(child.returncode, 1, child.stderr)
        self.assertIn(f"error: the disk of {workdir} is full", child.stderr)
        self.assertNotIn("Traceback", child.stderr)
        kept = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
        for step in kept[:-1]:
            shutil.rmtree(workdir / "checkpoints" / str(step))
        some_more = f"--config.train.steps={kept[-1] + 5}"
        child = run(*ENDLESS, keeping_all, some_more, f"--workdir={workdir}")
        self.assertEqual(child.returncode, 0, child.stderr)
        self.assertIn(f"at step {kept[-1]}", child.stderr)

    def test_updates_that_are_never_finite(self):
        workdir = self.folder / "diverged"
        child = run(
            *RUN,
            "--config.optimizer.learning_rate=1e30",
            "--config.optimizer.warmup_steps=0",
            "--config.train.max_skipped=7",
            f"--workdir={workdir}",
        )
        self.assertEqual(child.returncode, 1, child.stderr)
        self.assertRegex(child.stderr, r"(7|8|9) updates in a row were not finite at step")
        self.assertIn("going back to step 0, on with other data", child.stderr)
        self.assertIn("also after going back", child.stderr)
        self.assertNotIn("Traceback", child.stderr)
        found = json.loads((workdir / "nonfinite.json").read_text())
        self.assertIn(found["loss"], ("nan", "inf"))
        self.assertEqual([point["t"] for point in found["loss_by_t"]], [i / 10 for i in range(11)])
        self.assertGreater(found["gradients"][0]["not_finite"], 0)
        self.assertEmpty([p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()])


if __name__ == "__main__":
    absltest.main()
