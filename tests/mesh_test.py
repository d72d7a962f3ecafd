"""Runs itself in a process with eight simulated devices: `python tests/mesh_test.py`."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from configs import checkerboard_ot
from flowmatch_jax import mesh as mesh_lib
from flowmatch_jax import objectives, paths
from flowmatch_jax.errors import UserError
from flowmatch_jax.evaluation.quality import Reference, judge_samples
from flowmatch_jax.evaluation.samples import make_sampler, sample_key
from flowmatch_jax.experiment import build
from flowmatch_jax.metrics.extractors import pixels
from flowmatch_jax.metrics.frechet import Moments
from flowmatch_jax.networks import pure_apply
from flowmatch_jax.networks.mlp import MLP
from flowmatch_jax.pixels import quantise
from flowmatch_jax.sampling import draw_source
from flowmatch_jax.solvers import integrate
from flowmatch_jax.training.optimizer import adam
from flowmatch_jax.training.state import init_state
from flowmatch_jax.training.step import make_train_step
from tests.evaluation.experiments import images

DEVICES = 8


def train(mesh, steps=10):
    """Losses and final parameters of a small run over a mesh."""
    module = MLP(width=64, depth=2)
    optimizer = adam(1e-2)
    init = lambda: init_state(  # noqa: E731
        lambda key: module.init(key, jnp.zeros(1), jnp.zeros((1, 2)))["params"], optimizer, 0
    )
    shapes = jax.eval_shape(init)
    objective = objectives.flow_matching(paths.optimal_transport())
    step = make_train_step(shapes, mesh, objective, pure_apply(module), optimizer, 0.9, None)
    state = jax.jit(init, out_shardings=mesh_lib.state_shardings(shapes, mesh))()
    data = np.random.RandomState(0).randn(steps, 64, 2).astype(np.float32)
    losses = []
    for x in data:
        state, metrics = step(state, mesh_lib.put_batch({"x": x}, mesh))
        losses.append(float(metrics["loss"]))
    return losses, state


class MeshTest(absltest.TestCase):
    def test_one_device_is_a_mesh_of_one(self):
        mesh = mesh_lib.make_mesh()
        self.assertEqual(dict(mesh.shape), {"data": jax.device_count(), "fsdp": 1})

    def test_batch_must_be_divided_by_the_devices(self):
        with self.assertRaisesRegex(UserError, "batch_size: got 12; .*number of devices, 8"):
            mesh_lib.check_batch(12, jax.sharding.AbstractMesh((4, 2), ("data", "fsdp")))

    def test_fsdp_must_divide_the_devices(self):
        with self.assertRaisesRegex(UserError, "fsdp: got 3"):
            mesh_lib.make_mesh(3)

    def test_eight_devices(self):
        if jax.device_count() == DEVICES:
            self.check_eight_devices()
            self.check_evaluation()
            return
        flags = f"--xla_force_host_platform_device_count={DEVICES}"
        child = subprocess.run(
            [sys.executable, __file__],
            env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(child.returncode, 0, child.stderr)

    def check_evaluation(self):
        """A batch is split over the devices where they divide it, and comes back whole."""
        mesh = mesh_lib.make_mesh()
        double = jax.jit(lambda x: mesh_lib.split_if_even(2 * x, mesh))
        for size, shard in ((16, 2), (6, 6)):
            x = np.arange(size, dtype=np.float32)
            doubled = double(x)
            self.assertEqual(doubled.addressable_shards[0].data.shape, (shard,))
            np.testing.assert_array_equal(mesh_lib.to_host(doubled), 2 * x)
        np.testing.assert_array_equal(mesh_lib.to_host(x), x)
        # Samples do not depend on how many devices draw them.
        config = checkerboard_ot.get_config()
        config.network.mlp.update(width=16, depth=2)
        config.solver.rtol = config.solver.atol = 1e-3
        experiment = build(config)
        params = experiment.init_params(jax.random.key(0))
        params = jax.tree.map(lambda p: p + 0.1, params)
        split, whole = (make_sampler(experiment, n)(params, sample_key(0)) for n in (64, 63))
        self.assertEqual(len(split.x.sharding.device_set), DEVICES)
        self.assertEqual(split.x.addressable_shards[0].data.shape, (8, 2))
        source = draw_source(sample_key(0), (64, 2))
        alone = integrate(experiment.field(params), source, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(mesh_lib.to_host(split.x), alone.x, atol=1e-4)
        self.assertEqual((split.nfe, whole.x.shape), (alone.nfe, (63, 2)))
        # Nor do their moments: the field is zero, the samples are the noise.
        zero = images()
        x = np.concatenate([draw_source(sample_key(1, i), (8, 8, 8, 1)) for i in range(3)])
        reference = Moments.empty(64).add(pixels(np.asarray(quantise(x, 17)), 17))
        sampler = make_sampler(zero, 8)
        judged = judge_samples(zero, sampler, jnp.ones(()), 24, Reference(reference), silent=True)
        self.assertAlmostEqual(judged["fd_pixels"], 0, places=9)

    def check_eight_devices(self):
        """Losses and parameters do not depend on the layout, to the order of float32 sums."""
        alone = jax.make_mesh(
            (1, 1),
            mesh_lib.BATCH_AXES,
            axis_types=(jax.sharding.AxisType.Auto,) * 2,
            devices=jax.devices()[:1],
        )
        expected, reference = train(alone)
        for fsdp in (1, 2, 8):
            mesh = mesh_lib.make_mesh(fsdp)
            losses, state = train(mesh)
            np.testing.assert_allclose(losses, expected, rtol=1e-4)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4),
                state.params,
                reference.params,
            )
            kernel = state.params["hidden_1"]["kernel"]
            self.assertEqual(kernel.addressable_shards[0].data.size, kernel.size // fsdp)


if __name__ == "__main__":
    absltest.main()
