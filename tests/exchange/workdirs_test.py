"""Runs of converted weights, by the command."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import flowmatch_jax
from configs import digits_ot
from flowmatch_jax import paths, predictions
from flowmatch_jax.config.experiments import experiment_config
from flowmatch_jax.runtime.mesh import with_shardings
from flowmatch_jax.training.checkpoints import Checkpoints
from flowmatch_jax.training.setup import check_training
from flowmatch_jax.training.state import init_state
from tests.exchange.cases import DIGITS, run, torchcfm_file
from tests.networks.convert import peers
from tests.networks.convert.kinds_test import state_of
from tests.networks.convert.torch_files import Call, Global, as_zip, saved

OF_DIGITS = ("--from=torchcfm", "--config=configs/digits_ot.py", "--heads=2")


class WorkdirsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)
        self.workdir = self.folder / "run"

    def test_a_run_like_any_other(self):
        file, params = torchcfm_file(self.folder)
        code, errors = run("convert", file, f"--to={self.workdir}", *OF_DIGITS)
        self.assertEqual((code, errors), (0, []))
        for weights in ("ema", "raw"):
            model = flowmatch_jax.load(self.workdir, weights)
            self.assertEqual(model.step, 0)
            jax.tree.map(np.testing.assert_array_equal, model.params, params)
        self.assertEqual(model.experiment.network, DIGITS)
        self.assertEqual(model.experiment.train_data.facts()["items"], 1500)
        config = experiment_config(str(self.workdir / "config.json"))
        self.assertEqual(config.evaluate, digits_ot.get_config().evaluate)

    def test_training_goes_on_from_it(self):
        file, params = torchcfm_file(self.folder)
        run("convert", file, f"--to={self.workdir}", *OF_DIGITS)
        experiment = flowmatch_jax.load(self.workdir).experiment
        _, optimizer = check_training(experiment)
        init = lambda: init_state(experiment.init_params, optimizer, experiment.config.seed)  # noqa: E731
        layout = with_shardings(jax.eval_shape(init), experiment.mesh)
        with Checkpoints(self.workdir) as checkpoints:
            state = checkpoints.restore_newest(layout)
        jax.tree.map(np.testing.assert_array_equal, state.params, params)
        for moment in jax.tree.leaves(state.opt_state):
            np.testing.assert_array_equal(moment, 0)
        self.assertEqual(int(state.step), 0)
        self.assertEqual(state.key, jax.random.split(jax.random.key(experiment.config.seed))[1])

    def test_data_that_are_not_here(self):
        """Of which the shape is known; any data of that shape are taken for them."""
        network = DIGITS.clone(out_channels=3, attention_sides=(16,))
        file, _ = torchcfm_file(self.folder, network, side=32)
        flags = ("--from=torchcfm", "--config=configs/cifar10_ot.py", "--size=32", "--heads=2")
        code, errors = run("convert", file, f"--to={self.workdir}", *flags)
        self.assertEqual((code, errors), (0, []))
        model = flowmatch_jax.load(self.workdir)
        self.assertEqual((model.shape, model.levels), ((32, 32, 3), 256))
        self.assertEqual(model.config.network.unet.attention_sides, (16,))

    def test_the_field_of_a_diffusion(self):
        """At the noise level of a step it follows from the noise that ADM's own code predicts."""
        file = self.folder / "weights.pt"
        file.write_bytes(saved(state_of("adm")))
        flags = ("--from=adm", "--config=configs/cifar10_ot.py", "--size=8", "--heads=4")
        self.assertEqual(run("convert", file, f"--to={self.workdir}", *flags), (0, []))
        model = flowmatch_jax.load(self.workdir)
        case, (_, noise, _) = peers.CASES["adm"], peers.recorded()["adm"]
        x, _ = peers.inputs(case)
        path = model.experiment.path
        levels = predictions.linear_steps()[case.times.astype(int)]
        t = paths.time_at_log_snr(path, jnp.asarray(levels, jnp.float32))
        expected = predictions.convert(path, t, x, noise, "noise", "velocity")
        field = jax.jit(lambda params, t, x: model.experiment.field(params)(t, x))
        for ours, theirs in zip(field(model.params, t, x), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max())

    def test_pickles_run_nothing(self):
        ran = self.folder / "ran"
        file = self.folder / "weights.pt"
        call = Call(Global("os", "system"), f"touch {ran}")
        file.write_bytes(as_zip({"weight": call}, {}))
        code, errors = run("convert", file, f"--to={self.workdir}", *OF_DIGITS)
        self.assertEqual((code, len(errors)), (2, 1))
        self.assertIn("os.system is not allowed", errors[0])
        self.assertFalse(ran.exists())
        self.assertFalse(self.workdir.exists())

    def test_errors_are_one_line(self):
        whole, _ = torchcfm_file(self.folder)
        torn = self.folder / "torn.pt"
        torn.write_bytes(whole.read_bytes()[:-100])
        other = self.folder / "other.pt"
        other.write_bytes(saved({"weight": np.zeros((2, 2), np.float32)}))
        used = self.folder / "used"
        used.mkdir()
        (used / "config.json").touch()
        to = f"--to={self.workdir}"
        config = "--config=configs/digits_ot.py"
        for arguments, message in (
            ((torn, to, *OF_DIGITS), "it must be a whole file of torch.save"),
            ((other, to, *OF_DIGITS), "time_embed.0.weight is missing"),
            ((self.folder / "none.pt", to, *OF_DIGITS), "No such file"),
            ((whole, f"--to={used}", *OF_DIGITS), "it exists; give another"),
            ((whole, to, config, "--heads=2"), "--from: got None"),
            ((whole, to, "--from=torch", config), "--from: got 'torch'; it may be one of: adm"),
            ((whole, to, "--from=torchcfm", "--heads=2"), "--config: got None"),
            ((whole, to, "--from=torchcfm", config), "--heads: got None"),
            ((whole, to, *OF_DIGITS[:2], "--heads=3"), "--heads: got 3; they must divide 32"),
            ((whole, to, *OF_DIGITS, "--size=9"), "need sides divisible by 2"),
            ((whole, to, "--from=adm", config, "--schedule=sqrt"), "--schedule: got 'sqrt'"),
            ((whole, to, "--from=diffusers", config), "settings beside it, in config.json"),
            ((whole, *OF_DIGITS), "--to"),
        ):
            code, errors = run("convert", *arguments)
            self.assertEqual((code, len(errors)), (2, 1), errors)
            self.assertIn(message, errors[0])
        self.assertFalse(self.workdir.exists())

    def test_data_of_another_shape(self):
        file, _ = torchcfm_file(self.folder, DIGITS.clone(out_channels=3))
        code, errors = run("convert", file, f"--to={self.workdir}", *OF_DIGITS)
        self.assertEqual(code, 2)
        self.assertIn("images with 3 channels", errors[0])


if __name__ == "__main__":
    absltest.main()
