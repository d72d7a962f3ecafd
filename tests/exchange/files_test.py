"""Runs as files, by the commands."""

import json
from pathlib import Path

import jax
import numpy as np
from absl.testing import absltest, parameterized
from safetensors.numpy import load_file, save_file

import flowmatch_jax
from flowmatch_jax.config.experiments import experiment_config
from flowmatch_jax.networks.convert.adm import torch_tensors
from flowmatch_jax.networks.convert.own import named
from flowmatch_jax.networks.convert.sources import metadata_of
from tests.exchange.cases import DIGITS, run, torchcfm_file
from tests.runtime.records import change_config, on_more_devices


class FilesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)
        self.workdir, self.again = self.folder / "run", self.folder / "again"
        self.file = self.folder / "weights.safetensors"

    def convert(self, network=DIGITS):
        source, params = torchcfm_file(self.folder, network)
        flags = ("--from=torchcfm", "--config=configs/digits_ot.py", "--heads=2")
        self.assertEqual(run("convert", source, f"--to={self.workdir}", *flags), (0, []))
        return params

    @parameterized.parameters("ema", "raw")
    def test_a_round_trip_has_the_same_bits(self, weights):
        params = self.convert()
        exported = run("export", self.workdir, f"--to={self.file}", f"--weights={weights}")
        self.assertEqual(exported, (0, []))
        for name, array in named(params).items():
            np.testing.assert_array_equal(load_file(self.file)[name], array, strict=True)
        self.assertEqual(run("convert", self.file, f"--to={self.again}"), (0, []))
        first, second = (flowmatch_jax.load(w, weights) for w in (self.workdir, self.again))
        jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
        for record in ("config.json", "data.json"):
            held = [json.loads((w / record).read_text()) for w in (self.workdir, self.again)]
            self.assertEqual(*held)

    def test_of_a_run_on_more_devices(self):
        self.convert()
        fsdp = on_more_devices(self.workdir)
        self.assertEqual(run("export", self.workdir, f"--to={self.file}"), (0, []))
        self.assertEqual(run("convert", self.file, f"--to={self.again}"), (0, []))
        self.assertEqual(experiment_config(f"{self.again}/config.json").mesh.fsdp, fsdp)

    def test_data_that_the_run_or_the_file_does_not_record(self):
        """They are opened."""
        self.convert()
        recorded = self.workdir / "data.json"
        facts = json.loads(recorded.read_text())
        recorded.unlink()
        self.assertEqual(run("export", self.workdir, f"--to={self.file}"), (0, []))
        metadata = metadata_of(self.file)
        held = json.loads(metadata["data"])
        self.assertEqual(held["train"] | {"test": held["test"]}, facts)
        save_file(load_file(self.file), self.file, metadata | {"data": "null"})
        self.assertEqual(run("convert", self.file, f"--to={self.again}"), (0, []))
        self.assertEqual(json.loads((self.again / "data.json").read_text()), facts)

    def test_torchcfm(self):
        params = self.convert()
        exported = run("export", self.workdir, f"--to={self.file}", "--as=torchcfm")
        self.assertEqual(exported, (0, []))
        expected = torch_tensors(DIGITS, 8, params)
        self.assertEqual(load_file(self.file).keys(), expected.keys())
        for name, array in load_file(self.file).items():
            np.testing.assert_array_equal(array, expected[name], strict=True)
        arguments = json.loads(metadata_of(self.file)["arguments"])
        self.assertEqual(arguments["attention_resolutions"], [2])

    def test_torchcfm_has_no_such_network(self):
        self.convert()
        config = self.workdir / "config.json"
        recorded = config.read_text()
        for fields, message in (
            ({"network.unet.time_scale": 1000.0}, "config.network.unet.time_scale: got 1000.0"),
            ({"network.unet.channels": 48}, "norms have 32 groups, and a level has 48 channels"),
            ({"network.unet.conventions": "ddpm"}, "config.network.unet.conventions: got 'ddpm'"),
            ({"path.name": "ve"}, "config.path.name: got 've'; on this path"),
            ({"objective.predicts": "data"}, "config.objective.predicts: got 'data at t'"),
            ({"condition.low_resolution": 4}, "config.network: got 'unet'; torchcfm has U-Nets"),
        ):
            config.write_text(recorded)
            change_config(self.workdir, fields)
            code, errors = run("export", self.workdir, f"--to={self.file}", "--as=torchcfm")
            self.assertEqual((code, len(errors)), (2, 1))
            self.assertIn(message, errors[0])

    def test_errors_are_one_line(self):
        self.convert()
        to = f"--to={self.file}"
        for arguments, message in (
            ((self.folder / "none", to), "there is no run"),
            ((self.workdir, f"--to={self.folder / 'weights.pt'}"), "ends in .safetensors"),
            ((self.workdir, f"--to={self.folder / 'no' / 'w.safetensors'}"), "there is no folder"),
            ((self.workdir, to, "--weights=mean"), "--weights: got 'mean'"),
            ((self.workdir, to, "--as=jax"), "--as: got 'jax'"),
            ((self.workdir, to, "--step=7"), "has checkpoints of the steps 0"),
        ):
            code, errors = run("export", *arguments)
            self.assertEqual((code, len(errors)), (2, 1), errors)
            self.assertIn(message, errors[0])
        self.assertFalse(self.file.exists())

    def test_exported_files_that_do_not_fit(self):
        self.convert()
        run("export", self.workdir, f"--to={self.file}")
        tensors, metadata = load_file(self.file), metadata_of(self.file)
        name = next(iter(tensors))
        for changed, of_file, message in (
            ({name: tensors[name].astype(np.float16)}, metadata, f"{name} has"),
            ({"more": np.zeros(1)}, metadata, "more has"),
            ({}, metadata | {"config": "{"}, "a file of python -m flowmatch_jax.networks.export"),
        ):
            save_file(tensors | changed, self.file, of_file)
            code, errors = run("convert", self.file, f"--to={self.again}")
            self.assertEqual((code, len(errors)), (2, 1))
            self.assertIn(message, errors[0])


if __name__ == "__main__":
    absltest.main()
