"""What a workdir is enough for, and what is never written into one."""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
from absl.testing import absltest

import flowmatch_jax
from flowmatch_jax.config.experiments import experiment_config
from flowmatch_jax.config.identity import fitted_to
from flowmatch_jax.sampling import fitted
from flowmatch_jax.sampling.linear import of_method
from flowmatch_jax.solvers import Solver
from tests.end_to_end.runs import run

ARCHIVE = Path(__file__).parent / "old_runs" / "checkerboard.tar.xz"
TINY = ("--config.evaluate.images=8", "--config.evaluate.batch_size=4")


class WorkdirTest(absltest.TestCase):
    """A run of three steps, by an earlier version of the package."""

    def setUp(self):
        super().setUp()
        self.workdir = Path(self.create_tempdir().full_path)
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(self.workdir, filter="data")

    def run_in(self, *flags):
        return run(f"--workdir={self.workdir}", *flags)

    def config(self):
        return json.loads((self.workdir / "config.json").read_text())

    def test_its_config_is_taken_where_none_is_given(self):
        child = self.run_in("--mode=sample", "--config.evaluate.samples=5", "--step=3")
        self.assertEqual(child.returncode, 0, child.stderr)
        self.assertLen(list((self.workdir / "samples").glob("3_ema_nfe*.npz")), 1)
        self.assertEqual(self.config()["evaluate"]["samples"], 4)
        child = self.run_in("--mode=evaluate", *TINY)
        self.assertEqual(child.returncode, 0, child.stderr)
        output = self.workdir / "points.npz"
        child = self.run_in("--mode=generate", "--seeds=5-8,2", f"--output={output}")
        self.assertEqual(child.returncode, 0, child.stderr)
        with np.load(output) as archive:
            self.assertEqual(archive["points"].shape, (5, 2))
            self.assertEqual(archive["seed"].tolist(), [5, 6, 7, 8, 2])

    def test_a_fitted_solver_of_the_run(self):
        """It draws the samples of training and of scripts, and its path is recorded nowhere."""
        fields = ("--config.solver.method=fitted", "--config.solver.steps=2")
        fresh = self.workdir / "fresh"
        child = run(f"--workdir={fresh}", "--config=configs/checkerboard_ot.py", *fields)
        self.assertEqual(child.returncode, 2)
        self.assertIn("fresh/solvers/2_calls.json'; it cannot be read", child.stderr)
        self.assertFalse(fresh.exists())

        was = experiment_config(str(self.workdir / "config.json"))
        euler = of_method("euler", np.linspace(0, 1, 3))
        fitted.write(self.workdir / "solvers" / "2_calls.json", euler, fitted_to(was))
        counts = ("steps=5", "sample_every=1", "checkpoint_every=1", "log_every=1")
        steps = [f"--config.train.{count}" for count in counts]
        config = f"--config={self.workdir / 'config.json'}"
        child = self.run_in(config, *fields, *steps, "--config.evaluate.after_training=False")
        self.assertEqual(child.returncode, 0, child.stderr)
        self.assertTrue((self.workdir / "samples" / "4_ema.png").exists())
        self.assertIsNone(self.config()["solver"]["file"])
        model = flowmatch_jax.load(self.workdir)
        x0 = model.noise(jax.random.key(0), 3)
        x = model.sample(jax.random.key(0), 3, x0=x0)
        two = model.sample(jax.random.key(0), 3, x0=x0, solver=Solver("euler", steps=2))
        np.testing.assert_allclose(x, two, atol=1e-5)

    def test_mistakes(self):
        for flags, said in (
            (("--mode=sample", "--step=7"), "--step: got 7; the workdir has checkpoints of the"),
            (("--mode=sample", "--config.seed=5"), "config.seed: got 5; the run in"),
            (
                ("--mode=sample", "--config.seed=5", "--config.network.mlp.width=9"),
                "has 0, config.network.mlp.width = 8; go on with that",
            ),
            (("--sweep=config.seed=1,2",), "--config: got None; give a file"),
            (("--mode=generate", "--n=3"), "--output: got None"),
            (("--mode=generate", "--output=x.npz"), "--n: got None; give either --n or --seeds"),
            (("--mode=generate", "--output=x.npz", "--seeds=3-1"), "--seeds: got '3-1'; it takes"),
            (("--mode=generate", "--output=x.npz", "--seeds=1,0-3"), "each seed is given once"),
            (("--mode=sample", "--n=3"), "--n: got 3; sample has no use for it"),
        ):
            child = self.run_in(*flags)
            self.assertEqual(child.returncode, 2, child.stderr)
            self.assertIn(said, child.stderr)
            self.assertEqual(child.stderr.count("\n"), 1)

    def test_a_typo_creates_nothing(self):
        typo = self.workdir / "typo"
        for mode in ("sample", "evaluate", "figures"):
            for config in ((), ("--config=configs/checkerboard_ot.py",)):
                child = run(f"--workdir={typo}", f"--mode={mode}", *config)
                self.assertEqual(child.returncode, 2, child.stderr)
                self.assertIn("there is no run (no config.json)", child.stderr)
        child = run(f"--workdir={typo}")
        self.assertEqual(child.returncode, 2, child.stderr)
        self.assertIn("there is no run (no config.json)", child.stderr)
        self.assertFalse(typo.exists())

    def test_the_config_is_that_of_the_training(self):
        """A start that has nothing to train leaves it; what a start changes is said and kept."""
        config = f"--config={self.workdir / 'config.json'}"
        before = self.config()
        child = self.run_in(config, "--config.optimizer.learning_rate=0.5", *TINY)
        self.assertEqual(child.returncode, 0, child.stderr)
        self.assertEqual(self.config(), before)
        steps = ("--config.train.steps=4", "--config.optimizer.learning_rate=0.5", *TINY)
        child = self.run_in(*steps)  # without a config: that of the run
        self.assertEqual(child.returncode, 0, child.stderr)
        self.assertIn("config.train.steps 3 -> 4 from step 3.", child.stderr)
        self.assertEqual(self.config()["optimizer"]["learning_rate"], 0.5)
        lines = (self.workdir / "config_changes.jsonl").read_text().splitlines()
        changed = {line["field"]: line for line in map(json.loads, lines)}
        rate = {"step": 3, "field": "config.optimizer.learning_rate", "after": 0.5}
        rate["before"] = before["optimizer"]["learning_rate"]
        self.assertEqual(changed["config.optimizer.learning_rate"], rate)
        child = self.run_in(config, *steps)
        self.assertIn("is trained and evaluated already", child.stderr)
        evaluated = (self.workdir / "evaluation" / "4.json").read_bytes()
        child = self.run_in(
            config, *steps, "--config.evaluate.after_training=False", "--config.evaluate.seed=7"
        )
        self.assertIn("is trained. --mode=evaluate evaluates it.", child.stderr)
        self.assertEqual((self.workdir / "evaluation" / "4.json").read_bytes(), evaluated)


if __name__ == "__main__":
    absltest.main()
