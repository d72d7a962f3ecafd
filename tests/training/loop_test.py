from pathlib import Path

from absl.testing import absltest

from flowmatch_jax.runtime.workdir import has_checkpoint, open_workdir
from flowmatch_jax.tracking.log import RunLog
from flowmatch_jax.training.loop import train
from tests.evaluation.experiments import points


class LoopTest(absltest.TestCase):
    def test_a_step_is_saved_before_its_samples_are_drawn(self):
        """So that an error in drawing loses no steps."""
        workdir = Path(self.create_tempdir().full_path)
        every = {f"train__{name}_every": 1 for name in ("log", "sample", "checkpoint")}
        sizes = {"train__batch_size": 8, "network__mlp__width": 8, "network__mlp__depth": 1}
        experiment = points(train__steps=2, optimizer__warmup_steps=0, **every, **sizes)

        def draw(params, step):
            raise RuntimeError("no picture")

        open_workdir(workdir)
        with (
            RunLog(workdir, experiment.config) as log,
            self.assertRaisesRegex(RuntimeError, "no picture"),
        ):
            train(experiment, workdir, draw, log)
        self.assertTrue(has_checkpoint(workdir))


if __name__ == "__main__":
    absltest.main()
