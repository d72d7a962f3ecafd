"""Runs itself in a process with eight simulated devices: `python tests/mesh_test.py`."""

import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from configs import checkerboard_ot, digits_ot
from flowmatch_jax import objectives, paths
from flowmatch_jax.couplings import MinibatchOT, draw_source, independent, of_the_batch
from flowmatch_jax.data.pairing import Pairing
from flowmatch_jax.evaluation.quality import judge_samples
from flowmatch_jax.evaluation.samples import make_sampler
from flowmatch_jax.experiment import build
from flowmatch_jax.metrics.features.extractors import pixels
from flowmatch_jax.metrics.frechet import Moments
from flowmatch_jax.metrics.scores import FeatureSet
from flowmatch_jax.networks import pure_apply
from flowmatch_jax.networks.layers import AttentionBlock
from flowmatch_jax.networks.mlp import MLP
from flowmatch_jax.pixels import quantise
from flowmatch_jax.runtime import mesh as mesh_lib
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.solvers import Solver, integrate
from flowmatch_jax.training.cost.estimate import bytes_a_device
from flowmatch_jax.training.optimizer import adam
from flowmatch_jax.training.state import init_state
from flowmatch_jax.training.step import make_gradient, make_train_step
from tests.evaluation.cases import source_key
from tests.evaluation.experiments import images

DEVICES = 8
TWO_STEPS = Solver("ab2", steps=2)
STEPS = 10


class Pictures(nn.Module):
    """What a U-Net consists of, once: it compiles in a third of the time of the smallest."""

    @nn.compact
    def __call__(self, t, x):
        h = nn.Conv(8, (3, 3))(x) + nn.Dense(8)(t[:, None])[:, None, None]
        h = nn.silu(nn.GroupNorm(4)(h))
        h = AttentionBlock(head_channels=4)(h)
        return nn.Conv(1, (3, 3))(h)


class Training:
    """A small network's steps over a mesh, from one start and on the same batches.

    Adam's eps is large, since with a small one the update of a parameter is the sign of its
    gradient, whatever the size: where that is 0 but for rounding, layouts would differ.
    """

    def __init__(self, module, shape, levels, microbatches=1, coupling=independent):
        x = jnp.zeros((1, *shape))
        init = lambda key: module.init(key, jnp.zeros(1), x)["params"]  # noqa: E731
        self.optimizer = adam(1e-2, eps=1e-3)
        self.init = lambda: init_state(init, self.optimizer, 0)
        path = paths.optimal_transport()
        objective = objectives.matching("flow_matching", path, coupling=coupling)
        self.gradient = make_gradient(objective, pure_apply(module), levels, False, microbatches)
        values = np.random.RandomState(0).randint(0, 17, (STEPS, 16, *shape))
        stored = values.astype(np.uint8 if levels else np.float32)
        self.batches = [{"x": each} for each in stored]
        if coupling is of_the_batch:
            pairing = Pairing(MinibatchOT(), levels, by_label=False, seed=0)
            for n, batch in enumerate(self.batches):
                batch["x0"] = pairing.draw(n, batch["x"], None)

    @classmethod
    def of_images(cls):
        return cls(Pictures(), (8, 8, 1), 17)

    @classmethod
    def of_points(cls, **options):
        return cls(MLP(width=64, depth=2), (2,), None, **options)

    def run(self, mesh, at_once=1):
        """Losses and the final state."""
        shapes = jax.eval_shape(self.init)
        step = make_train_step(shapes, mesh, self.gradient, self.optimizer, 0.9)
        state = jax.jit(self.init, out_shardings=mesh_lib.state_shardings(shapes, mesh))()
        losses = []
        for i in range(0, STEPS, at_once):
            batches = mesh_lib.put_batches(self.batches[i : i + at_once], mesh)
            state, metrics = step(state, batches)
            losses += metrics["loss"].tolist()
        return losses, state


def one_device():
    return jax.make_mesh(
        (1, 1),
        mesh_lib.BATCH_AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[:1],
    )


class MeshTest(absltest.TestCase):
    def test_one_device_is_a_mesh_of_one(self):
        mesh = mesh_lib.make_mesh()
        self.assertEqual(dict(mesh.shape), {"data": jax.device_count(), "fsdp": 1})

    def test_batch_must_be_divided_by_the_devices(self):
        with self.assertRaisesRegex(UserError, "batch_size: got 12; .*number of devices, 8"):
            mesh_lib.check_batch(12, jax.sharding.AbstractMesh((4, 2), ("data", "fsdp")))

    def test_microbatches_must_be_divided_by_the_devices(self):
        mesh = jax.sharding.AbstractMesh((4, 2), ("data", "fsdp"))
        mesh_lib.check_batch(32, mesh, microbatches=4)
        with self.assertRaisesRegex(UserError, "batch_size: got 32; .*8, times accumulate, 8"):
            mesh_lib.check_batch(32, mesh, microbatches=8)

    def test_fsdp_must_divide_the_devices(self):
        with self.assertRaisesRegex(UserError, "fsdp: got 3"):
            mesh_lib.make_mesh(3)

    def test_eight_devices(self):
        if jax.device_count() == DEVICES:
            self.check_training()
            self.check_split_state()
            self.check_evaluation()
            return
        variables = {"JAX_NUM_CPU_DEVICES": str(DEVICES), "PYTHONPATH": os.pathsep.join(sys.path)}
        child = subprocess.run(
            [sys.executable, __file__],
            env=os.environ | variables,
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
        split = make_sampler(experiment, 64)(params)
        whole = make_sampler(experiment, 63, TWO_STEPS)(params)
        self.assertEqual(len(split.x.sharding.device_set), DEVICES)
        self.assertEqual(split.x.addressable_shards[0].data.shape, (8, 2))
        source = draw_source(source_key(1), (64, 2))
        solver = Solver(rtol=1e-3, atol=1e-3)
        alone = integrate(experiment.field(params), source, solver=solver)
        np.testing.assert_allclose(mesh_lib.to_host(split.x), alone.x, atol=1e-4)
        self.assertEqual((split.nfe, whole.x.shape), (alone.nfe, (63, 2)))
        # Nor do their moments: the field is zero, the samples are the noise.
        zero = images()
        x = np.concatenate([draw_source(source_key(1, i), (8, 8, 8, 1)) for i in range(3)])
        reference = Moments.empty(64).add(pixels(np.asarray(quantise(x, 17)), 17))
        sampler = make_sampler(zero, 8, TWO_STEPS)
        judged = judge_samples(zero, sampler, jnp.ones(()), 24, FeatureSet(reference), silent=True)
        self.assertAlmostEqual(judged["fd_pixels"], 0, places=9)

    def check_training(self):
        """Losses and parameters do not depend on the layout, to the order of float32 sums."""
        layouts = ((8, 1), (4, 2), (1, 8))
        for training, chosen in (
            (Training.of_images(), layouts[1:2]),  # its program takes long to compile
            (Training.of_points(), layouts),
        ):
            expected, reference = training.run(one_device())
            for data, fsdp in chosen:
                mesh = mesh_lib.make_mesh(fsdp)
                self.assertEqual(tuple(mesh.shape.values()), (data, fsdp))
                self.check_same(training.run(mesh), expected, reference)
        self.check_same(training.run(mesh_lib.make_mesh(2), at_once=5), expected, reference)
        # The parts of a batch are the same ones, with the same noise, wherever they lie.
        # So is noise that is paired with the whole batch on the host.
        paired = {"coupling": of_the_batch}
        for options in ({"microbatches": 2}, paired, paired | {"microbatches": 2}):
            accumulating = Training.of_points(**options)
            expected, reference = accumulating.run(one_device())
            self.check_same(accumulating.run(mesh_lib.make_mesh(2)), expected, reference)

    def check_same(self, got, expected, reference):
        losses, state = got
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        for name in ("params", "ema"):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
                jax.device_get(getattr(state, name)),
                jax.device_get(getattr(reference, name)),
            )

    def check_split_state(self):
        """With fsdp = 8 a device has an eighth of parameters, average and moments, within 5%."""
        config = digits_ot.get_config()
        config.network.unet.update(multipliers=(1,), attention_sides=(8,))
        config.mesh.fsdp = DEVICES
        experiment = build(config)
        init = lambda: init_state(experiment.init_params, adam(1e-3), 0)  # noqa: E731
        layout = mesh_lib.with_shardings(jax.eval_shape(init), experiment.mesh)
        state = jax.jit(init, out_shardings=jax.tree.map(lambda a: a.sharding, layout))()
        for part in (state.params, state.ema, state.opt_state):
            whole = sum(array.nbytes for array in jax.tree.leaves(part))
            held = sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(part))
            self.assertEqual(held, bytes_a_device(part))
            self.assertBetween(held / whole * DEVICES, 1.0, 1.05)


if __name__ == "__main__":
    absltest.main()
