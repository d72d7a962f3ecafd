import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.errors import UserError
from flowmatch_jax.mesh import make_mesh, with_shardings
from flowmatch_jax.training import checkpoints as ckpt
from flowmatch_jax.training.optimizer import adam
from flowmatch_jax.training.state import init_state

ROOT = Path(__file__).parents[2]
# Restores what a process with one device saved, in one with eight and the state split over them.
ON_EIGHT_DEVICES = """
import sys
from pathlib import Path
import jax
import numpy as np
from flowmatch_jax.mesh import make_mesh, with_shardings
from flowmatch_jax.training import checkpoints as ckpt
from tests.training.checkpoints_test import bits, make_state

layout = with_shardings(jax.eval_shape(lambda: make_state(width=16)), make_mesh(fsdp=8))
with ckpt.open_checkpoints(Path(sys.argv[1])) as checkpoints:
    state = ckpt.restore(checkpoints, 7, layout)
    w = state.params["layer"]["w"]
    assert w.addressable_shards[0].data.shape == (2, 2), w.sharding
    for got, saved in zip(bits(state), bits(make_state(width=16)), strict=True):
        np.testing.assert_array_equal(got, saved)
    ckpt.save(checkpoints, 8, state)
"""


def make_state(width=3, seed=0):
    init = lambda key: {"layer": {"w": jax.random.normal(key, (2, width))}}  # noqa: E731
    state = init_state(init, adam(1e-3), seed)
    return state.replace(ema=jax.tree.map(lambda p: p + 1, state.params), step=jnp.int32(7))


def bits(tree):
    """Every number of a state as plain arrays."""
    leaves = jax.tree.leaves(tree)
    is_key = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [np.asarray(jax.random.key_data(a) if is_key(a) else a) for a in leaves]


class WorkdirTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = Path(self.create_tempdir().full_path)

    def save(self, *steps, **state):
        with ckpt.open_checkpoints(self.workdir, keep_last=9) as checkpoints:
            for step in steps:
                ckpt.save(checkpoints, step, make_state(**state).replace(step=jnp.int32(step)))

    def layout(self, **state):
        return with_shardings(jax.eval_shape(lambda: make_state(**state)), make_mesh())

    def assertSameBits(self, got, wanted):
        for a, b in zip(bits(got), bits(wanted), strict=True):
            np.testing.assert_array_equal(a, b)


class CheckpointsTest(WorkdirTestCase):
    def test_everything_comes_back(self):
        self.save(7)
        with ckpt.open_checkpoints(self.workdir) as checkpoints:
            self.assertEqual(checkpoints.latest_step(), 7)
            self.assertSameBits(ckpt.restore(checkpoints, 7, self.layout()), make_state())

    def test_weights_alone(self):
        self.save(7)
        state, layout = make_state(), self.layout().params
        with ckpt.open_checkpoints(self.workdir) as checkpoints:
            raw, ema = (ckpt.restore_weights(checkpoints, 7, w, layout) for w in ("raw", "ema"))
        np.testing.assert_array_equal(raw["layer"]["w"], state.params["layer"]["w"])
        np.testing.assert_array_equal(ema["layer"]["w"], state.ema["layer"]["w"])

    def test_the_last_n_and_every_mth_are_kept(self):
        with ckpt.open_checkpoints(self.workdir, keep_last=2, keep_every=30) as checkpoints:
            for step in range(10, 101, 10):
                ckpt.save(checkpoints, step, make_state())
        kept = sorted(int(path.name) for path in (self.workdir / "checkpoints").iterdir())
        self.assertEqual(kept, [30, 60, 90, 100])

    def test_another_network_is_refused(self):
        self.save(7)
        other = self.layout().replace(params={"other": jax.ShapeDtypeStruct((2,), np.float32)})
        with ckpt.open_checkpoints(self.workdir) as checkpoints:
            for layout in (self.layout(width=4), other):
                with self.assertRaisesRegex(UserError, "another network"):
                    ckpt.restore_newest(checkpoints, layout)
                with self.assertRaisesRegex(UserError, "another network"):
                    ckpt.restore_weights(checkpoints, 7, "raw", layout.params)
        self.assertFalse((self.workdir / "damaged").exists())

    def test_restored_onto_eight_devices_and_back(self):
        self.save(7, width=16)
        child = subprocess.run(
            [sys.executable, "-c", ON_EIGHT_DEVICES, str(self.workdir)],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(child.returncode, 0, child.stderr)
        with ckpt.open_checkpoints(self.workdir) as checkpoints:
            back = ckpt.restore(checkpoints, 8, self.layout(width=16))
        self.assertSameBits(back, make_state(width=16))


class DamageTest(WorkdirTestCase):
    """Whatever befalls the newest checkpoint, it is kept aside and the one before is used."""

    def files(self, step):
        folder = self.workdir / "checkpoints" / str(step)
        return sorted(path for path in folder.rglob("*") if path.is_file())

    def restored(self):
        with ckpt.open_checkpoints(self.workdir) as checkpoints:
            return ckpt.restore_newest(checkpoints, self.layout())

    def check_set_aside(self, step=20, name="20"):
        with self.assertLogs("flowmatch_jax.training.checkpoints", "WARNING") as logs:
            self.assertEqual(self.restored().step, 10)
        self.assertStartsWith(logs.records[0].getMessage(), f"Checkpoint {step}")
        self.assertTrue((self.workdir / "damaged" / name).is_dir())
        kept = [path.name for path in (self.workdir / "checkpoints").iterdir()]
        self.assertEqual(kept, ["10"])

    def test_any_file_cut_short_or_missing(self):
        """Not all need harm the state; where the state is harmed, it is noticed."""
        self.save(10, 20)
        names = [path.relative_to(self.workdir) for path in self.files(20)]
        noticed = 0
        for harm in (lambda path: os.truncate(path, path.stat().st_size // 2), os.remove):
            for name in names:
                copy = Path(self.create_tempdir().full_path) / "run"
                shutil.copytree(self.workdir, copy)
                harm(copy / name)
                with ckpt.open_checkpoints(copy) as checkpoints:
                    state = ckpt.restore_newest(checkpoints, self.layout())
                self.assertSameBits(
                    state.replace(step=jnp.int32(0)), make_state().replace(step=jnp.int32(0))
                )
                damaged = int(state.step) == 10
                self.assertEqual((copy / "damaged").exists(), damaged, name)
                noticed += damaged
        self.assertGreater(noticed, 0)

    def test_numbers_that_are_not_those_that_were_saved(self):
        """Orbax would restore it without a word."""
        self.save(10, 20)
        path = self.workdir / "checkpoints" / "20" / "checksums" / "metadata"
        sums = json.loads(path.read_text())
        path.write_text(json.dumps(sums | {"ema": sums["ema"] ^ 1}))
        self.check_set_aside()

    def test_empty_folder(self):
        self.save(10)
        (self.workdir / "checkpoints" / "20").mkdir()
        self.check_set_aside()

    def test_half_written(self):
        self.save(10)
        folder = self.workdir / "checkpoints"
        shutil.copytree(folder / "10", folder / f"20{ckpt.HALF_WRITTEN}-1")
        self.check_set_aside(f"20{ckpt.HALF_WRITTEN}-1", "20-half-written")

    def test_the_second_of_a_name_has_a_name_of_its_own(self):
        for name in ("20", "20-again"):
            self.save(10, 20)
            for path in self.files(20):
                path.write_bytes(b"")
            self.check_set_aside(name=name)

    def test_none_that_can_be_read(self):
        self.save(10, 20)
        for path in [*self.files(10), *self.files(20)]:
            path.write_bytes(b"")
        self.assertIsNone(self.restored())
        self.assertCountEqual(os.listdir(self.workdir / "damaged"), ["10", "20"])


class ChecksumTest(absltest.TestCase):
    def test_any_change_of_a_bit_or_place_changes_it(self):
        tree = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.int32(5)}
        changed = []
        for i in range(12):
            other = tree["a"].copy()
            other.view(np.uint32).ravel()[i] ^= 1 << (i % 32)
            changed.append(tree | {"a": other})
        changed += [
            tree | {"a": tree["a"][::-1]},
            tree | {"a": tree["a"][:, ::-1]},
            tree | {"a": np.roll(tree["a"], 1)},
            tree | {"b": np.int32(4)},
        ]
        sums = {ckpt.checksum(t) for t in [tree, *changed]}
        self.assertLen(sums, 1 + len(changed))
        self.assertEqual(ckpt.checksum(tree), ckpt.checksum(jax.tree.map(jnp.array, tree)))

    def test_not_finite_numbers_and_keys_count(self):
        trees = [{"x": jnp.array([v])} for v in (jnp.nan, -jnp.nan, jnp.inf, 0.0, -0.0)]
        trees += [{"x": jax.random.key(seed)} for seed in (1, 2, 3)]
        self.assertLen({ckpt.checksum(tree) for tree in trees}, len(trees))


if __name__ == "__main__":
    absltest.main()
