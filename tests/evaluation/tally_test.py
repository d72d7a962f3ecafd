from pathlib import Path

import numpy as np
from absl.testing import absltest

from flowmatch_jax.evaluation.tally import Tally
from flowmatch_jax.metrics.frechet import Moments


class TallyTest(absltest.TestCase):
    def test_what_other_settings_drew_is_not_gone_on_with(self):
        path = Path(self.create_tempdir().full_path) / "partial.npz"
        tally = Tally(Moments.empty(3).add(np.eye(3)), drawn=3, nfe=[2.0])
        tally.save(path, "a")
        self.assertIsNone(Tally.load(path, "b"))
        loaded = Tally.load(path, "a")
        np.testing.assert_array_equal(loaded.moments.cov, tally.moments.cov)
        self.assertEqual((loaded.drawn, loaded.nfe, loaded.features), (3, [2.0], []))
        self.assertIsNone(Tally.load(path.with_name("absent"), "a"))


if __name__ == "__main__":
    absltest.main()
