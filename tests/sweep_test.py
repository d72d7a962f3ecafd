import csv
from pathlib import Path
from unittest import mock

from absl.testing import absltest, parameterized

from flowmatch_jax import modes, sweep
from flowmatch_jax.config.command_line import load_config
from flowmatch_jax.config.identity import record
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.workdir import write_config
from tests.end_to_end.runs import TINY_POINTS, evaluations, run

POINTS = "configs/checkerboard_ot.py"
RATE = "config.optimizer.learning_rate"


def made(*swept, file=POINTS):
    return sweep.combinations(file, [], sweep.parse(swept))


class CombinationsTest(parameterized.TestCase):
    def test_values_are_separated_by_commas_outside_of_tuples(self):
        found = sweep.parse([f"{RATE}=1e-4,3e-4", "config.network.unet.multipliers=(1,),(1,2, 2)"])
        expected = {RATE: ["1e-4", "3e-4"], "config.network.unet.multipliers": ["(1,)", "(1,2, 2)"]}
        self.assertEqual(found, expected)

    def test_a_grid_of_values(self):
        """The last field changes fastest; folders and rows name the values, not their texts."""
        runs = made(f"{RATE}=1e-4,0.003", "config.network.mlp.width=8,16")
        pairs = [(r.config.optimizer.learning_rate, r.config.network.mlp.width) for r in runs]
        self.assertEqual(pairs, [(1e-4, 8), (1e-4, 16), (0.003, 8), (0.003, 16)])
        self.assertEqual(runs[0].folder, "learning_rate=0.0001_width=8")
        self.assertEqual(runs[3].row, "learning_rate = 0.003, width = 16")

    def test_tuples_and_unset_values(self):
        runs = made("config.network.unet.multipliers=(1,),(1,2)", file="configs/digits_ot.py")
        self.assertEqual([r.config.network.unet.multipliers for r in runs], [(1,), (1, 2)])
        folders = [run.folder for run in runs]
        self.assertEqual(folders, ["multipliers=1", "multipliers=1_2"])
        self.assertEqual(runs[1].row, "multipliers = (1, 2)")
        runs = made("config.optimizer.clip_norm=None,1.0")
        self.assertEqual([r.config.optimizer.clip_norm for r in runs], [None, 1.0])

    def test_fields_of_one_name_are_named_in_full(self):
        (one,) = made("config.path.name=vp", "config.objective.name=ddpm")
        self.assertEqual(one.row, "path.name = vp, objective.name = ddpm")

    def test_seeds_share_a_row(self):
        runs = made(f"{RATE}=1e-4,3e-4", "config.seed=0,1")
        self.assertLen({run.row for run in runs}, 2)
        self.assertLen({run.folder for run in runs}, 4)

    @parameterized.parameters(
        ("optimizer.learning_rate=1", "it is written --sweep=config.section.field=value,value"),
        (f"{RATE}=", "it is written"),
        (f"{RATE}=1e-4,,1e-3", "it is written"),
        (f"{RATE}=(1e-4", "it is written"),
        (f"{RATE}=1e-4,0.0001", "another combination has the same values"),
        (f"{RATE}=1e-4,fast", "--config.optimizer.learning_rate: got 'fast'; it takes a value of"),
        ("config.optimizer.rate=1,2", "--config.optimizer.rate: got '1'; no such field"),
        ("config.solver.rtol=1e-3,1e-5", "this does not change the model"),
        ("config.train.log_every=1,2", "this does not change the model"),
    )
    def test_mistakes(self, swept, said):
        with self.assertRaisesRegex(UserError, said):
            made(swept)

    def test_a_field_is_given_once(self):
        with self.assertRaisesRegex(UserError, f"give all values of {RATE} at once, with commas"):
            sweep.parse([f"{RATE}=1", f"{RATE}=2"])


class CheckTest(absltest.TestCase):
    """Nothing is trained before every combination is checked."""

    def check(self, said, *swept, overrides=(), file=POINTS):
        folder = Path(self.create_tempdir().full_path)
        with (
            mock.patch.object(modes, "train", side_effect=AssertionError("it trains")),
            self.assertRaisesRegex(UserError, said),
        ):
            sweep.sweep(file, list(overrides), swept, folder)
        self.assertEmpty(list(folder.iterdir()))

    def test_values_that_cannot_be_trained(self):
        self.check(r"config.optimizer.ema_decay: got 2\.0", "config.optimizer.ema_decay=0.9,2.0")
        said = "config.objective.name: got 'scoreflow'; this path is no diffusion"
        self.check(said, "config.objective.name=flow_matching,scoreflow")

    def test_values_whose_scores_cannot_share_a_table(self):
        said = "--sweep: got \"data.name = 'spirals'\"; runs that differ in it cannot share"
        self.check(said, "config.data.name=checkerboard,spirals")
        swept = "config.condition.labels=True,False"
        said = "--sweep: got 'condition.labels = None'; runs that differ"
        self.check(said, swept, file="configs/digits_ot.py")

    def test_a_report_needs_evaluations(self):
        off = "--config.evaluate.after_training=False"
        said = "config.evaluate.after_training: got False; the report needs the evaluations"
        self.check(said, f"{RATE}=1e-4", overrides=[off])

    def test_a_folder_with_another_run(self):
        """Told as of a single run, before any of them is trained."""
        folder = Path(self.create_tempdir().full_path)
        other = folder / "learning_rate=0.001"
        (other / "checkpoints" / "1").mkdir(parents=True)
        write_config(other, record(load_config(POINTS, ["--config.seed=5"])))
        with (
            mock.patch.object(modes, "train", side_effect=AssertionError("it trains")),
            self.assertRaisesRegex(UserError, "config.seed: got 0; the run in .* has 5"),
        ):
            sweep.sweep(POINTS, [], [f"{RATE}=1e-2,1e-3"], folder)
        self.assertEqual(list(folder.iterdir()), [other])


class SweepTest(absltest.TestCase):
    def test_from_nothing_to_a_report_and_on(self):
        """A value that is added later is trained; what is done stays as it is."""
        folder = Path(self.create_tempdir().full_path)
        flags = (
            f"--config={POINTS}",
            *TINY_POINTS,
            "--config.train.validation_batches=1",
            f"--workdir={folder}",
        )
        child = run(*flags, f"--sweep={RATE}=1e-3")
        self.assertEqual(child.returncode, 0, child.stderr)
        done = folder / "learning_rate=0.001"
        before = (done / "metrics.jsonl").read_bytes()
        child = run(*flags, f"--sweep={RATE}=1e-3,1e-2")
        self.assertEqual(child.returncode, 0, child.stderr)
        self.assertIn(f"{done} is done already.", child.stderr)
        self.assertEqual((done / "metrics.jsonl").read_bytes(), before)
        rows = list(csv.DictReader((folder / "report" / "table1.csv").open()))
        names = ["learning_rate = 0.001", "learning_rate = 0.01"]
        self.assertEqual([row["method"] for row in rows], names)
        self.assertNotEqual(rows[0]["NLL (nats)"], rows[1]["NLL (nats)"])
        for row, rate in zip(rows, ("0.001", "0.01"), strict=True):
            (record,) = evaluations(folder / f"learning_rate={rate}", 20)
            score = -record["results"]["ema"]["log_likelihood"]
            self.assertEqual(float(row["NLL (nats)"]), score)
        losses = list(csv.DictReader((folder / "report" / "validation_loss_ema.csv").open()))
        steps = [(row["method"], float(row["step"])) for row in losses]
        self.assertEqual(steps, [(name, step) for name in names for step in (5, 10, 15, 20)])


if __name__ == "__main__":
    absltest.main()
