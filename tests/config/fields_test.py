from absl.testing import absltest

from flowmatch_jax.config.command_line import load_config
from flowmatch_jax.config.fields import show


class ShowTest(absltest.TestCase):
    def test_every_field_with_its_value_and_its_origin(self):
        overrides = ["--config.seed=3", "--config.path.options.power=2"]
        config = load_config("configs/digits_ot.py", overrides)
        overridden = {"config.seed", "config.path.options.power"}
        lines = show(config, "configs/digits_ot.py", overridden).splitlines()
        self.assertGreater(len(lines), 100)
        rows = {line.split()[0]: line for line in lines[1:]}
        self.assertRegex(rows["config.seed"], r"config.seed +3 +command line +Seed of")
        self.assertRegex(rows["config.train.steps"], r" 1200 +configs/digits_ot.py +\w")
        self.assertRegex(rows["config.optimizer.b1"], r" 0.9 {10}")
        self.assertRegex(rows["config.path.options"], r" {'power': 2} +command line +\w")


if __name__ == "__main__":
    absltest.main()
