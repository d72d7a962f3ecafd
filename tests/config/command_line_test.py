from pathlib import Path

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

    def test_options_of_one_s_own_parts_are_of_any_name(self):
        texts = {"a": "64", "b": "1e-3", "c": "True", "d": "(1,2)", "e": "relu", "f": "None"}
        overrides = [f"--config.network.options.{name}={text}" for name, text in texts.items()]
        options = load_config(DIGITS, [*overrides, "--config.network.options.a=65"]).network.options
        values = {"a": 65, "b": 1e-3, "c": True, "d": (1, 2), "e": "relu", "f": None}
        self.assertEqual(options.to_dict(), values)
        self.assertEqual(load_config(DIGITS, []).network.options.to_dict(), {})

    def test_options_of_a_config_s_file_have_its_types(self):
        folder = Path(self.create_tempdir().full_path)
        (folder / "mine_ot.py").write_text(
            "from flowmatch_jax.config.fields import default_config\n"
            "def get_config():\n    config = default_config()\n"
            "    config.path.options.power = 2.0\n    return config\n"
        )
        file, field = str(folder / "mine_ot.py"), "--config.path.options.power"
        self.assertIsInstance(load_config(file, [f"{field}=3"]).path.options.power, float)
        with self.assertRaisesRegex(UserError, f"{field}: got 'x'; it takes a value of type float"):
            load_config(file, [f"{field}=x"])

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
            "--config.trian.steps: .* there are: .*solver, source, sr3, train",
        ),
        (DIGITS, ["--config.seed.x=5"], "--config.seed.x: .* there are: none"),
        (DIGITS, ["--config.train.steps=many"], "--config.train.steps: got 'many'; .* int"),
        (
            DIGITS,
            ["--config.network.options=3"],
            "options: got '3'; it is a section: set one of its fields, --config.network.options.<",
        ),
    )
    def test_mistakes(self, path, overrides, said):
        with self.assertRaisesRegex(UserError, said):
            load_config(path, overrides)


if __name__ == "__main__":
    absltest.main()
