from itertools import pairwise
from types import SimpleNamespace
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from configs import checkerboard_ot, digits_ot
from flowmatch_jax.config.experiments import experiment_config
from flowmatch_jax.experiment import build
from flowmatch_jax.networks.layers import AttentionBlock
from flowmatch_jax.runtime.mesh import make_mesh, with_shardings
from flowmatch_jax.training.cost import estimate as cost
from flowmatch_jax.training.cost import hardware
from flowmatch_jax.training.optimizer import adam
from flowmatch_jax.training.state import init_state
from flowmatch_jax.training.step import make_gradient, make_train_step


def small_unet():
    config = digits_ot.get_config()
    config.network.unet.update(multipliers=(1,), attention_sides=(8,))
    return config


class FlopsTest(absltest.TestCase):
    def test_mlp_by_hand(self):
        """2 in x out a layer and point, three times but for the first layer's input."""
        config = checkerboard_ot.get_config()
        inputs, width, depth, outputs = 27, 512, 5, 2  # 3 coordinates, 4 octaves of both waves
        config.network.mlp.update(width=width, depth=depth, frequencies=4)
        first = 2 * inputs * width
        forward = first + 2 * (depth - 1) * width**2 + 2 * width * outputs
        counted = cost.model_flops(build(config), batch_size=64)
        self.assertAlmostEqual(counted / (64 * (3 * forward - first)), 1, delta=0.02)

    def test_convolutions_by_hand(self):
        """2 in x out a tap that lies inside the image; (3s - 2)^2 taps for side s."""
        side, channels = 16, (3, 64, 32)
        module = nn.Sequential([nn.Conv(c, (3, 3)) for c in channels[1:]])
        x = jax.ShapeDtypeStruct((4, side, side, channels[0]), np.float32)
        params = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(x.shape)))
        loss = lambda params, x: (module.apply(params, x) ** 2).sum()  # noqa: E731
        layers = [2 * a * b * (3 * side - 2) ** 2 for a, b in pairwise(channels)]
        counted = cost.traced_flops(jax.grad(loss), params, x)
        self.assertAlmostEqual(counted / (4 * (3 * sum(layers) - layers[0])), 1, delta=0.02)

    def test_attention_is_counted(self):
        side, width = 16, 128
        module = AttentionBlock(head_channels=64)
        x = jax.ShapeDtypeStruct((2, side, side, width), np.float32)
        params = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(x.shape)))
        positions = side**2
        projections, products = 8 * positions * width**2, 4 * positions**2 * width
        counted = cost.traced_flops(module.apply, params, x)
        self.assertAlmostEqual(counted / (2 * (projections + products)), 1, delta=0.05)

    def test_linear_in_the_batch(self):
        experiment = build(small_unet())
        one, many = (cost.model_flops(experiment, n) for n in (1, 512))
        self.assertAlmostEqual(many / (512 * one), 1, delta=1e-3)
        size = experiment.config.train.batch_size
        self.assertEqual(cost.model_flops(experiment), cost.model_flops(experiment, size))

    def test_recomputation_is_no_work_of_the_model(self):
        config = small_unet()
        plain = cost.model_flops(build(config))
        config.network.unet.remat = True
        config.network.dtype = "bfloat16"
        self.assertEqual(cost.model_flops(build(config)), plain)

    def test_maximum_likelihood_has_no_count(self):
        self.assertIsNone(cost.model_flops(build(experiment_config("configs/checkerboard_cnf.py"))))

    def test_no_count_of_calls_of_python(self):
        call = lambda x: jax.pure_callback(np.sort, x, x)  # noqa: E731
        self.assertIsNone(cost.traced_flops(call, jnp.zeros(3)))

    def test_no_count_without_a_cpu_backend(self):
        with mock.patch.object(jax, "local_devices", side_effect=RuntimeError):
            self.assertIsNone(cost.traced_flops(jnp.sin, jnp.zeros(3)))


class LayoutTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        params = {"dense": {"bias": jnp.zeros(3), "kernel": jnp.zeros((7, 64))}}
        mesh = AbstractMesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
        state = jax.eval_shape(lambda: init_state(lambda key: params, adam(1e-3), 0))
        cls.layout = with_shardings(state, mesh)

    def test_bytes_on_one_device(self):
        parameters = 4 * 3 + 4 * 7 * 64 // 4  # the kernel is split over four
        self.assertEqual(cost.bytes_a_device(self.layout.params), parameters)
        self.assertEqual(cost.bytes_a_device(self.layout.opt_state), 2 * parameters + 4)
        self.assertEqual(cost.bytes_a_device(self.layout.key), 8)

    def test_bytes_of_arrays(self):
        self.assertEqual(
            cost.bytes_a_device({"x": jnp.zeros((5, 2)), "key": jax.random.key(0)}), 48
        )

    def test_table(self):
        lines = cost.layout_table(self.layout).splitlines()
        self.assertLen({len(line) for line in lines}, 1)
        rows = {line.split("  ")[0]: " ".join(line.split()[1:]) for line in lines}
        self.assertEqual(rows["dense/kernel"], "7 x 64 float32 fsdp on axis 1 448")
        self.assertEqual(rows["dense/bias"], "3 float32 replicated 12")
        self.assertEqual(rows["total: parameters"], "parameters 460")
        self.assertEqual(rows["total: all"], f"all {cost.bytes_a_device(self.layout):,}")
        self.assertLen(lines, 1 + len(jax.tree.leaves(self.layout.params)) + 4)

    def test_axes_of_one_dimension(self):
        mesh = AbstractMesh((2, 4), ("data", "fsdp"))
        sharding = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))
        self.assertEqual(cost.sharding_text(sharding), "data x fsdp on axis 1")


class MemoryTest(absltest.TestCase):
    def test_parts_of_a_step(self):
        experiment, optimizer, mesh = build(checkerboard_ot.get_config()), adam(1e-3), make_mesh()
        init = lambda: init_state(experiment.init_params, optimizer, 0)  # noqa: E731
        layout = with_shardings(jax.eval_shape(init), mesh)
        gradient = make_gradient(experiment.objective, experiment.train_apply, None)
        step = make_train_step(layout, mesh, gradient, optimizer, 0.9)
        batch = 4096 * mesh.size
        x = jax.ShapeDtypeStruct((1, batch, 2), np.float32)
        memory = cost.step_memory(layout, step.lower(layout, {"x": x}).compile())
        parameters = cost.bytes_a_device(layout.params)
        self.assertEqual((memory.parameters, memory.average), (parameters, parameters))
        self.assertEqual(memory.optimiser, 2 * parameters + 4)  # and Adam's count
        # At least each hidden layer's output; not the state once more.
        kept = 5 * 4096 * 512 * 4
        self.assertBetween(memory.activations, kept, 10 * kept)
        self.assertEqual(memory.total, 4 * parameters + 4 + memory.activations)

    def test_silent_compiler(self):
        layout = SimpleNamespace(params=jnp.zeros(3), ema=jnp.zeros(3), opt_state=())
        memory = cost.step_memory(layout, mock.Mock(memory_analysis=lambda: None))
        self.assertEqual(memory, cost.Memory(12, 12, 0, None))
        self.assertEqual(memory.total, 24)

    def test_limit(self):
        told = mock.Mock(device_kind="NVIDIA H200", memory_stats=lambda: {"bytes_limit": 5})
        silent = mock.Mock(device_kind="TPU v5 lite", memory_stats=lambda: None)
        unknown = mock.Mock(device_kind="abacus", memory_stats=lambda: {})
        limits = [cost.memory_limit(device) for device in (told, silent, unknown)]
        self.assertEqual(limits, [5, 16 * 2**30, None])


class DescriptionTest(parameterized.TestCase):
    memory = cost.Memory(2**30, 2**30, 2**31, 3 * 2**30)

    def test_lines(self):
        lines = cost.describe(295_000_000, self.memory, 80 * 2**30, 1.25e15, batch_size=2000)
        self.assertEqual(
            lines,
            [
                "The network has 295,000,000 parameters.",
                "A step needs 7 GiB of 80 GiB of memory on a device: parameters 1 GiB, average "
                "1 GiB, optimiser 2 GiB, activations 3 GiB.",
                "A step takes 1.25 PFLOP, 625 GFLOP for each item of the batch.",
            ],
        )

    def test_what_is_not_known_is_left_out(self):
        lines = cost.describe(3, cost.Memory(1, 1, 2, None), None, None, batch_size=1)
        self.assertLen(lines, 2)
        self.assertNotIn("activations", lines[1])

    def test_small_and_large(self):
        line = cost.describe(3, cost.Memory(12, 1023, 2048, 5 * 2**40), None, None, 1)[1]
        for size in ("parameters 12 B", "average 0.999 KiB", "optimiser 2 KiB", "5 TiB"):
            self.assertIn(size, line)

    def test_shortage_names_the_ways_out(self):
        self.assertIsNone(cost.shortage(self.memory, None))
        self.assertIsNone(cost.shortage(self.memory, 7 * 2**30))
        warning = cost.shortage(self.memory, 6 * 2**30)
        for part in ("7 GiB", "6 GiB", "unet.remat", "train.accumulate", "mesh.fsdp"):
            self.assertIn(part, warning)

    def test_utilisation(self):
        device = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
        mesh = SimpleNamespace(devices=np.full((4, 2), device), size=8)
        peak = hardware.H100.peak_flops["bfloat16"]
        self.assertAlmostEqual(cost.utilisation(2 * peak, 1.6, mesh, "bfloat16"), 0.4)
        self.assertAlmostEqual(cost.utilisation(2 * peak, 1.6, mesh, "float32"), 0.8)
        self.assertIsNone(cost.utilisation(1e9, 1, make_mesh(), "float32"))

    @parameterized.parameters(
        (40, "40 s"),
        (59.6, "1 min"),
        (300, "5 min"),
        (3599, "1 h 0 min"),
        (3 * 3600 + 300, "3 h 5 min"),
        (51 * 3600, "2 d 3 h"),
    )
    def test_time_left(self, seconds, expected):
        self.assertEqual(cost.time_left(1000, 1000 / seconds), expected)


if __name__ == "__main__":
    absltest.main()
