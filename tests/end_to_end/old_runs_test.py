"""Runs that an earlier version of the package trained for three steps go on as they did there.

old_runs/<data>.tar.xz is such a workdir (commit 00d1de9); <data>_step6.npz has the parameters after
that version went on to step 6.
"""

import tarfile
from pathlib import Path

import jax
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.config.command_line import load_config
from flowmatch_jax.modes import open_run
from flowmatch_jax.training.loop import train
from flowmatch_jax.training.weights import load_weights

FOLDER = Path(__file__).parent / "old_runs"
SHARED = ("train.steps=6", "train.log_every=1", "train.checkpoint_every=3")
RUNS = {
    "checkerboard": (
        "configs/checkerboard_ot.py",
        "train.batch_size=16",
        "optimizer.warmup_steps=2",
        "network.mlp.width=8",
        "network.mlp.depth=1",
    ),
    "digits": (
        "configs/digits_vp.py",
        "train.batch_size=8",
        "optimizer.warmup_steps=0",
        "network.unet.channels=8",
        "network.unet.multipliers=(1,)",
        "network.unet.depth=1",
        "network.unet.attention_sides=()",
    ),
}


class OldRunsTest(parameterized.TestCase):
    @parameterized.parameters(*RUNS)
    def test_it_goes_on_to_the_same_parameters(self, data):
        """To the same bits on one machine; other processors round sums differently."""
        workdir = Path(self.create_tempdir().full_path)
        with tarfile.open(FOLDER / f"{data}.tar.xz") as archive:
            archive.extractall(workdir, filter="data")
        file, *fields = RUNS[data]
        config = load_config(file, [f"--config.{field}" for field in (*SHARED, *fields)])
        experiment = open_run(config, workdir)
        train(experiment, workdir, lambda params, step: None)
        ((step, weights),) = load_weights(experiment, workdir, ("raw",)).items()
        self.assertEqual(step, 6)
        expected = np.load(FOLDER / f"{data}_step6.npz")
        found = jax.tree_util.tree_leaves_with_path(weights["raw"])
        self.assertLen(found, len(expected))
        for path, array in found:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            np.testing.assert_allclose(array, expected[name], rtol=0, atol=2e-6, err_msg=name)


if __name__ == "__main__":
    absltest.main()
