"""Runs whose samples are given something, from training to what a user takes from them."""

import shutil
from pathlib import Path

import numpy as np
from absl.testing import absltest
from PIL import Image

from tests.end_to_end.runs import SMALL_NET, evaluations, run

STEPS = ("--config.train.steps=20", "--config.train.keep_every=20")


class ConditionalTest(absltest.TestCase):
    def test_classes_and_guidance(self):
        workdir = Path(self.create_tempdir().full_path)
        flags = ("--config=configs/digits_class.py", f"--workdir={workdir}", *SMALL_NET, *STEPS)
        child = run(*flags, "--config.evaluate.samples=20")
        self.assertEqual(child.returncode, 0, child.stderr)
        (record,) = evaluations(workdir, 20)
        self.assertEqual(record["guidance"]["scale"], 1.0)
        # Ten rows of two digits, 32 pixels each and 2 between.
        self.assertEqual(Image.open(workdir / "samples" / "20_ema.png").size, (66, 338))

        guided = ("--config.guidance.scale=3", "--config.evaluate.classes=(8,1)")
        child = run(*flags, "--mode=sample", *guided)
        self.assertEqual(child.returncode, 0, child.stderr)
        kept = np.load(workdir / "samples" / "20_ema_guidance3_nfe4.npz")  # two steps
        np.testing.assert_array_equal(kept["label"], [8, 8, 1, 1])

        child = run(*flags, "--mode=evaluate", "--config.guidance.scale=3")
        self.assertEqual(child.returncode, 0, child.stderr)
        self.assertIn("likelihoods ignore it", child.stderr)
        plain, other = evaluations(workdir, 20)
        self.assertEqual(other["guidance"]["scale"], 3.0)
        values = [record["results"]["ema"] for record in (plain, other)]
        self.assertEqual([v["sample_nfe"] for v in values], [2, 4])
        self.assertEqual(*(v["bits_per_dim_k1"] for v in values))

    def test_upsample_a_users_pictures(self):
        folder = Path(self.create_tempdir().full_path)
        pictures, workdir = folder / "pictures", folder / "run"
        flags = ("--config=configs/digits_sr4_8.py", f"--workdir={workdir}", *SMALL_NET, *STEPS)
        child = run(*flags)
        self.assertEqual(child.returncode, 0, child.stderr)
        pictures.mkdir()
        for width in (4, 9):
            Image.new("RGB", (width, 6), "teal").save(pictures / f"{width}.png")
        (pictures / "none.jpg").write_text("no picture")
        upsample = (*flags, "--mode=upsample", f"--input={pictures}")
        child = run(*upsample, f"--output={folder / 'large'}")
        self.assertEqual(child.returncode, 1, child.stderr)
        self.assertIn("none.jpg cannot be read", child.stderr)
        self.assertIn("error: 1 of 3 pictures could not be read", child.stderr)
        sizes = {path.name: Image.open(path).size for path in (folder / "large").iterdir()}
        self.assertEqual(sizes, {"4.png": (8, 12), "9.png": (18, 12)})

        (pictures / "none.jpg").unlink()
        shutil.rmtree(folder / "large")
        child = run(*upsample, f"--output={folder / 'large'}")
        self.assertEqual(child.returncode, 0, child.stderr)
        child = run(*upsample, f"--output={pictures}")
        self.assertEqual(child.returncode, 2, child.stderr)
        self.assertIn("--output: got", child.stderr)


if __name__ == "__main__":
    absltest.main()
