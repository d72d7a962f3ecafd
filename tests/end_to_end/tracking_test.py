"""What a run tells TensorBoard and a tracker, and that neither changes the run."""

import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest

from tests.end_to_end.runs import (
    TINY_POINTS,
    bits,
    evaluations,
    lines_of,
    metrics,
    run,
    saved_state,
)
from tests.tracking.log_test import values

FLAGS = ("--config=configs/checkerboard_ot.py", *TINY_POINTS, "--config.train.sample_every=10")
# Notes what it is given in calls.jsonl of the workdir, and fails at step 20.
TRACKER = """
import json

def make(workdir, config):
    def track(step, numbers, pictures):
        shapes = {name: pixels.shape for name, pixels in pictures.items()}
        with (workdir / "calls.jsonl").open("a") as file:
            print(json.dumps([step, sorted(numbers), shapes]), file=file)
        if step == 20:
            raise OSError("no network")
    return track
"""


class TrackingTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        (cls.folder / "tracker_of_a_test.py").write_text(TRACKER)
        cls.enterClassContext(mock.patch.object(sys, "path", [str(cls.folder), *sys.path]))
        cls.plain, cls.tracked = cls.folder / "plain", cls.folder / "tracked"
        more = (
            "--config.train.validation_batches=2",
            "--config.train.tracker=tracker_of_a_test:make",
        )
        cls.first = run(*FLAGS, f"--workdir={cls.plain}")
        cls.second = run(*FLAGS, *more, f"--workdir={cls.tracked}")
        for child in (cls.first, cls.second):
            if child.returncode:
                raise AssertionError(child.stderr)

    def test_neither_validation_nor_a_tracker_changes_a_bit(self):
        (step, state), (_, expected) = map(saved_state, (self.tracked, self.plain))
        self.assertEqual(step, 20)
        jax.tree.map(np.testing.assert_array_equal, bits(state), bits(expected))
        losses, wanted = ([line["loss"] for line in metrics(w)] for w in (self.tracked, self.plain))
        self.assertEqual(losses, wanted)
        results, wanted = (evaluations(w, 20)[0]["results"] for w in (self.tracked, self.plain))
        self.assertEqual(results, wanted)

    def test_validation_losses_are_measured_with_the_training_losses(self):
        self.assertEqual([line["step"] for line in metrics(self.tracked)], [5, 10, 15, 20])
        losses = [line["validation_loss_ema"] for line in metrics(self.tracked)]
        self.assertTrue(all(np.isfinite(losses)))
        self.assertRegex(self.second.stderr, r"20/20 .*loss \d+\.\d+, validation \d+\.\d+, ")
        self.assertNotIn("validation_loss_ema", metrics(self.plain)[0])

    def test_scores_follow_the_measurements(self):
        *others, last = lines_of(self.plain)
        self.assertEqual(others, metrics(self.plain))
        self.assertEqual(last["step"], 20)
        result = evaluations(self.plain, 20)[0]["results"]["ema"]
        score = last["evaluation/ema/log_likelihood"]
        self.assertEqual(score, result["log_likelihood"])

    def test_tensorboard_has_the_samples_and_the_scores(self):
        found = values(self.plain)
        pictures = [(step, value.tag) for step, value in found if value.HasField("image")]
        self.assertEqual(pictures, [(10, "samples/ema"), (20, "samples/ema")])
        numbers = {(step, value.tag): value.simple_value for step, value in found}
        result = evaluations(self.plain, 20)[0]["results"]["ema"]
        score = numbers[20, "evaluation/ema/log_likelihood"]
        self.assertAlmostEqual(score, result["log_likelihood"], places=5)
        texts = [(step, value.tag) for step, value in found if value.HasField("tensor")]
        self.assertEqual(texts, [(1, "config/text_summary")])

    def test_a_tracker_that_fails_is_told_once(self):
        calls = [json.loads(line) for line in (self.tracked / "calls.jsonl").open()]
        self.assertEqual([call[0] for call in calls], [5, 10, 10, 15, 20])
        self.assertIn("validation_loss_ema", calls[0][1])
        self.assertEqual(calls[2], [10, [], {"samples/ema": [400, 400]}])
        warnings = [line for line in self.second.stderr.splitlines() if "warning" in line]
        (line,) = warnings
        self.assertIn("it raised OSError: no network (tracker_of_a_test.py, line 10)", line)

    def test_a_tracker_that_does_not_exist_is_told_before_the_training(self):
        workdir = self.folder / "never"
        for name, said in (
            ("tracker_of_a_test:nothing", "there is no function nothing"),
            ("tensorboard", "it may be one of: wandb, or your own: module:function"),
        ):
            child = run(*FLAGS, f"--config.train.tracker={name}", f"--workdir={workdir}")
            self.assertEqual(child.returncode, 2, child.stderr)
            self.assertIn(f"error: config.train.tracker: got '{name}'; {said}", child.stderr)
        self.assertFalse(workdir.exists())


if __name__ == "__main__":
    absltest.main()
