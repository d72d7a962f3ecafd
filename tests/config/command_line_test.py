from absl.testing import absltest, parameterized

from flowmatch_jax.config.command_line import load_config, split_overrides
from flowmatch_jax.runtime.errors import UserError

DIGITS = "configs/digits_ot.py"


class CommandLineTest(parameterized.TestCase):
    def test_overrides_apart_from_the_rest(self):
        given = ["--mode=train", "--config.train.steps=5", "--config", "x.py", "-config.seed", "3"]
        overrides, others = split_overrides([*given, "--config.solver.steps"])
        self.assertEqual(
            overrides, ["--config.train.steps=5", "-config.seed=3", "--config.solver.steps="]
        )
        self.assertEqual(others, ["--mode=train", "--config", "x.py"])

    def test_fields_are_overridden(self):
        overrides = ["--config.train.steps=5", "--config.evaluate.dequantisations=(1,20)"]
        config = load_config(DIGITS, overrides)
        self.assertEqual((config.train.steps, config.evaluate.dequantisations), (5, (1, 20)))
        self.assertEqual(load_config(DIGITS, []).train.steps, 1200)  # and are no one else's

    def test_the_last_of_a_field_counts(self):
        overrides = ["--config.evaluate.dequantisations=(1,2)", "--config.seed=1"]
        again = ["-config.evaluate.dequantisations=(5,)", "--config.seed=2"]
        config = load_config(DIGITS, overrides + again)
        self.assertEqual((config.evaluate.dequantisations, config.seed), ((5,), 2))

    @parameterized.parameters(
        (
            "configs/digits_gan.py",
            [],
            "digits_ot.py has no method 'gan'; there are: ot, vp",
        ),
        ("configs/__init__.py", [], "it has no function get_config"),
        ("configs/nope.py", [], "--config: got 'configs/nope.py'; there is no such file"),
        ("README.md", [], "--config: got 'README.md'; it is not a config file"),
        (
            DIGITS,
            ["--config.train.stepz=5"],
            "train.stepz: got '5'; .*did you mean steps",
        ),
        (
            DIGITS,
            ["--config.trian.steps=5"],
            "--config.trian.steps: .* there are: .*solver, sr3, train",
        ),
        (DIGITS, ["--config.seed.x=5"], "--config.seed.x: .* there are: none"),
        (DIGITS, ["--config.train.steps=many"], "--config.train.steps: got 'many'; .* int"),
    )
    def test_mistakes(self, path, overrides, said):
        with self.assertRaisesRegex(UserError, said):
            load_config(path, overrides)


if __name__ == "__main__":
    absltest.main()
