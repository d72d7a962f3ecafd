import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

from absl.testing import absltest

from configs import checkerboard_ot
from flowmatch_jax.experiment import build
from flowmatch_jax.training.cost import profile
from flowmatch_jax.training.cost.profile import Operation

PROGRAM = """HloModule jit_train_steps

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %a = f32[8]{0} add(%p, %p), metadata={op_name="jit(f)/jvp(UNet)/down_0_0/add"}
  ROOT %m = f32[8] multiply(%a), metadata={op_name="jit(f)/transpose(jvp(UNet))/up/cond/mul"}
}

ENTRY %main.1 (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %fusion.1 = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused
  %pair = (f32[8]{0}, s32[]) custom-call(%x), metadata={op_name="jit(f)/while/body/sort"}
  ROOT %dot.2 = bf16[2,4]{1,0} dot(%fusion.1, %x), metadata={op_name="jit(f)/dot_general"}
}
"""


def event(name, nanoseconds, **stats):
    return SimpleNamespace(name=name, duration_ns=nanoseconds, stats=stats.items())


def trace(**planes):
    return SimpleNamespace(
        planes=[
            SimpleNamespace(name=name, lines=[SimpleNamespace(name=line, events=events)])
            for name, (line, events) in planes.items()
        ]
    )


class RankingTest(absltest.TestCase):
    def test_operations_with_shape_and_origin(self):
        seconds = Counter({"fusion.1": 1.0, "dot.2": 3.0, "pair": 0.5, "elsewhere": 0.5})
        ranked = profile.ranked(seconds, PROGRAM, steps=10)
        self.assertEqual(ranked[0], Operation("dot.2", "bf16[2,4]", "dot_general", 300.0, 0.6))
        self.assertEqual(
            ranked[1], Operation("fusion.1", "f32[8]", "backward UNet/up/mul", 100.0, 0.2)
        )
        self.assertCountEqual(
            ranked[2:],
            [Operation("pair", "", "sort", 50.0, 0.1), Operation("elsewhere", "", "", 50.0, 0.1)],
        )

    def test_ten_lines_and_the_others(self):
        seconds = Counter({f"op.{i}": 1.0 for i in range(20)})
        lines = profile.table(profile.ranked(seconds, "", steps=1)).splitlines()
        self.assertLen(lines, 1 + 10 + 1)
        self.assertEqual(lines[-1].split(), ["10000.000", "50.0%", "10", "others"])
        self.assertLen(profile.table(profile.ranked(Counter(a=1.0), "", 1)).splitlines(), 2)


class TraceTest(absltest.TestCase):
    """The forms that traces have on devices that this machine lacks."""

    def test_host(self):
        events = [event("dot", 2e9, hlo_op="dot.1"), event("dot", 1e9, hlo_op="dot.1")]
        host = trace(**{"/host:CPU": ("threads", [*events, event("python", 9e9)])})
        self.assertEqual(profile.operation_seconds(host), {"dot.1": 3.0})

    def test_gpu_without_what_its_host_does(self):
        gpu = trace(
            **{
                "/host:CPU": ("threads", [event("launch", 9e9, hlo_op="dot.1")]),
                "/device:GPU:0": ("stream", [event("kernel", 1e9, hlo_op="dot.1")]),
                "/device:GPU:1": ("stream", [event("kernel", 2e9, hlo_op="dot.1")]),
            }
        )
        self.assertEqual(profile.operation_seconds(gpu), {"dot.1": 3.0})

    def test_tpu(self):
        operation = "%fusion.7 = bf16[8]{0} fusion(%x)"
        tpu = trace(**{"/device:TPU:0": ("XLA Ops", [event(operation, 1e9)])})
        self.assertEqual(profile.operation_seconds(tpu), {"fusion.7": 1.0})


class StepsTest(absltest.TestCase):
    def test_a_run(self):
        config = checkerboard_ot.get_config()
        config.network.mlp.update(width=256, depth=2)
        config.train.update(batch_size=4096, steps_per_dispatch=1)
        folder = Path(tempfile.mkdtemp()) / "profile"
        operations = profile.profile_steps(build(config), folder)
        self.assertNotEmpty(list(folder.glob("**/*.xplane.pb")))
        self.assertAlmostEqual(sum(o.share for o in operations), 1)
        times = [o.milliseconds for o in operations]
        self.assertEqual(times, sorted(times, reverse=True))
        # The product with the wide layer's weights is in the network's own words.
        wide = [o for o in operations if "MLP/hidden_1" in o.origin]
        self.assertNotEmpty(wide)
        self.assertIn("f32[4096,256]", {o.shape for o in wide})


if __name__ == "__main__":
    absltest.main()
