"""Runs itself in a process with eight simulated devices: `python tests/training/mesh_test.py`."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from flowmatch_jax import objectives, paths
from flowmatch_jax.errors import UserError
from flowmatch_jax.networks import pure_apply
from flowmatch_jax.networks.mlp import MLP
from flowmatch_jax.training import mesh as mesh_lib
from flowmatch_jax.training.optimizer import adam
from flowmatch_jax.training.state import init_state
from flowmatch_jax.training.step import make_train_step

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
