import dataclasses

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax import parts, predictions
from flowmatch_jax.config.experiments import experiment_config
from flowmatch_jax.exchange.configs import SCHEDULES, UNET, with_network
from flowmatch_jax.networks.convert.kinds import KINDS, Converted
from flowmatch_jax.parts.network import make_clock
from tests.exchange.cases import DIGITS


def config_of(kind, schedule="linear", low_resolution=None):
    base = experiment_config("configs/digits_ot.py")
    converted = Converted(KINDS[kind], DIGITS, {})
    return with_network(base, converted, low_resolution, schedule)


class ConfigsTest(parameterized.TestCase):
    @parameterized.parameters(*KINDS)
    def test_the_network_and_the_rest_of_the_config(self, kind):
        base, config = experiment_config("configs/digits_ot.py"), config_of(kind)
        for name in UNET:
            self.assertEqual(config.network.unet[name], getattr(DIGITS, name))
        for section in ("data", "train", "optimizer", "evaluate", "solver"):
            self.assertEqual(config[section], base[section])

    def test_fields_of_the_network_that_it_leaves(self):
        """The others are of training alone, or follow from the data."""
        fields = {field.name for field in dataclasses.fields(DIGITS)} - {"parent", "name"}
        left = {"dropout", "dtype", "remat", "two_times"}
        of_data = {"out_channels", "num_classes", "condition_channels"}
        self.assertEqual(fields - left - of_data, set(UNET))

    @parameterized.parameters(*SCHEDULES)
    def test_a_diffusion_has_the_noise_levels_of_its_schedule(self, schedule):
        config = config_of("adm", schedule)
        path = parts.make_path(config.path)
        clock = make_clock(config, path)
        steps = predictions.STEP_INPUTS[f"{schedule}_steps"]()
        for t, step in ((0.0, 999), (path.t_end, 0)):
            squared = 1 / (1 + np.exp(-2 * steps[step]))
            alpha = float(path.mean(jnp.float32(t), jnp.ones((1, 1)))[0, 0])
            self.assertAlmostEqual(alpha**2, squared, delta=1e-6)
            self.assertAlmostEqual(float(clock(jnp.float32(t))), step, delta=0.3)
        predictions.validate(config.objective.predicts, path)

    def test_an_upsampler(self):
        condition = config_of("adm", low_resolution=4).condition
        self.assertEqual((condition.low_resolution, condition.enlarging), (4, "bilinear"))


if __name__ == "__main__":
    absltest.main()
