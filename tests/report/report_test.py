import csv
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from flowmatch_jax.report import plots
from flowmatch_jax.report.report import write_report
from flowmatch_jax.runtime.errors import UserError
from tests.evaluation.cases import (
    BASELINES,
    CONDITION,
    CONFIG,
    POINTS,
    RECORD,
    changed,
    scores,
    super_resolved,
    write_figures,
    write_run,
)

VP = changed(CONFIG, path__name="vp")


def record(results, **fields):
    return changed(RECORD, **fields) | {"results": results}


class ReportTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)
        self.report = self.folder / "report"

    def write(self, *names):
        write_report([self.folder / name for name in names], self.report)
        return (self.report / "report.md").read_text()

    def table(self, name):
        return list(csv.DictReader((self.report / f"{name}.csv").open()))

    def test_table_of_two_methods(self):
        write_run(self.folder / "ot")
        write_run(self.folder / "vp", VP, [record({"ema": scores(1.9, 0.6, 50.0)})])
        text = self.write("ot", "vp")
        self.assertIn("| FM w/ OT | 2.000 +- 0.100 | **0.500** | **40.0** | 100 | 27 |", text)
        self.assertIn("| FM w/ Diffusion | **1.900 +- 0.100** | 0.600 | 50.0 | 100 | 27 |", text)
        said = "NLL of 297 images of the test split by dopri5 at rtol 0.001, atol 0.001, hutch"
        self.assertIn(said, text)
        self.assertIn("500 samples to 1500 train images", text)
        self.assertIn("Without figures (run --mode=figures): FM w/ OT; FM w/ Diffusion", text)
        self.assertEqual(
            [row["method"] for row in self.table("table1")], ["FM w/ OT", "FM w/ Diffusion"]
        )
        self.assertEqual((self.report / "table1.tex").read_text().count("\\textbf"), 3)

    def test_rows_of_a_flow_map_s_calls(self):
        """They are in the table of solves, where all but the solver is alike."""
        config = changed(CONFIG, objective__name="mean_flow")
        by_map = {"solver__method": "flow_map", "solver__steps": 1}
        by_map["likelihood__method"] = "dopri5"  # of the field, in the row of its solve
        sampled = scores() | {"fd_pixels": 0.9, "sample_nfe": 1.0}
        records = [
            record({"ema": scores()}),
            record({"ema": sampled}, **by_map),
            record({"ema": sampled | {"sample_nfe": 2.0}}, **by_map | {"solver__steps": 2}),
            record({"ema": sampled}, **by_map | {"solver__steps": 4, "samples__batch_size": 3}),
        ]
        write_run(self.folder / "mf", config, records)
        write_run(self.folder / "ot")
        expected = [("MeanFlow", "40.0"), ("MeanFlow, 1 call", "1.0"), ("MeanFlow, 2 calls", "2.0")]
        for names, further in ((("mf",), []), (("mf", "ot"), [("FM w/ OT", "40.0")])):
            self.write(*names)
            found = [(row["method"], row["NFE"]) for row in self.table("table1")]
            self.assertEqual(found, expected + further)

    def test_mean_and_standard_error_over_seeds(self):
        values = [2.0, 2.1, 2.6]
        for seed, bits in enumerate(values):
            config = changed(CONFIG, seed=seed)
            write_run(self.folder / str(seed), config, [record({"ema": scores(bits)})])
        text = self.write("0", "1", "2")
        (row,) = self.table("table1")
        self.assertAlmostEqual(float(row["NLL (bits/dim, K = 1)"]), np.mean(values))
        error = float(row["NLL (bits/dim, K = 1) standard error"])
        self.assertAlmostEqual(error, np.std(values, ddof=1) / np.sqrt(3))
        self.assertIn("over seeds (3 each)", text)

    def test_bits_against_k(self):
        """Table 1 takes the largest K that all have; Table 4 says what is missing."""
        both = record({"ema": scores(2.0, k=1) | scores(1.7, k=20)})
        write_run(self.folder / "ot", records=[both])
        write_run(self.folder / "vp", VP, [record({"ema": scores(2.2, k=1)})])
        text = self.write("ot", "vp")
        self.assertIn("NLL (bits/dim, K = 1)", text)
        self.assertIn("| FM w/ Diffusion | 2.200 +- 0.100 | not evaluated |", text)
        self.assertIn("| FM w/ OT | **2.000 +- 0.100** | 1.700 +- 0.100 |", text)

    def test_no_shared_k(self):
        write_run(self.folder / "ot", records=[record({"ema": scores(k=20)})])
        write_run(self.folder / "vp", VP)
        with self.assertRaisesRegex(UserError, "no K is shared"):
            self.write("ot", "vp")

    def test_samples_by_fixed_steps(self):
        few = {"solver__method": "ab2", "solver__steps": 4, "likelihood__method": "dopri5"}
        write_run(self.folder / "ot", records=[record({"ema": scores()}, **few)])
        text = self.write("ot")
        self.assertIn("samples by ab2 of 4 uniform steps. NLL of 297", text)
        self.assertIn("by dopri5 at rtol 0.001, atol 0.001, hutchinson", text)

    @parameterized.parameters(17, None)
    def test_runs_without_likelihoods(self, levels):
        """Of images and of points: there is no column for them."""
        sampled = {"fd_pixels": 0.5, "sample_nfe": 40.0}
        fields = {"likelihood__images": 0, "data__levels": levels, "data__entropy": 3.5}
        write_run(self.folder / "ot", records=[record({"ema": sampled}, **fields)])
        self.assertNotIn("NLL", self.write("ot"))
        (row,) = self.table("table1")
        self.assertEqual(float(row["fd_pixels"]), 0.5)

    def test_unfinished_runs_say_so(self):
        write_run(self.folder / "ot", records=[record({"ema": scores()}, step=40)])
        no_distance = {k: v for k, v in scores().items() if k != "fd_pixels"}
        write_run(self.folder / "vp", VP, [record({"ema": no_distance}, frechet=None)])
        text = self.write("ot", "vp")
        self.assertIn("ot is unfinished: step 40 of 100.", text)
        self.assertIn("| FM w/ Diffusion | **2.000 +- 0.100** | not evaluated |", text)

    def test_two_rows_of_one_method_and_two_kinds_of_weights(self):
        write_run(self.folder / "short")
        longer = changed(CONFIG, train__steps=900)
        results = {"ema": scores(1.8), "raw": scores(1.9)}
        write_run(self.folder / "long", longer, [record(results, step=900)])
        text = self.write("short", "long")
        for label in ("FM w/ OT (short)", "FM w/ OT (long)", "FM w/ OT (long) (raw weights)"):
            self.assertIn(f"| {label} |", text)

    def test_rows_that_are_given_names(self):
        """Seeds share a row and its name; runs without a name have that of their method."""
        names = {}
        for name, channels, seed in (("a", 8, 0), ("b", 8, 1), ("c", 16, 0)):
            network = {"name": "unet", "unet": {"channels": channels}}
            run = write_run(self.folder / name, CONFIG | {"network": network, "seed": seed})
            names[run] = f"channels = {channels}"
        write_run(self.folder / "other", VP)
        workdirs = [*names, self.folder / "other"]
        write_report(workdirs, self.report, names)
        rows = [row["method"] for row in self.table("table1")]
        self.assertEqual(rows, ["channels = 8", "channels = 16", "FM w/ Diffusion"])

    def test_losses_of_one_objective_are_drawn_on_the_same_axes(self):
        """Those of several have no common scale."""
        longer = changed(CONFIG, train__steps=900)
        for name, config in (("ot", CONFIG), ("long", longer), ("vp", VP)):
            run = write_run(self.folder / name, config)
            write_figures(run)
            (run / "figures" / "losses.csv").write_text("step,loss\n50,1.5\n100,-0.5\n")
        self.assertIn("(loss.png)", self.write("ot", "long"))
        losses = [float(row["loss"]) for row in self.table("loss")]
        self.assertEqual(losses, [1.5, -0.5, 1.5, -0.5])
        self.assertNotIn("(loss.png)", self.write("ot", "vp"))

    def test_fixed_steps_say_where_they_lie(self):
        solver = {"method": "heun", "rtol": 1e-5, "atol": 1e-5, "steps": 50, "grid": "edm"}
        write_run(self.folder / "ot", records=[record({"ema": scores()}, solver=solver)])
        text = self.write("ot")
        self.assertIn("; samples by heun of 50 edm steps. ", text)
        self.assertNotIn("NLL", text)  # by fixed steps, in a version that allowed it

    def test_points_have_nats_and_no_table_4(self):
        result = {"log_likelihood": -3.6, "log_likelihood_standard_error": 0.01, "sample_nfe": 30}
        write_run(self.folder / "ot", records=[record({"ema": result}, data=POINTS, frechet=None)])
        text = self.write("ot")
        self.assertIn("| FM w/ OT | 3.600 +- 0.010 | 30.0 |", text)
        self.assertIn("A perfect density has NLL 3.500", text)
        self.assertFalse((self.report / "table4.md").exists())

    def test_curves_of_all_methods_on_the_same_axes(self):
        for name, config in (("ot", CONFIG), ("vp", VP)):
            write_figures(write_run(self.folder / name, config))
        text = self.write("ot", "vp")
        rows = list(csv.DictReader((self.report / "figure7_left_midpoint.csv").open()))
        self.assertEqual(
            [row["method"] for row in rows], ["FM w/ OT"] * 2 + ["FM w/ Diffusion"] * 2
        )
        self.assertEqual([float(row["mean_squared_error"]) for row in rows[:2]], [0.01, 0.001])
        rows = list(csv.DictReader((self.report / "figure7_left_best.csv").open()))
        found = [(int(float(row["nfe"])), float(row["mean_squared_error"])) for row in rows[:2]]
        self.assertEqual(found, [(4, 0.01), (8, 0.001)])  # midpoint's, and not Euler's 0.1
        for name in ("figure5", "figure6", "figure7_right_euler", "figure10"):
            self.assertIn(f"({name}.png)", text)
            self.assertGreater(Image.open(self.report / f"{name}.png").width, 200)
        self.assertNotIn("figure7_left_rk4", text)  # no numbers: no picture
        self.assertNotIn("Without figures", text)

    def test_points_in_time_and_by_few_calls(self):
        result = {"log_likelihood": -3.6, "sample_nfe": 30}
        records = [record({"ema": result}, data=POINTS, frechet=None)]
        write_figures(write_run(self.folder / "ot", records=records), points=True)
        text = self.write("ot")
        self.assertIn("(figure4.png)", text)
        self.assertIn("(figure6.png)", text)
        self.assertNotIn("figure5", text)

    def write_super_resolution(self, name, results, config=CONFIG, **fields):
        more = {"condition": CONDITION, "baselines": BASELINES} | fields
        records = [record({"ema": results}) | more]
        return write_run(self.folder / name, config, records)

    def test_table_2(self):
        regression = changed(CONFIG, objective__name="regression")
        self.write_super_resolution("ot", super_resolved(0.5, 20.0))
        self.write_super_resolution("regression", super_resolved(0.9, 22.0, 1.0), regression)
        text = self.write("regression", "ot")
        for line in (
            "|  | fd_pixels | PSNR | consistency (RMSE) | NFE |",
            "| Reference | 0.100 | - | - | 0.0 |",
            "| Bicubic | 9.000 | 13.00 | 1.50 | 0.0 |",
            "| Regression | 0.900 | **22.00 +- 0.10** | **0.50** | 1.0 |",
            "| FM w/ OT | **0.500** | 20.00 +- 0.10 | **0.50** | 40.0 |",
        ):
            self.assertIn(line, text)
        self.assertIn("from 4 x 4 pixels (bicubic) of 500 images of digits (1), test split", text)
        self.assertFalse((self.report / "table1.md").exists())
        rows = self.table("table2")
        self.assertEqual([row["PSNR"] for row in rows], ["", "13.0", "22.0", "20.0"])
        self.assertIn(r"Bicubic & 9.000 & 13.00", (self.report / "table2.tex").read_text())

    def test_super_resolution_by_other_rules_is_refused(self):
        self.write_super_resolution("a", super_resolved())
        self.write_super_resolution(
            "b", super_resolved(), VP, condition=CONDITION | {"filter": "box"}
        )
        with self.assertRaisesRegex(UserError, "condition.filter = 'box'"):
            self.write("a", "b")

    def test_super_resolution_that_was_not_judged(self):
        self.write_super_resolution("a", {"bits_per_dim_k1": 1.0}, frechet=None)
        with self.assertRaisesRegex(UserError, "--runs: .*config.evaluate.extractor"):
            self.write("a")

    def test_super_resolution_of_all_methods_in_one_picture(self):
        regression = changed(CONFIG, objective__name="regression")
        for name, config, flow in (("ot", CONFIG, True), ("regression", regression, False)):
            run = self.write_super_resolution(name, super_resolved(), config)
            write_figures(run, super_resolution=True, flow=flow)
        with mock.patch.object(plots, "save_image_rows", wraps=plots.save_image_rows) as draw:
            text = self.write("regression", "ot")
        (_, rows, _), _ = draw.call_args_list[0]
        wanted = ["low resolution", "bicubic", "Regression", "FM w/ OT", "original"]
        self.assertEqual(list(rows), wanted)
        self.assertIn("(super_resolution.png)", text)
        self.assertIn("(figure6.png)", text)  # of the flow alone

    def test_figures_drawn_differently_are_refused(self):
        write_figures(write_run(self.folder / "ot"))
        write_figures(write_run(self.folder / "vp", VP), seeds=8)
        with self.assertRaisesRegex(UserError, "vp'; its figures were drawn with seeds = 8"):
            self.write("ot", "vp")

    def test_no_runs(self):
        with self.assertRaisesRegex(UserError, "--runs: got ''"):
            self.write()


if __name__ == "__main__":
    absltest.main()
