import errno
import json
import sys
import time
from pathlib import Path
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from flowmatch_jax.training.log import Meter, RunLog
from tests.runtime.terminal import Terminal


class RunLogTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = Path(self.create_tempdir().full_path)

    def lines(self):
        return [json.loads(line) for line in (self.workdir / "metrics.jsonl").open()]

    def write(self, start, *steps):
        log = RunLog(self.workdir, start, 100)
        for step in steps:
            log.write(step, {"loss": 1 / step, "images_per_second": 5.0})
        log.close()

    def test_one_line_a_measurement(self):
        self.write(0, 10, 20)
        self.assertEqual([line["step"] for line in self.lines()], [10, 20])
        self.assertEqual(self.lines()[1]["loss"], 0.05)
        self.assertAlmostEqual(self.lines()[0]["time"], time.time(), delta=60)

    def test_a_resumed_run_drops_what_it_will_measure_again(self):
        self.write(0, 10, 20, 30)
        with (self.workdir / "metrics.jsonl").open("a") as file:
            file.write('{"step": 40, "lo')  # killed while writing
        self.write(20, 30)
        self.assertEqual([line["step"] for line in self.lines()], [10, 20, 30])

    def test_lines_that_are_no_measurements_cost_no_others(self):
        self.write(0, 10, 20)
        path = self.workdir / "metrics.jsonl"
        first, second = path.read_bytes().splitlines(keepends=True)
        torn = [b"\n", b'{"step": 15, "lo\n', b"\xff\xfe\n", b"[1]\n", b'{"step": "x"}\n']
        path.write_bytes(first + b"".join(torn) + second)
        with self.assertLogs("flowmatch_jax.runtime.workdir", "WARNING") as logs:
            self.write(20, 30)
        self.assertIn("5 lines", logs.output[0])
        self.assertEqual([line["step"] for line in self.lines()], [10, 20, 30])

    def test_tensorboard_events(self):
        self.write(0, 10)
        (path,) = (self.workdir / "tensorboard").iterdir()
        data, tags = path.read_bytes(), []
        while data:  # TFRecord: length, its checksum, the record, its checksum
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            tags += [(event.step, value.tag) for value in event.summary.value]
            data = data[16 + length :]
        self.assertEqual(tags, [(10, "loss"), (10, "images_per_second")])

    def test_a_full_disk_is_told_to_the_run(self):
        full = OSError(errno.ENOSPC, "No space left on device")
        with (
            mock.patch.object(EventsWriter, "flush", side_effect=full),
            self.assertRaises(OSError) as told,
        ):
            self.write(0, 10)
        self.assertEqual(told.exception.errno, errno.ENOSPC)

    def test_progress_of_a_resumed_run(self):
        """No bar before the first steps are done, which are compiled before."""
        with mock.patch.object(sys, "stderr", Terminal()) as terminal:
            log = RunLog(self.workdir, 60, 100)
            self.assertEqual(terminal.getvalue(), "")
            log.advance(10)
            log.write(70, {"loss": 0.5, "images_per_second": 1234.5, "input_wait": 0.1})
            log.close()
        line, _ = terminal.screen()
        self.assertStartsWith(line, "training:  70%|")
        self.assertRegex(line, r"\| 70/100 \[00:\d\d, .* left, loss 0.5000, 1234 images/s\]$")

    def test_nothing_is_shown_of_a_run_that_takes_no_step(self):
        with mock.patch.object(sys, "stderr", Terminal()) as terminal:
            RunLog(self.workdir, 60, 100).close()
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
