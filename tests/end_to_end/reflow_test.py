"""Reflow: pairs of a run, and the runs that are trained on them."""

import json
from pathlib import Path

from absl.testing import absltest

from tests.end_to_end.runs import TINY_POINTS, evaluations, lines_of, run

POINTS = ("--config=configs/checkerboard_ot.py", *TINY_POINTS)
REFLOW = "--config=configs/checkerboard_reflow.py"


class ReflowTest(absltest.TestCase):
    def test_from_a_run_to_the_reflow_of_its_pairs(self):
        folder = Path(self.create_tempdir().full_path)
        first, again = f"--workdir={folder / 'first'}", f"--workdir={folder / 'again'}"
        child = run(*POINTS, first)
        self.assertEqual(child.returncode, 0, child.stderr)
        pairs = (
            "--mode=generate_pairs",
            "--config.pairs.count=100",
            "--config.pairs.batch_size=32",
        )
        child = run(first, *pairs)
        self.assertEqual(child.returncode, 0, child.stderr)
        self.assertIn("100 pairs are in", child.stderr)
        given = f"--config.data.pairs.folder={folder / 'first' / 'pairs'}"
        flags = (REFLOW, *TINY_POINTS, again, given, "--config.train.validation_batches=1")
        child = run(*flags, "--config.data.pairs.drop_most_distant=0.1")
        self.assertEqual(child.returncode, 0, child.stderr)

        data = json.loads((folder / "again" / "data.json").read_text())
        self.assertEqual((data["name"], data["pairs"]["items"]), ("checkerboard", 86))  # 90 less 4
        records = [evaluations(folder / name, 20)[0] for name in ("first", "again")]
        self.assertEqual(*(record["data"] for record in records))  # the test set itself
        self.assertIn("validation_loss_ema", lines_of(folder / "again")[0])

        child = run(again, "--mode=sample")  # a trained model needs no pairs
        self.assertEqual(child.returncode, 0, child.stderr)
        child = run(*flags, "--config.train.steps=30")
        self.assertEqual(child.returncode, 2, child.stderr)
        self.assertIn("error: config.data.pairs: got 'pairs of checkerboard", child.stderr)


if __name__ == "__main__":
    absltest.main()
