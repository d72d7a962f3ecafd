"""Runs whose samples start from the items of another dataset."""

import json
from pathlib import Path

import jax
import numpy as np
from absl.testing import absltest
from PIL import Image

import flowmatch_jax
from configs import digits_3_to_8_ot
from flowmatch_jax.experiment import build
from flowmatch_jax.pixels import centres
from flowmatch_jax.runtime.errors import UserError
from tests.end_to_end.runs import SMALL_NET, evaluations, metrics, run

FLAGS = (
    "--config=configs/digits_3_to_8_minibatch_ot.py",
    *SMALL_NET,
    "--config.train.steps=20",
    "--config.train.keep_every=20",
)


class SourceTest(absltest.TestCase):
    def test_from_threes_to_eights(self):
        folder = Path(self.create_tempdir().full_path)
        workdir = f"--workdir={folder / 'run'}"
        more = ("--config.train.validation_batches=1", "--config.source.noise=0.2")
        child = run(*FLAGS, *more, workdir)
        self.assertEqual(child.returncode, 0, child.stderr)
        self.assertIn("The density of digits, the source, is not known", child.stderr)
        first, *_, last = metrics(folder / "run")
        self.assertLess(last["loss"], first["loss"])
        self.assertIn("validation_loss_ema", first)
        (record,) = evaluations(folder / "run", 20)
        self.assertNotIn("bits_per_dim_k1", record["results"]["ema"])
        self.assertEqual(record["source"]["classes"], [3])
        facts = json.loads((folder / "run" / "data.json").read_text())
        self.assertEqual(
            facts["source"]["test"]["label_counts"][3], facts["source"]["test"]["items"]
        )
        with Image.open(folder / "run" / "samples" / "20_ema.png") as picture:
            self.assertEqual(picture.size, (2 * 34 - 2, 4 * 34 - 2))  # start and sample, four times

        self.check_model(folder / "run")
        child = run(*FLAGS, *more, workdir, "--mode=figures", "--config.figures.methods=('euler',)")
        self.assertEqual(child.returncode, 0, child.stderr)
        self.assertTrue((folder / "run" / "figures" / "sample_paths.png").exists())
        child = run(workdir, "--mode=generate_pairs")
        self.assertEqual(child.returncode, 2, child.stderr)
        self.assertIn("config.source.name: got 'digits'; pairs are of noise", child.stderr)
        child = run(*FLAGS, *more, workdir, "--config.source.classes=(4,)")
        self.assertEqual(child.returncode, 2, child.stderr)
        self.assertIn("error: config.source.classes: got [4]", child.stderr)

    def check_model(self, workdir):
        """Samples of a script and of --mode=generate start from the items of the test split."""
        model = flowmatch_jax.load(workdir, solver__method="euler", solver__steps=2)
        test = build(digits_3_to_8_ot.get_config()).source.test
        starts = np.asarray(centres(test.x, 17))
        drawn = np.asarray(model.noise(jax.random.key(0), 5))
        for each in drawn:
            self.assertLess(np.abs(starts - each).max(axis=(1, 2, 3)).min(), 1e-6)
        x = model.sample(jax.random.key(0), 3, x0=starts[[2, 0, 1]])
        output = workdir / "generated.npz"
        child = run(
            "--mode=generate",
            f"--workdir={workdir}",
            "--seeds=0-2",
            f"--output={output}",
            "--config.solver.method=euler",
            "--config.solver.steps=2",
        )
        self.assertEqual(child.returncode, 0, child.stderr)
        generated = np.load(output)["images"]
        np.testing.assert_array_equal(generated[[2, 0, 1]], np.round(x * (255 / 16)))
        for score in (model.log_prob, model.bits_per_dim):
            with self.assertRaisesRegex(UserError, "density of the data that samples start from"):
                score(x)


if __name__ == "__main__":
    absltest.main()
