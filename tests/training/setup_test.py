import jax
import numpy as np
from absl.testing import absltest

from flowmatch_jax.runtime.mesh import put_batches
from flowmatch_jax.training.setup import Run
from tests.evaluation.experiments import points


class PairingTest(absltest.TestCase):
    """Runs whose noise is paired with the data on the host."""

    def test_a_run_that_goes_on_has_the_same_steps(self):
        experiment = points(objective__coupling="minibatch_ot", train__batch_size=32)
        run = Run.of(experiment)
        whole = self.train(run, run.init(), 0, 6)
        half = self.train(run, run.init(), 0, 3)
        resumed = self.train(run, half, 3, 6)
        jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
        self.assertGreater(run.flops, 0)

    def train(self, run, state, start, end):
        batches = run.batches(start)
        for _ in range(start, end):
            state, _ = run.train_step(state, put_batches([next(batches)], run.experiment.mesh))
        return state

    def test_after_a_roll_back_there_is_other_noise(self):
        run = Run.of(points(objective__coupling="minibatch_ot", train__batch_size=32))
        first, other = (next(run.batches(0, rollbacks))["x0"] for rollbacks in (0, 1))
        self.assertEmpty(np.intersect1d(first, other))


if __name__ == "__main__":
    absltest.main()
