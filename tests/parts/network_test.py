"""The network and its inputs, as an experiment builds them."""

import jax
import jax.numpy as jnp
from absl.testing import absltest, parameterized

from flowmatch_jax.config.experiments import experiment_config
from flowmatch_jax.experiment import build
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.training.cost.estimate import model_flops

TINY = {
    "network.unet.channels": 8,
    "network.unet.multipliers": (1,),
    "network.unet.attention_sides": (),
    "evaluate.extractor": None,
}


class LevelOctavesTest(parameterized.TestCase):
    def experiment(self, name, **fields):
        config = experiment_config(f"configs/{name}.py")
        config.update_from_flattened_dict(TINY | fields)
        return build(config)

    @parameterized.parameters(("digits_ot", 1 + 4), ("digits_sr4_8", 1 + 2 + 4))
    def test_they_are_inputs_of_the_network_beside_the_condition(self, name, channels):
        experiment = self.experiment(name, **{"network.level_octaves": 2})
        params = jax.jit(experiment.init_params)(jax.random.key(0))
        self.assertEqual(params["conv_in"]["kernel"].shape[2], channels)
        # The network is 0 before training: its last layer becomes the identity of some channel.
        params["conv_out"]["kernel"] = params["conv_out"]["kernel"].at[1, 1, 0].set(1.0)
        batch = jax.tree.map(jnp.asarray, experiment.test_data.zeros(2))
        inputs = experiment.conditioning.inputs(batch)
        v = jax.jit(experiment.field(params, **inputs))
        x = jnp.full((2, 8, 8, 1), 0.3)
        moved = x.at[..., 0].add(1 / 17)  # by half of the distance of two levels
        changes = [float(jnp.abs(v(t, moved) - v(t, x)).max()) for t in (0.5, 0.99)]
        self.assertGreater(changes[1], changes[0])
        self.assertGreater(model_flops(experiment, 2), 0)

    @parameterized.parameters(
        ("checkerboard_ot", "inputs of the unet, and the network is mlp"),
        ("digits_sr4_8_sr3", "functions of x_t, which sr3 does not have"),
        ("digits_sr4_8_regression", "functions of x_t, which regression does not have"),
    )
    def test_networks_and_methods_without_them(self, name, message):
        config = experiment_config(f"configs/{name}.py")
        config.network.level_octaves = 1
        with self.assertRaisesRegex(UserError, f"config.network.level_octaves: got 1; .*{message}"):
            build(config)


if __name__ == "__main__":
    absltest.main()
