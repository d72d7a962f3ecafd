import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from configs import checkerboard_ot
from flowmatch_jax.config.experiments import experiment_config
from flowmatch_jax.experiment import build
from flowmatch_jax.training.diagnosis import TIMES, diagnose, write_diagnosis
from flowmatch_jax.training.optimizer import adam
from flowmatch_jax.training.state import init_state
from flowmatch_jax.training.step import experiment_gradient, make_train_step


def small(config):
    config.network.mlp.update(width=8, depth=2)
    return build(config)


def after_one_step(experiment, damage=lambda params: params):
    state = init_state(experiment.init_params, adam(1e-3), 0)
    return state.replace(params=damage(state.params), step=jnp.int32(1))


class DiagnosisTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.experiment = small(checkerboard_ot.get_config())
        cls.batch = {"x": np.random.RandomState(0).randn(16, 2).astype(np.float32)}

    def test_loss_by_t_of_a_network_that_is_zero(self):
        """E (x_1 - (1 - sigma_min) x_0)^2, the same at all times: 1 + the data's second moment."""
        batch = {"x": np.full((4096, 2), 2, np.float32)}
        found = diagnose(self.experiment, after_one_step(self.experiment), batch)
        self.assertLen(found["loss_by_t"], TIMES)
        # (2 - x_0)^2 has mean 5 and variance 4 * 4 + 2, so the mean of 8192 has 0.047.
        for point in found["loss_by_t"]:
            self.assertAlmostEqual(point["loss"], 5.0, delta=5 * 0.047)
        self.assertAlmostEqual(found["loss"], 5.0, delta=5 * 0.047)
        self.assertTrue(all(layer["not_finite"] == 0 for layer in found["gradients"]))
        norms = [layer["norm"] for layer in found["gradients"]]
        self.assertEqual(norms, sorted(norms, reverse=True))

    def test_layers_that_are_not_finite_come_first(self):
        def damage(params):
            leaves, tree = jax.tree.flatten(params)
            return jax.tree.unflatten(tree, [*leaves[:-1], leaves[-1].at[0].set(jnp.inf)])

        state = after_one_step(self.experiment, damage)
        workdir = Path(self.create_tempdir().full_path)
        with self.assertLogs("flowmatch_jax.training.diagnosis", "ERROR") as logs:
            write_diagnosis(self.experiment, state, self.batch, workdir)
        found = json.loads((workdir / "nonfinite.json").read_text())
        self.assertEqual(found["step"], 1)
        self.assertIn(found["loss"], ("nan", "inf"))
        counts = [layer["not_finite"] for layer in found["gradients"]]
        self.assertGreater(counts[0], 0)
        self.assertEqual(counts, sorted(counts, reverse=True))
        self.assertLen(found["gradients"], len(jax.tree.leaves(state.params)))
        self.assertIn(f"gradient of {found['gradients'][0]['layer']}", "\n".join(logs.output))

    def test_the_loss_is_that_of_the_step_also_if_the_objective_changes(self):
        """Alpha falls from 1 to 0.1 in the training, of which a quarter is done."""
        config = experiment_config("configs/checkerboard_alpha_flow.py")
        config.flow_map.update(anneal=(0.0, 1.0), power=0.0)
        experiment = small(config)
        state = after_one_step(experiment).replace(step=jnp.int32(config.train.steps // 4))
        noise = np.random.RandomState(1).randn(16, 2).astype(np.float32)
        batch = self.batch | {"x0": noise}  # the noise of minibatch OT comes with the batch
        found = diagnose(experiment, state.replace(step=state.step + 1), batch)
        gradient = experiment_gradient(experiment)
        step = make_train_step(state, experiment.mesh, gradient, adam(1e-3), 0.5)
        _, metrics = step(state, {name: x[None] for name, x in batch.items()})
        np.testing.assert_allclose(found["loss"], metrics["loss"][0], rtol=1e-5)

    def test_maximum_likelihood_has_no_times(self):
        config = experiment_config("configs/checkerboard_cnf.py")
        config.maximum_likelihood.update(method="ab2", steps=2)
        experiment = small(config)
        found = diagnose(experiment, after_one_step(experiment), self.batch)
        self.assertEqual(found["loss_by_t"], [])
        self.assertIsInstance(found["loss"], float)


if __name__ == "__main__":
    absltest.main()
