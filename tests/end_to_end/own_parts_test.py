"""Runs with parts of one's own, in a file beside the config, against those of the package."""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

import flowmatch_jax
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.solvers import Solver
from tests.end_to_end.runs import TINY_POINTS, bits, evaluations, run, saved_state

# Each part of the package written once more, and three kinds of networks.
PARTS = """
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowmatch_jax.arrays import expand_time
from flowmatch_jax.data.dataset import Dataset
from flowmatch_jax.data.toy2d import DENSITIES
from flowmatch_jax.networks.mlp import MLP
from flowmatch_jax.objectives import matching
from flowmatch_jax.paths import GaussianPath


def path(sigma_min):
    mean = lambda t, x1: expand_time(t, x1) * x1
    std = lambda t, x1: (1 - expand_time(t, x1)) + sigma_min * expand_time(t, x1)
    return GaussianPath(mean, std)


def coupling(key, x1, scale):
    return scale * jax.random.normal(key, x1.shape, x1.dtype)


def time(key, n, path, low):
    return jax.random.uniform(key, (n,), minval=low, maxval=path.t_end)


def objective(path, predicts, coupling, time, of):
    return matching(of, path, predicts, coupling, time)


def grid(steps, path, power):
    return path.t_end * np.linspace(0, 1, steps + 1) ** power


def data(split, like):
    return DENSITIES[like](split)


def points(split, n=64):
    x = np.random.RandomState(split == "test").randn(n, 2).astype(np.float32)
    return Dataset("normal", "1", split, x)


class Linen(nn.Module):
    width: int

    @nn.compact
    def __call__(self, t, x):
        h = nn.gelu(nn.Dense(self.width)(jnp.concatenate([x, t[:, None]], axis=-1)))
        return nn.Dense(x.shape[-1])(h)


class NNX(nnx.Module):
    def __init__(self, width, *, rngs):
        self.layers = nnx.List([nnx.Linear(n, width, rngs=rngs) for n in (3, width)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.last = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, t, x):
        h = jnp.concatenate([x, t[:, None]], axis=-1)
        for layer in self.layers:
            h = self.dropout(nnx.gelu(layer(h)))
        return self.last(h)


class Plain:
    def __init__(self, width):
        self.width = width

    def init(self, key, t, x):
        keys = jax.random.split(key)
        shapes = ((x.shape[-1] + 1, self.width), (self.width, x.shape[-1]))
        return [(jax.random.normal(k, s) / s[0], jnp.zeros(s[1])) for k, s in zip(keys, shapes)]

    def apply(self, params, t, x):
        (w1, b1), (w2, b2) = params
        return jnp.tanh(jnp.concatenate([x, t[:, None]], axis=-1) @ w1 + b1) @ w2 + b2
"""
CONFIG = """
from flowmatch_jax.config.experiments import experiment_config


def get_config():
    config = experiment_config("configs/checkerboard_ot.py")
    config.path.name = "PARTS:path"
    config.path.options.sigma_min = 1e-5
    return config
"""
SHORT = (
    *TINY_POINTS,
    "--config.optimizer.schedule=constant",
    "--config.optimizer.warmup_steps=0",
    "--config.train.checkpoint_every=2",
    "--config.train.keep_every=2",
    "--config.evaluate.after_training=False",
)
ALL = {
    "data.name": "data",
    "data.options.like": "checkerboard",
    "objective.name": "objective",
    "objective.options.of": "flow_matching",
    "objective.coupling": "coupling",
    "objective.coupling_options.scale": 1.0,
    "objective.time": "time",
    "objective.time_options.low": 0.0,
    "solver.grid": "grid",
    "solver.grid_options.power": 1,
    "network.name": "MLP",
    "network.options.width": 8,
    "network.options.depth": 1,
}


class OwnPartsTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.enterContext(mock.patch.object(sys, "path", list(sys.path)))
        self.enterContext(mock.patch.dict(sys.modules))
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        # Python imports a module of a name once.
        self.module = f"parts_{self.folder.name.replace('-', '_')}"
        (self.folder / f"{self.module}.py").write_text(PARTS)
        self.config = self.folder / "mine_ot.py"
        self.config.write_text(CONFIG.replace("PARTS", self.module))

    def own(self, fields):
        """Flags of these fields; names of parts get the module."""
        names = ("data.name", "network.name", "solver.grid")
        names += ("objective.name", "objective.coupling", "objective.time")
        prefix = {name: f"{self.module}:" for name in names}
        return [f"--config.{name}={prefix.get(name, '')}{v}" for name, v in fields.items()]

    def train(self, name, steps, *flags, config=None):
        workdir = self.folder / name
        child = run(
            f"--config={config or self.config}",
            *SHORT,
            f"--config.train.steps={steps}",
            f"--workdir={workdir}",
            *flags,
        )
        self.assertEqual(child.returncode, 0, child.stderr)
        return workdir

    def same(self, one, other):
        (step, state), (wanted_step, wanted) = saved_state(one), saved_state(other)
        self.assertEqual(step, wanted_step)
        jax.tree.map(np.testing.assert_array_equal, bits(state), bits(wanted))

    def forget(self):
        """As in another process, in which nothing was imported."""
        for name in [name for name in sys.modules if name.startswith("parts_")]:
            del sys.modules[name]
        sys.path[:] = [folder for folder in sys.path if str(self.folder) not in folder]


class OwnPartsTest(OwnPartsTestCase):
    def test_parts_written_once_more_train_to_the_same_bits(self):
        """In one go with the package's, and stopped half-way with one's own; then evaluated."""
        wanted = self.train("wanted", 4, config="configs/checkerboard_ot.py")
        own = self.train("own", 2, *self.own(ALL))
        self.same(self.train("own", 4, *self.own(ALL)), wanted)
        record = json.loads((own / "config.json").read_text())
        self.assertEqual(record["network"]["options"], {"width": 8, "depth": 1})
        self.assertEqual(record["objective"]["coupling"], f"{self.module}:coupling")

        for workdir in (own, wanted):
            child = run("--mode=evaluate", f"--workdir={workdir}")
            self.assertEqual(child.returncode, 0, child.stderr)
        (result,), (of_package,) = (evaluations(workdir, 4) for workdir in (own, wanted))
        self.assertEqual(result["results"], of_package["results"])
        self.assertEqual(result["path"], {"name": f"{self.module}:path", "sigma_min": 1e-5})
        self.assertEqual(result["solver"]["grid_options"], {"power": 1})
        self.assertNotIn("grid_options", of_package["solver"])

        child = run("--mode=sample", f"--workdir={own}", "--config.path.options.sigma_min=0.1")
        self.assertEqual((child.returncode, child.stderr.count("\n")), (2, 1), child.stderr)
        self.assertIn("config.path.options: got {'sigma_min': 0.1}; the run in", child.stderr)

    @parameterized.parameters("Linen", "NNX", "Plain")
    def test_networks(self, name):
        """Stopped and resumed to the same bits; sampled from their workdir alone."""
        fields = {"network.name": name, "network.options.width": 6, "data.name": "points"}
        flags = self.own(fields)
        whole = self.train("whole", 4, *flags)
        self.train("resumed", 2, *flags)
        self.same(self.train("resumed", 4, *flags), whole)

        solver = Solver("ab2", steps=2)
        x = flowmatch_jax.load(whole).sample(jax.random.key(0), 3, solver=solver)
        self.assertEqual(x.shape, (3, 2))
        moved = Path(shutil.move(whole, self.folder / "moved"))
        (self.folder / f"{self.module}.py").rename(moved / f"{self.module}.py")
        self.forget()
        again = flowmatch_jax.load(moved).sample(jax.random.key(0), 3, solver=solver)
        np.testing.assert_array_equal(again, x)

    def test_a_run_without_its_module(self):
        fields = {"network.name": "Linen", "network.options.width": 6, "data.name": "points"}
        workdir = self.train("run", 2, *self.own(fields))
        (self.folder / f"{self.module}.py").unlink()
        self.forget()
        message = (
            f"^config.path.name: got '{self.module}:path'; there is no module {self.module} in"
        )
        with self.assertRaisesRegex(UserError, message):
            flowmatch_jax.load(workdir)
        child = run("--mode=sample", f"--workdir={workdir}")
        self.assertEqual((child.returncode, child.stderr.count("\n")), (2, 1), child.stderr)
        self.assertIn("beside the config, or installed; go to the folder of", child.stderr)


class MistakesTest(OwnPartsTestCase):
    @parameterized.parameters(
        ({"network.name": "absent"}, "there is no function absent in"),
        ({"network.name": "Linen"}, "it raised TypeError: Linen.__init__() missing 1 required"),
        ({"network.name": "Linen", "network.options.widht": 3}, "unexpected keyword argument"),
        ({"network.name": "points"}, "it raised TypeError"),
        (
            {"network.name": "Linen", "network.options.width": 4, "network.dtype": "bfloat16"},
            "config.network.dtype: got 'bfloat16'; this network has no attribute dtype",
        ),
        ({"network.name": "path", "network.options.sigma_min": 0.1}, "it returns GaussianPath"),
        ({"objective.coupling": "grid", "objective.coupling_options.power": 1}, "it raised"),
        ({"data.name": "grid"}, "config.data.name: got 'MODULE:grid'; it raised TypeError: grid()"),
        ({"data.name": "path", "data.options.x": 0}, "it raised TypeError"),
        ({"data.options.x": 0}, "config.data.options: got {'x': 0}; only a part of your own"),
        ({"condition.labels": True, "data.name": "points"}, "these data have none"),
    )
    def test_told_at_once_in_one_line(self, fields, message):
        workdir = self.folder / "run"
        flags = (f"--config={self.config}", *SHORT, f"--workdir={workdir}")
        child = run(*flags, *self.own(fields))
        self.assertEqual((child.returncode, child.stderr.count("\n")), (2, 1), child.stderr)
        self.assertIn(message.replace("MODULE", self.module), child.stderr)
        self.assertFalse(workdir.exists())


if __name__ == "__main__":
    absltest.main()
