"""A whole run on real digits: trained, evaluated, sampled from; and mistakes on top."""

import csv
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest
from PIL import Image

from flowmatch_jax.sampling.linear import METHODS
from tests.end_to_end.runs import (
    DIGITS,
    SMALL_NET,
    TINY,
    TINY_POINTS,
    evaluations,
    metrics,
    run,
    run_process,
)


class RunTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        cls.whole = cls.folder / "whole"
        cls.first = run_process(DIGITS, *TINY, f"--workdir={cls.whole}")

    def evaluation(self, workdir):
        """The one that training ends with, whatever others were made since."""
        (record,) = (e for e in evaluations(workdir, 60) if e["likelihood"]["images"] == 11)
        return record

    def files(self, workdir):
        return sorted(str(path.relative_to(workdir)) for path in workdir.rglob("*.*"))

    def test_files_of_a_run(self):
        self.assertEqual(self.first.returncode, 0, self.first.stderr)
        config = json.loads((self.whole / "config.json").read_text())
        self.assertEqual(config["train"]["steps"], 60)
        self.assertEqual([line["step"] for line in metrics(self.whole)], list(range(5, 61, 5)))
        for name in ("loss", "gradient_norm", "learning_rate", "images_per_second", "input_wait"):
            self.assertTrue(all(np.isfinite(line[name]) for line in metrics(self.whole)), name)
        kept = sorted(int(path.name) for path in (self.whole / "checkpoints").iterdir())
        self.assertEqual(kept, [50, 60])
        self.assertNotEmpty(list((self.whole / "tensorboard").iterdir()))
        for step in (20, 40, 60):
            picture = Image.open(self.whole / "samples" / f"{step}_ema.png")
            self.assertEqual(picture.size, (66, 66))
        self.assertIn("60/60", self.first.stderr)  # the progress bar

    def test_messages_of_a_run(self):
        """Whole lines, none of them a library's, and in the end the table of results."""
        lines = self.first.stderr.splitlines()
        self.assertEmpty([line for line in lines if "warning" in line or "read only" in line])
        self.assertNotIn("\r", self.first.stderr)
        self.assertNotRegex(self.first.stderr, r"(?m)[IWE]\d{4} ")
        self.assertStartsWith(lines[0], "Training on ")
        end = lines.index("Evaluation at step 60:")
        self.assertRegex(lines[end + 2], r"^bits per dimension \(K = 1\) +\d\.\d+ \+- \d\.\d+$")
        self.assertEqual(lines[-1], f"It is kept in {self.whole / 'evaluation' / '60.json'}.")

    def test_evaluation_names_all_that_its_numbers_depend_on(self):
        record = self.evaluation(self.whole)
        result = record["results"]["ema"]
        self.assertEqual(result["images"], 11)
        self.assertEqual(result["sample_nfe"], 2)
        self.assertGreater(result["likelihood_nfe"], 8)  # adaptive
        self.assertBetween(result["bits_per_dim_k1"], 1, 8)
        self.assertBetween(result["bits_per_dim_k1_standard_error"], 0.001, 1)
        self.assertGreater(result["fd_pixels"], 0)
        self.assertEqual(record["frechet"]["generated"], 8)
        self.assertEqual(record["frechet"]["reference"]["images"], 1500)
        self.assertEqual(record["data"]["levels"], 17)
        self.assertEqual(record["data"]["split"], "test")
        self.assertEqual(record["solver"]["method"], "ab2")
        self.assertEqual(record["likelihood"]["method"], "dopri5")
        self.assertEqual(record["likelihood"]["dequantisations"], [1])
        self.assertEqual(record["likelihood"]["batch_size"], 8)
        for name in ("step", "seed", "evaluation_seed", "packages", "device", "dtype", "path"):
            self.assertIn(name, record)

    def test_a_finished_run_is_only_evaluated_again(self):
        before = metrics(self.whole)
        again = run(DIGITS, *TINY, f"--workdir={self.whole}")
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertEqual(metrics(self.whole), before)

    def test_evaluations_with_other_settings_stand_side_by_side(self):
        flags = (DIGITS, *TINY, "--mode=evaluate", f"--workdir={self.whole}")
        for more in ("--config.evaluate.images=5", "--config.evaluate.weights=('raw',)"):
            child = run(*flags, more)
            self.assertEqual(child.returncode, 0, child.stderr)
        eleven, five = sorted(
            evaluations(self.whole, 60), key=lambda record: -record["likelihood"]["images"]
        )
        self.assertCountEqual(eleven["results"], ["ema", "raw"])
        self.assertCountEqual(five["results"], ["ema"])
        self.assertEqual(five["likelihood"]["batch_size"], 5)
        self.assertEqual(five["results"]["ema"]["images"], 5)

    def test_raw_weights_and_a_sample_of_arrays(self):
        both = "--config.evaluate.weights=('ema','raw')"
        child = run(DIGITS, *TINY, both, "--mode=sample", f"--workdir={self.whole}")
        self.assertEqual(child.returncode, 0, child.stderr)
        samples = [
            np.load(self.whole / "samples" / f"60_{w}_nfe2.npz")["x"] for w in ("ema", "raw")
        ]
        self.assertEqual(samples[0].shape, (4, 8, 8, 1))
        self.assertFalse(np.array_equal(*samples))

    def test_figures_and_a_report(self):
        workdir = self.folder / "drawn"
        flags = (DIGITS, *SMALL_NET, f"--workdir={workdir}")
        for more in ("--mode=train", "--mode=figures"):
            child = run(*flags, more)
            self.assertEqual(child.returncode, 0, child.stderr)
        rows = list(csv.DictReader((workdir / "figures" / "over_training.csv").open()))
        self.assertEqual([row["step"] for row in rows], ["50", "60"])
        self.assertTrue(all(row["nfe"] == "2.0" for row in rows))
        rows = list(csv.DictReader((workdir / "figures" / "over_nfe.csv").open()))
        self.assertEqual([row["method"] for row in rows], list(METHODS))
        self.assertTrue(all(float(row["fd_pixels"]) > 0 for row in rows))
        for name in ("conditional", "sample_paths", "samples_nfe", "fd_pixels_over_nfe"):
            self.assertTrue((workdir / "figures" / f"{name}.png").exists(), name)
        wanted = self.evaluation(workdir)
        report = self.folder / "report"
        child = run("--mode=report", f"--runs={workdir}", f"--workdir={report}")
        self.assertEqual(child.returncode, 0, child.stderr)
        (row,) = csv.DictReader((report / "table1.csv").open())
        result = wanted["results"]["ema"]
        self.assertEqual((row["method"], row["NFE"]), ("FM w/ OT", "2.0"))
        self.assertEqual(float(row["NLL (bits/dim, K = 1)"]), result["bits_per_dim_k1"])
        self.assertEqual(float(row["fd_pixels"]), result["fd_pixels"])
        self.assertTrue((report / "figure5.png").exists())
        self.assertIn("K = 1", (report / "table4.tex").read_text())

    def test_another_network_leaves_the_workdir_as_it_was(self):
        before = self.files(self.whole)
        config = (self.whole / "config.json").read_bytes()
        flags = (DIGITS, *TINY, "--config.network.unet.channels=16", f"--workdir={self.whole}")
        for mode in ("train", "evaluate"):
            child = run(*flags, f"--mode={mode}")
            self.assertEqual(child.returncode, 2, child.stderr)
            self.assertIn("config.network.unet.channels: got 16", child.stderr)
        # Without the record of the config, the checkpoint itself says so.
        (self.whole / "config.json").rename(self.whole / "kept.json")
        child = run(*flags)
        (self.whole / "kept.json").rename(self.whole / "config.json")
        self.assertEqual(child.returncode, 2, child.stderr)
        self.assertIn("another network", child.stderr)
        self.assertEqual(self.files(self.whole), before)
        self.assertEqual((self.whole / "config.json").read_bytes(), config)


class ComparisonTest(absltest.TestCase):
    """Two methods on points, from nothing to a report; then once more, with all done but a part."""

    def test_compare(self):
        folder = Path(self.create_tempdir().full_path)
        flags = (
            "--mode=compare",
            "--data=checkerboard",
            "--methods=ot,ve",
            f"--workdir={folder}",
            *TINY_POINTS,
            "--config.figures.methods=('rk4',)",
        )
        child = run(*flags)
        self.assertEqual(child.returncode, 0, child.stderr)
        text = (folder / "report_checkerboard" / "report.md").read_text()
        self.assertIn("| FM w/ OT |", text)
        self.assertIn("| FM w/ VE |", text)
        self.assertIn("A perfect density has NLL 3.466", text)
        for name in ("figure4", "figure6", "figure7_left_rk4", "figure10"):
            self.assertIn(f"({name}.png)", text)

        def scores():
            rows = csv.DictReader((folder / "report_checkerboard" / "table1.csv").open())
            return [{k: v for k, v in row.items() if "ms a step" not in k} for row in rows]

        table = scores()
        done, half = (folder / f"checkerboard_{m}_seed0" for m in ("ot", "ve"))
        before = (done / "metrics.jsonl").read_bytes()
        wanted = evaluations(half, 20)[0]["results"]
        # As if it had been killed halfway.
        shutil.rmtree(half / "checkpoints" / "20")
        (half / "evaluation" / "20.json").unlink()
        child = run(*flags)
        self.assertEqual(child.returncode, 0, child.stderr)
        self.assertIn(f"{done} is done already.", child.stderr)
        self.assertIn(f"Resuming {half} at step 10", child.stderr)
        self.assertEqual((done / "metrics.jsonl").read_bytes(), before)
        self.assertEqual(evaluations(half, 20)[0]["results"], wanted)
        self.assertEqual(scores(), table)


class SuperResolutionTest(absltest.TestCase):
    def test_three_methods_by_one_command(self):
        """From nothing to Table 2, each a few steps of a tiny network."""
        folder = Path(self.create_tempdir().full_path)
        child = run(
            "--mode=compare",
            "--data=digits_sr4_8",
            f"--workdir={folder}",
            *SMALL_NET,
            "--config.train.steps=20",
            "--config.train.keep_every=20",
            "--config.sr3.steps=5",
        )
        self.assertEqual(child.returncode, 0, child.stderr)
        report = folder / "report_digits_sr4_8"
        with (report / "table2.csv").open() as file:
            rows = {row["method"]: row for row in csv.DictReader(file)}
        methods = ["Reference", "Bicubic", "Regression", "SR3", "FM w/ OT"]
        self.assertEqual(list(rows), methods)
        self.assertEqual([float(rows[name]["NFE"]) for name in methods], [0, 0, 1, 5, 2])
        self.assertIn("(super_resolution.png)", (report / "report.md").read_text())
        for name in ("regression", "sr3", "ot"):
            workdir = folder / f"digits_sr4_8_{name}_seed0"
            self.assertTrue((workdir / "samples" / "20_ema.png").exists())
            (record,) = evaluations(workdir, 20)
            self.assertEqual("bits_per_dim_k1" in record["results"]["ema"], name == "ot")
            first, *_, last = metrics(workdir)
            self.assertLess(last["loss"], first["loss"])


class MaximumLikelihoodTest(absltest.TestCase):
    def test_a_flow_trained_through_the_solve(self):
        workdir = Path(self.create_tempdir().full_path)
        flags = (
            "--config.maximum_likelihood.method=rk4",
            "--config.maximum_likelihood.steps=2",
            "--config.optimizer.learning_rate=0.01",
            "--config.train.batch_size=256",
        )
        child = run(
            "--config=configs/checkerboard_cnf.py", f"--workdir={workdir}", *TINY_POINTS, *flags
        )
        self.assertEqual(child.returncode, 0, child.stderr)
        first, *_, last = metrics(workdir)
        self.assertLess(last["loss"], first["loss"])
        self.assertEqual((last["nfe"], last["converged"]), (8, 1))
        (record,) = evaluations(workdir, 20)
        self.assertEqual(record["objective"]["name"], "maximum_likelihood")


class CheckerboardTest(absltest.TestCase):
    def test_points_are_scored_in_nats(self):
        workdir = Path(self.create_tempdir().full_path)
        child = run(
            "--config=configs/checkerboard_ot.py",
            f"--workdir={workdir}",
            "--config.network.mlp.width=32",
            "--config.optimizer.warmup_steps=10",
            "--config.train.steps=200",
            "--config.solver.rtol=1e-3",
            "--config.solver.atol=1e-3",
            "--config.evaluate.images=1000",
            "--config.evaluate.batch_size=500",
        )
        self.assertEqual(child.returncode, 0, child.stderr)
        (record,) = evaluations(workdir, 200)
        result = record["results"]["ema"]
        # A Gaussian of the data's moments reaches -4.5 nats; no density beats minus the entropy.
        self.assertBetween(result["log_likelihood"], -5.0, -record["data"]["entropy"])
        self.assertIn("log_likelihood_standard_error", result)
        self.assertTrue((workdir / "samples" / "200_ema.png").exists())


if __name__ == "__main__":
    absltest.main()
