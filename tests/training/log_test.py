import sys
import time
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from flowmatch_jax.training.log import Meter, Progress
from tests.runtime.terminal import Terminal


class ProgressTest(absltest.TestCase):
    def test_progress_of_a_resumed_run(self):
        """No bar before the first steps are done, which are compiled before."""
        with mock.patch.object(sys, "stderr", Terminal()) as terminal:
            progress = Progress(60, 100)
            self.assertEqual(terminal.getvalue(), "")
            progress.advance(10)
            progress.show({"loss": 0.5, "images_per_second": 1234.5, "input_wait": 0.1})
            progress.close()
        line, _ = terminal.screen()
        self.assertStartsWith(line, "training:  70%|")
        self.assertRegex(line, r"\| 70/100 \[00:\d\d, .* left, loss 0.5000, 1234 images/s\]$")

    def test_losses_on_held_out_data_are_shown(self):
        with mock.patch.object(sys, "stderr", Terminal()) as terminal:
            progress = Progress(0, 100)
            progress.advance(1)
            losses = {"validation_loss_ema": 0.25, "validation_loss_raw": None, "loss": 0.5}
            progress.show(losses)
            progress.close()
        self.assertIn("left, loss 0.5000, validation 0.2500]", terminal.screen()[0])

    def test_nothing_is_shown_of_a_run_that_takes_no_step(self):
        with mock.patch.object(sys, "stderr", Terminal()) as terminal:
            Progress(60, 100).close()
        self.assertEqual(terminal.getvalue(), "")


def of_steps(loss, skipped):
    """Metrics as the training step returns them: [n] of n steps."""
    return {"loss": jnp.float32(loss), "skipped": jnp.int32(skipped)}


class MeterTest(absltest.TestCase):
    def test_means_and_rates(self):
        meter = Meter(batch_size=10)
        for loss in (1.0, 2.0, 6.0):
            with meter.waiting():
                time.sleep(0.02)
            meter.add(of_steps([loss], [0]))
        with meter.paused():
            time.sleep(0.5)
        metrics = meter.read()
        self.assertEqual(metrics["loss"], 3.0)
        self.assertGreater(metrics["images_per_second"], 30 / 0.5)  # the pause does not count
        self.assertBetween(metrics["input_wait"], 0.1, 1.0)
        meter.add(of_steps([5.0], [0]))
        self.assertEqual(meter.read()["loss"], 5.0)

    def test_means_leave_out_updates_that_were_not_made(self):
        meter = Meter(batch_size=10)
        meter.add(of_steps([1.0, float("nan"), 3.0], [0, 1, 0]))
        metrics = meter.read()
        self.assertEqual((metrics["loss"], metrics["updates_skipped"]), (2.0, 1))
        meter.add(of_steps([float("nan")], [1]))
        metrics = meter.read()
        self.assertEqual((metrics["loss"], metrics["updates_skipped"]), (None, 1))

    def test_updates_skipped_in_a_row(self):
        """The last dispatches are known only if they are waited for; a reading forgets nothing."""
        meter = Meter(batch_size=1)
        self.assertEqual(meter.skipped(all_steps=True), 0)
        for n in (1, 2, 3, 4):
            meter.add(of_steps([0.0], [n]))
        self.assertEqual(meter.skipped(all_steps=False), 4 - Meter.AHEAD)
        self.assertEqual(meter.skipped(all_steps=True), 4)
        meter.read()
        self.assertEqual(meter.skipped(all_steps=False), 4)

    def test_looking_leaves_the_device_alone(self):
        """Its work would wait behind the steps ahead, and Python for it."""

        class Copied:
            def __array__(self, dtype=None, copy=None):
                return np.array([3], np.int32)

        meter = Meter(batch_size=1)
        for _ in range(1 + Meter.AHEAD):
            meter.add({"skipped": Copied()})
        self.assertEqual(meter.skipped(all_steps=False), 3)


if __name__ == "__main__":
    absltest.main()
