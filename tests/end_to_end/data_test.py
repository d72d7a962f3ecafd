"""Published archives and folders of pictures, prepared and trained on as a user does."""

import json
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.config.experiments import experiment_config
from flowmatch_jax.data.pipeline import train_batches
from flowmatch_jax.data.prepare import prepare
from flowmatch_jax.experiment import build
from flowmatch_jax.runtime.workdir import open_workdir
from flowmatch_jax.tracking.log import RunLog
from flowmatch_jax.training.loop import train
from flowmatch_jax.training.step import experiment_gradient
from tests.data.prepare import archive_cases
from tests.end_to_end.runs import (
    SMALL,
    SMALL_NET,
    UNSCORED,
    bits,
    metrics,
    run,
    run_process,
    saved_state,
)

SETS = {
    "fashion_mnist": "fashion_mnist_ot",
    "cifar10": "cifar10_vp",
    "imagenet32/antialiased": "imagenet32_ddpm",
    "imagenet64/antialiased": "imagenet64_ot",
    "imagenet32/old": "imagenet32_score",
    "imagenet64/old": "imagenet64_scoreflow",
    "imagenet128": "imagenet128_ot",
}
TINY_UNET = {
    "network.dtype": "float32",  # CPUs are slow in bfloat16
    "network.unet.channels": 8,
    "network.unet.multipliers": (1,),
    "network.unet.depth": 1,
    "network.unet.attention_sides": (),
    "network.unet.heads": 1,
    "network.unet.head_channels": None,
    "optimizer.warmup_steps": 0,
    "train.steps": 2,
    "train.batch_size": 2,
    "train.log_every": 1,
}


class ArchivesTest(parameterized.TestCase):
    def prepared(self, name, config_name, network="unet"):
        """The experiment on a small version of the set, prepared from its archives."""
        archives = Path(self.create_tempdir("archives").full_path)
        data_dir = Path(self.create_tempdir("data").full_path)
        prepare.prepare(archive_cases.make(name, archives, (30, 2)), data_dir, archives)
        shutil.rmtree(archives)
        config = experiment_config(f"configs/{config_name}.py")
        config.update_from_flattened_dict(TINY_UNET)
        config.network.name = network
        config.data.data_dir = str(data_dir)
        config.data.name = name.partition("/")[0]
        config.data.version = name.partition("/")[2] or None
        experiment = build(config)
        self.assertEqual((len(experiment.train_data), len(experiment.test_data)), (30, 2))
        return experiment

    @parameterized.parameters(*SETS.items())
    def test_from_the_archives_to_a_gradient(self, name, config_name):
        """The gradient is traced, not compiled: shapes and settings fit."""
        experiment = self.prepared(name, config_name)
        batch = next(train_batches(experiment.train_data, 2, seed=0))
        params = jax.eval_shape(experiment.init_params, jax.random.key(0))
        gradient = experiment_gradient(experiment)
        got, metrics = jax.eval_shape(gradient, params, batch, jax.random.key(0))
        self.assertEqual(got, params)
        self.assertEqual(metrics["loss"].shape, ())

    @parameterized.parameters("fashion_mnist", "imagenet32/old")
    def test_from_the_archives_to_trained_steps(self, name):
        workdir = Path(self.create_tempdir("run").full_path)
        experiment = self.prepared(name, SETS[name], SMALL)
        open_workdir(workdir)
        with RunLog(workdir, experiment.config) as log:
            train(experiment, workdir, lambda params, step: None, log)
        self.assertTrue(all(np.isfinite(line["loss"]) for line in metrics(workdir)))
        self.assertLen(metrics(workdir), 2)


class FolderTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        pictures = cls.folder / "pictures"
        pictures.mkdir()
        for i in range(60):
            picture = archive_cases.picture(i, 12 + i % 5, 14, "PNG", "RGBA" if i % 2 else "L")
            (pictures / f"{i}.png").write_bytes(picture)
        cls.flags = (
            "--config=configs/folder_ot.py",
            f"--config.data.data_dir={cls.folder / 'data'}",
            f"--config.data.folder.path={pictures}",
            "--config.data.size=8",
            *SMALL_NET,
            "--config.evaluate.extractor=pixels",
            "--config.train.batch_size=8",
            "--config.train.checkpoint_every=6",
            "--config.train.keep_every=6",
        )

    def run_to(self, steps, name, *flags, run=run):
        workdir = f"--workdir={self.folder / name}"
        result = run(*self.flags, f"--config.train.steps={steps}", workdir, *flags)
        self.assertEqual(result.returncode, 0, result.stderr)
        return saved_state(self.folder / name)

    def test_the_way_images_are_kept_does_not_change_the_training(self):
        """Mapped, read by two processes and stopped half-way, or on the device: the same bits."""
        _, wanted = self.run_to(12, "memory")
        mapped = (UNSCORED, "--config.data.storage=records")
        self.run_to(6, "records", *mapped, "--config.data.workers=2", run=run_process)
        _, resumed = self.run_to(12, "records", *mapped)  # by threads of its own
        _, device = self.run_to(12, "device", UNSCORED, "--config.data.storage=device")
        for other in (resumed, device):
            jax.tree.map(np.testing.assert_array_equal, bits(other), bits(wanted))
        (record,) = json.loads((self.folder / "memory/evaluation/12.json").read_text())[
            "evaluations"
        ]
        self.assertEqual(record["data"]["name"], "pictures")
        self.assertGreater(record["results"]["ema"]["fd_pixels"], 0)


class MistakesTest(parameterized.TestCase):
    @parameterized.parameters(
        (
            ("--config=configs/cifar10_ot.py", "--config.data.data_dir=/nowhere"),
            "config.data.name: got 'cifar10'; not prepared; run: "
            "python -m flowmatch_jax.data.prepare cifar10 --data_dir=/nowhere",
        ),
        (("--config=configs/folder_ot.py",), "config.data.folder.path: got None; name the folder"),
        (
            ("--config=configs/imagenet64_ot.py", "--config.data.version=new"),
            "config.data.version: got 'new'; it may be one of: antialiased, old",
        ),
    )
    def test_told_at_once_in_one_line(self, flags, message):
        result = run(*flags, f"--workdir={self.create_tempdir().full_path}/run")
        self.assertEqual((result.returncode, result.stderr.count("\n")), (2, 1), result.stderr)
        self.assertIn(message, result.stderr)


if __name__ == "__main__":
    absltest.main()
