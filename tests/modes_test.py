from pathlib import Path

import numpy as np
from absl.testing import absltest
from ml_collections import FrozenConfigDict

from configs import digits_sr4_8
from flowmatch_jax.modes import open_run
from flowmatch_jax.runtime.errors import UserError


class OpenRunTest(absltest.TestCase):
    def test_a_score_of_too_few_samples_is_refused_before_the_training(self):
        folder = Path(self.create_tempdir().full_path)
        images = np.random.RandomState(0).randint(0, 256, (6, 8, 8, 1), dtype=np.uint8)
        np.save(folder / "train.npy", images)
        np.save(folder / "test.npy", images[:3])
        config = digits_sr4_8.get_config()
        config.data.name = "arrays"
        config.data.arrays.train = str(folder / "train.npy")
        config.data.arrays.test = str(folder / "test.npy")
        config.train.batch_size = 2
        config.evaluate.scores = ("precision_recall",)
        said = "config.evaluate.scores: got 'precision_recall'; .* 4 samples .* there are 3"
        with self.assertRaisesRegex(UserError, said):
            open_run(FrozenConfigDict(config), folder / "run")
        self.assertFalse((folder / "run").exists())


if __name__ == "__main__":
    absltest.main()
