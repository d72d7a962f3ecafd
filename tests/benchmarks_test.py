"""Of benchmarks/: what is not a figure."""

import itertools
import json
import math
import time
import unittest
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from benchmarks import few_calls, report, timing
from benchmarks.nets import NETS, has_torch, parameter_shapes
from flowmatch_jax.config.command_line import load_config
from flowmatch_jax.data.dataset import Dataset


def spread(value):
    return {"median": value, "min": value, "max": value}


def sleeper(log):
    """A call that tells when it ran."""

    def call():
        begin = time.time()
        time.sleep(0.05)
        with Path(log).open("a") as file:
            file.write(f"{begin} {time.time()}\n")
        return "done"

    return call


def failing():
    raise ValueError("no such peer")


class TurnsTest(absltest.TestCase):
    def test_one_at_a_time(self):
        log = self.create_tempfile().full_path
        make = partial(sleeper, log)
        turns = timing.take_turns({"a": make, "b": make}, rounds=2)
        self.assertEqual(turns.told, {"a": "done", "b": "done"})
        self.assertEqual([len(times) for times in turns.seconds.values()], [2, 2])
        self.assertGreaterEqual(min(map(min, turns.seconds.values())), 0.05)
        spans = [tuple(map(float, line.split())) for line in Path(log).read_text().splitlines()]
        self.assertLen(spans, 2 * (1 + timing.UNCOUNTED + 2))
        for (_, end), (begin, _) in itertools.pairwise(spans[2:]):  # the first two: side by side
            self.assertLessEqual(end, begin)

    def test_a_failure_is_told(self):
        with self.assertRaisesRegex(RuntimeError, "no such peer"):
            timing.take_turns({"a": failing}, rounds=1)


class FewCallsTest(absltest.TestCase):
    def test_means_over_runs_that_have_their_own_best_grids(self):
        records = []
        for grid, error in (("uniform", 1.0), ("sway", 3.0)):
            row = {"method": "ab2", "grid": grid, "calls": 4}
            other = row | {"grid": "edm", "error": 99.0, "geometric_mean": 99.0}
            measured = row | {"error": 2 * error, "geometric_mean": error}
            distance = row | {"distance": 4 * error}
            accurate = {"nfe": 100 * error, "distance": error}
            records.append(
                {"rows": [other, measured], "distances": [distance], "accurate": accurate}
            )
        text = few_calls.over_runs(records)
        self.assertEqual(text.count("| ab2 | uniform / sway |"), 3)
        for number in ("2", "4", "8"):
            self.assertIn(f"| ab2 | uniform / sway | **{number}** |", text)
        self.assertIn("NFE 200.0, distance 2.000", text)


class RowsTest(absltest.TestCase):
    def test_ratios_are_taken_round_by_round(self):
        """Of a machine that halves its speed in the second round."""
        row = timing.compared("case", "s", [1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
        self.assertEqual(row.ratio, spread(0.5))
        self.assertEqual(row.ours, {"median": 2.0, "min": 1.0, "max": 3.0})


class NetsTest(parameterized.TestCase):
    @parameterized.parameters(*NETS)
    def test_parameter_count(self, name):
        """torchcfm's modules are counted when they are made (`torch_net`), against the same."""
        net = NETS[name]
        self.assertEqual(sum(map(math.prod, parameter_shapes(net).values())), net.parameters)


@unittest.skipUnless(has_torch(), "needs requirements-bench.txt")
class OutsideRowTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        from benchmarks import outside_row

        self.module = outside_row
        fields = ("train.steps=4", "train.batch_size=2", "optimizer.warmup_steps=1")
        overrides = [f"--config.{field}" for field in fields]
        self.config = load_config("configs/fashion_mnist16_ot.py", overrides)
        images = np.random.RandomState(0).randint(0, 256, (16, 16, 16, 1), np.uint8)
        self.source = Dataset("random", "1", "train", images, levels=256)

    def train(self, workdir):
        return self.module.train(self.config, self.source, Path(workdir.full_path))

    def test_a_killed_training_ends_alike(self):
        whole = self.train(self.create_tempdir("whole"))
        update, killed = self.module.Training.update, self.create_tempdir("killed")

        def dying(training, x1):
            if training.step == 3:
                raise KeyboardInterrupt
            update(training, x1)

        self.enterContext(mock.patch.object(self.module, "SAVE_EVERY", 2))
        kill = mock.patch.object(self.module.Training, "update", dying)
        with kill, self.assertRaises(KeyboardInterrupt):
            self.train(killed)
        resumed = self.train(killed)
        self.assertEqual((whole.step, resumed.step), (4, 4))
        for kind in ("network", "average"):
            states = (getattr(training, kind).state_dict() for training in (whole, resumed))
            for a, b in zip(*(state.values() for state in states), strict=True):
                np.testing.assert_array_equal(a.numpy(), b.numpy())

    def test_pixels_survive_model_space(self):
        images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
        x = self.module.to_model_space(images)
        self.assertEqual((float(x.min()), float(x.max())), (-1.0, 1.0))
        np.testing.assert_array_equal(self.module.to_images(x), images)


class ReportTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.results = Path(self.create_tempdir().full_path)

    def keep(self, file, *rows):
        machine = {"device": "cpu", "devices": 1, "cpu": "a CPU", "cpu_cores": 2, "python": "3"}
        machine |= dict.fromkeys(("jax", "torch", "torchcfm", "torchdiffeq"))
        record = {"machine": machine, "command": "made by", "rounds": 5, "rows": rows}
        (self.results / file).write_text(json.dumps(record))

    def row(self, name, ratio):
        return {
            "name": name,
            "unit": "images/s",
            "ratio": spread(ratio),
            "ours": {"median": 1234.5, "min": 1.2, "max": 2000.0},
            "against": spread(3.0),
            "note": "batch 16",
        }

    def test_demands_beside_figures(self):
        case = f"{NETS['cifar10'].name}, float32: torch eager"
        for ratio, verdict in ((1.2, "met"), (1.1, "missed")):
            self.keep("train_step.json", self.row(case, ratio))
            (line,) = [
                line
                for line in report.page(self.results).splitlines()
                if line.startswith(f"| {case}")
            ]
            cells = [cell.strip() for cell in line.split("|")[1:-1]]
            figures = "1,234 (1.2 - 2,000) : 3 images/s; batch 16"
            self.assertEqual(cells[1:4], [f"{ratio}", f">= 1.15: {verdict}", figures])
            self.assertEqual(cells[4:], ["", "", ""])

    def test_a_gpu_fills_its_own_columns(self):
        self.keep("train_step.json", self.row("case", 2.0))
        self.assertIn(report.NOT_MEASURED, report.page(self.results))
        self.keep("train_step.gpu.json", self.row("case", 3.0))
        (line,) = [
            line for line in report.page(self.results).splitlines() if line.startswith("| case")
        ]
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        self.assertEqual((cells[1], cells[4]), ("2", "3"))

    def test_demands_without_figures(self):
        """Of each benchmark, also where nothing has been measured."""
        page = report.page(self.results)
        for _, case in report.DEMANDS:
            self.assertIn(f"| {case} |", page)


if __name__ == "__main__":
    absltest.main()
