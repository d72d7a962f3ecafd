import importlib.machinery
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest

from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.tracking.tracker import Tracker, find_tracker, wandb

CONFIG = {"seed": 0}


class OwnTest(absltest.TestCase):
    """Trackers in a module of the user."""

    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)
        self.enter_context(mock.patch.object(sys, "path", [str(self.folder), *sys.path]))
        self.enter_context(mock.patch.dict(sys.modules))

    def tracker(self, source, function="make"):
        (self.folder / "own_tracker.py").write_text(source)
        return Tracker(f"own_tracker:{function}", self.folder, CONFIG)

    def test_it_is_made_once_and_called_with_each_step(self):
        tracker = self.tracker(
            "made, got = [], []\n"
            "def make(workdir, config):\n"
            "    made.append((workdir, config))\n"
            "    return lambda step, numbers, pictures: got.append((step, numbers, pictures))\n"
        )
        module = sys.modules["own_tracker"]
        self.assertEmpty(module.made)
        tracker(5, {"loss": 0.5}, {})
        tracker(10, {}, {"samples/ema": "pixels"})
        self.assertEqual(module.made, [(self.folder, CONFIG)])
        expected = [(5, {"loss": 0.5}, {}), (10, {}, {"samples/ema": "pixels"})]
        self.assertEqual(module.got, expected)

    def check_switched_off(self, source, said, before=0):
        """It is told once, in one line, and never called again."""
        tracker = self.tracker(source)
        for _ in range(before):
            tracker(1, {}, {})
        with self.assertLogs("flowmatch_jax.tracking.tracker", "WARNING") as logs:
            tracker(2, {}, {})
        (line,) = logs.output
        self.assertIn(said, line)
        self.assertEndsWith(line, "it is switched off")
        self.assertNotIn("\n", line)
        with self.assertNoLogs("flowmatch_jax", "WARNING"):
            tracker(3, {}, {})

    def test_one_that_cannot_be_made_is_switched_off(self):
        source = "def make(workdir, config):\n    raise KeyError('no\\nnetwork')\n"
        self.check_switched_off(source, "config.train.tracker: got 'own_tracker:make'; it raised")

    def test_one_that_fails_later_is_switched_off(self):
        source = (
            "def make(workdir, config):\n"
            "    def track(step, numbers, pictures):\n"
            "        1 / (step - 2)\n"
            "    return track\n"
        )
        said = "ZeroDivisionError: division by zero (own_tracker.py, line 3)"
        self.check_switched_off(source, said, before=1)

    def test_a_stop_by_the_user_is_no_failure(self):
        source = "def make(workdir, config):\n    raise KeyboardInterrupt\n"
        with self.assertRaises(KeyboardInterrupt):
            self.tracker(source)(1, {}, {})

    def test_one_that_does_not_exist_is_told_before_the_training(self):
        with self.assertRaisesRegex(UserError, "config.train.tracker: .* there is no function"):
            self.tracker("", "nothing")
        with self.assertRaisesRegex(UserError, "config.train.tracker: .* there is no module"):
            find_tracker("no_such_module_here:make")


class NoTrackerTest(absltest.TestCase):
    def test_calls_do_nothing(self):
        self.assertIsNone(find_tracker(None))
        Tracker(None, Path("nowhere"), CONFIG)(1, {"loss": 1.0}, {})


class WandbTest(absltest.TestCase):
    def test_without_wandb_a_run_does_not_begin(self):
        """Nor with the folder that wandb itself leaves in the current one."""
        folder = importlib.machinery.ModuleSpec("wandb", None, is_package=True)
        for found in (None, folder):
            with (
                mock.patch("importlib.util.find_spec", return_value=found),
                self.assertRaisesRegex(UserError, "got 'wandb'; it is not installed: pip install"),
            ):
                find_tracker("wandb")

    def test_what_wandb_is_given(self):
        """A stand-in with the functions that are used; a later start goes on with its run."""
        module = types.ModuleType("wandb")
        module.Image = lambda pixels: ("image", pixels.shape)
        module.init = mock.Mock()
        run = module.init.return_value
        run.id = "abc"
        workdir = Path(self.create_tempdir().full_path)
        with mock.patch.dict(sys.modules, wandb=module):
            for known in (None, "abc"):
                track = wandb(workdir, CONFIG)
                given = module.init.call_args.kwargs
                self.assertEqual((given["id"], given["config"]), (known, CONFIG))
                self.assertEqual((given["resume"], given["name"]), ("allow", workdir.name))
            track(5, {"loss": 0.5}, {"samples/ema": np.zeros((3, 4), np.uint8)})
        logged = {"step": 5, "loss": 0.5, "samples/ema": ("image", (3, 4))}
        run.log.assert_called_once_with(logged)
        run.define_metric.assert_called_with("*", step_metric="step")


if __name__ == "__main__":
    absltest.main()
