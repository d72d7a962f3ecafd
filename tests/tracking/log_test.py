import errno
import json
import time
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from configs import checkerboard_ot
from flowmatch_jax.tracking import tracker
from flowmatch_jax.tracking.log import RunLog


def events(workdir):
    """The events of all files of a run, in their order."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:  # TFRecord: length, its checksum, the record, its checksum
            length = int.from_bytes(data[:8], "little")
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def values(workdir):
    """(step, value) of all summaries of a run."""
    return [(event.step, value) for event in events(workdir) for value in event.summary.value]


class RunLogTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = Path(self.create_tempdir().full_path)
        self.config = checkerboard_ot.get_config()

    def lines(self):
        return [json.loads(line) for line in (self.workdir / "metrics.jsonl").open()]

    def write(self, start, *steps):
        with RunLog(self.workdir, self.config) as log:
            log.begin(start)
            for step in steps:
                log.write(step, {"loss": 1 / step, "images_per_second": 5.0})

    def picture(self):
        """A grey one and its file, as samples are drawn."""
        pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
        path = self.workdir / "picture.png"
        Image.fromarray(pixels).save(path)
        return pixels, path

    def test_one_line_a_measurement(self):
        self.write(0, 10, 20)
        self.assertEqual([line["step"] for line in self.lines()], [10, 20])
        self.assertEqual(self.lines()[1]["loss"], 0.05)
        self.assertAlmostEqual(self.lines()[0]["time"], time.time(), delta=60)

    def test_a_resumed_run_drops_what_it_will_measure_again(self):
        """Scores of an evaluation at the step that it goes on from are kept."""
        self.write(0, 10, 20, 30)
        for step in (20, 30):
            with RunLog(self.workdir, self.config) as log:
                log.write(step, {"evaluation/ema/fid": 3.0})
        with (self.workdir / "metrics.jsonl").open("a") as file:
            file.write('{"step": 40, "lo')  # killed while writing
        self.write(20, 30)
        self.assertEqual([line["step"] for line in self.lines()], [10, 20, 20, 30])
        self.assertEqual(["loss" in line for line in self.lines()], [True, True, False, True])

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

    def test_tensorboard_numbers(self):
        self.write(5, 10)
        starts = [event.step for event in events(self.workdir) if event.HasField("session_log")]
        self.assertEqual(starts, [6])
        tags = [(step, value.tag) for step, value in values(self.workdir)]
        expected = [(6, "config/text_summary"), (10, "loss"), (10, "images_per_second")]
        self.assertEqual(tags, expected)

    def test_tensorboard_config(self):
        """A row of a Markdown table for each field."""
        self.config.data.folder.exclude = ("a|b",)
        self.write(0)
        ((_, value),) = values(self.workdir)
        self.assertEqual(value.metadata.plugin_data.plugin_name, "text")
        rows = value.tensor.string_val[0].decode().splitlines()
        self.assertEqual(rows[:2], ["| field | value |", "| --- | --- |"])
        self.assertIn("| config.path.name | 'ot' |", rows)
        self.assertIn(r"| config.data.folder.exclude | ['a\|b'] |", rows)

    def test_tensorboard_picture(self):
        pixels, path = self.picture()
        with RunLog(self.workdir, self.config) as log:
            log.picture(7, "samples/ema", path)
        ((step, value),) = values(self.workdir)
        self.assertEqual((step, value.tag), (7, "samples/ema"))
        self.assertEqual((value.image.height, value.image.width), pixels.shape)
        (self.workdir / "shown.png").write_bytes(value.image.encoded_image_string)
        with Image.open(self.workdir / "shown.png") as image:
            np.testing.assert_array_equal(np.asarray(image)[..., 0], pixels)

    def test_an_evaluation_hides_no_events_of_the_training(self):
        with RunLog(self.workdir, self.config) as log:
            log.write(3, {"evaluation/ema/fid": 3.0})
        self.assertFalse(any(event.HasField("session_log") for event in events(self.workdir)))

    def test_the_tracker_gets_numbers_and_pictures(self):
        got = []

        def make(workdir, config):
            got.append((workdir, config["path"]["name"]))
            return lambda *given: got.append(given)

        pixels, path = self.picture()
        self.config.train.tracker = "own:make"
        with (
            mock.patch.object(tracker, "find_tracker", return_value=make),
            RunLog(self.workdir, self.config) as log,
        ):
            log.begin(0)
            log.write(5, {"loss": 0.5, "nfe": None})
            log.picture(5, "samples/ema", path)
        self.assertEqual(got[:2], [(self.workdir, "ot"), (5, {"loss": 0.5}, {})])
        (step, numbers, pictures) = got[2]
        self.assertEqual((step, numbers, list(pictures)), (5, {}, ["samples/ema"]))
        np.testing.assert_array_equal(pictures["samples/ema"], pixels)

    def test_only_the_first_process_writes(self):
        self.config.train.tracker = "own:make"
        with (
            mock.patch("jax.process_index", return_value=1),
            mock.patch.object(tracker, "find_tracker", return_value=self.fail),
            RunLog(self.workdir, self.config) as log,
        ):
            log.begin(0)
            log.write(5, {"loss": 0.5})
            log.picture(5, "samples/ema", self.workdir / "not_drawn.png")
        self.assertEmpty(list(self.workdir.iterdir()))

    def test_a_full_disk_is_told_to_the_run(self):
        full = OSError(errno.ENOSPC, "No space left on device")
        with (
            mock.patch.object(EventsWriter, "flush", side_effect=full),
            self.assertRaises(OSError) as told,
        ):
            self.write(0, 10)
        self.assertEqual(told.exception.errno, errno.ENOSPC)


if __name__ == "__main__":
    absltest.main()
