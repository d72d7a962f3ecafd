import contextlib
from pathlib import Path

from absl.testing import absltest

from flowmatch_jax.config.experiments import experiment_config, find


class ExperimentsTest(absltest.TestCase):
    def test_a_method_of_a_dataset_has_no_file_of_its_own(self):
        base, vp = (experiment_config(f"configs/digits_{method}.py") for method in ("ot", "vp"))
        self.assertEqual((base.path.name, vp.path.name), ("ot", "vp"))
        self.assertEqual(experiment_config("configs/digits_cnf.py").train.steps, 60)
        regression = experiment_config("configs/imagenet_sr64_256_regression.py")
        self.assertEqual(regression.optimizer.learning_rate, 1e-5)

    def test_an_experiment_outside_of_configs(self):
        folder = Path(self.create_tempdir().full_path)
        (folder / "mine_ot.py").write_text(
            "from flowmatch_jax.config.fields import default_config\n"
            "def get_config():\n    config = default_config()\n    config.seed = 7\n"
            "    return config\n"
            "def slow(config):\n    config.train.steps = 1\n    return config\n"
            "METHODS = {'slow': slow}\n"
        )
        self.assertEqual(experiment_config(f"{folder}/mine_ot.py").seed, 7)
        self.assertEqual(experiment_config(f"{folder}/mine_ddpm.py").objective.name, "ddpm")
        self.assertEqual(experiment_config(f"{folder}/mine_slow.py").train.steps, 1)

    def test_the_project_s_own_files_are_found_from_every_folder(self):
        elsewhere = self.create_tempdir().full_path
        here = experiment_config("configs/digits_vp.py").to_dict()
        with contextlib.chdir(elsewhere):
            self.assertEqual(experiment_config("configs/digits_vp.py").to_dict(), here)
            self.assertIsNone(find(Path("other/digits_ot.py")))


if __name__ == "__main__":
    absltest.main()
