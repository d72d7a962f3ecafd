import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl.testing import absltest, parameterized

from flowmatch_jax.runtime.errors import RunStopped, UserError
from flowmatch_jax.runtime.mesh import make_mesh, with_shardings
from flowmatch_jax.training import checkpoints as ckpt
from flowmatch_jax.training import seals
from flowmatch_jax.training.optimizer import adam
from flowmatch_jax.training.state import init_state

ROOT = Path(__file__).parents[2]
# Restores what a process with one device saved, in one with eight and the state split over them.
ON_EIGHT_DEVICES = """
import sys
from pathlib import Path
import jax
import numpy as np
from flowmatch_jax.runtime.mesh import make_mesh, with_shardings
from flowmatch_jax.training import checkpoints as ckpt
from flowmatch_jax.training import seals
from tests.training.checkpoints_test import bits, make_state

layout = with_shardings(jax.eval_shape(lambda: make_state(width=16)), make_mesh(fsdp=8))
with ckpt.Checkpoints(Path(sys.argv[1])) as checkpoints:
    state = checkpoints.restore(7, layout)
    w = state.params["layer"]["w"]
    assert w.addressable_shards[0].data.shape == (2, 2), w.sharding
    for got, saved in zip(bits(state), bits(make_state(width=16)), strict=True):
        np.testing.assert_array_equal(got, saved)
    checkpoints.save(8, state)
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
        with ckpt.Checkpoints(self.workdir, keep_last=9) as checkpoints:
            for step in steps:
                checkpoints.save(step, make_state(**state).replace(step=jnp.int32(step)))

    def layout(self, **state):
        return with_shardings(jax.eval_shape(lambda: make_state(**state)), make_mesh())

    def assertSameBits(self, got, wanted):
        for a, b in zip(bits(got), bits(wanted), strict=True):
            np.testing.assert_array_equal(a, b)


class CheckpointsTest(WorkdirTestCase):
    def test_everything_comes_back(self):
        self.save(7)
        with ckpt.Checkpoints(self.workdir) as checkpoints:
            self.assertEqual(checkpoints.steps(), [7])
            self.assertSameBits(checkpoints.restore(7, self.layout()), make_state())

    def test_weights_alone(self):
        self.save(7)
        state, layout = make_state(), self.layout().params
        with ckpt.Checkpoints(self.workdir) as checkpoints:
            raw, ema = (checkpoints.restore_weights(7, w, layout) for w in ("raw", "ema"))
        np.testing.assert_array_equal(raw["layer"]["w"], state.params["layer"]["w"])
        np.testing.assert_array_equal(ema["layer"]["w"], state.ema["layer"]["w"])

    def test_the_last_n_and_every_mth_are_kept(self):
        with ckpt.Checkpoints(self.workdir, keep_last=2, keep_every=30) as checkpoints:
            for step in range(10, 101, 10):
                checkpoints.save(step, make_state())
        kept = sorted(int(path.name) for path in (self.workdir / "checkpoints").iterdir())
        self.assertEqual(kept, [30, 60, 90, 100])

    def test_another_network_is_refused(self):
        self.save(7)
        other = self.layout().replace(params={"other": jax.ShapeDtypeStruct((2,), np.float32)})
        with ckpt.Checkpoints(self.workdir) as checkpoints:
            for layout in (self.layout(width=4), other):
                with self.assertRaisesRegex(UserError, "another network"):
                    checkpoints.restore_newest(layout)
                with self.assertRaisesRegex(UserError, "another network"):
                    checkpoints.restore_weights(7, "raw", layout.params)
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
        with ckpt.Checkpoints(self.workdir) as checkpoints:
            back = checkpoints.restore(8, self.layout(width=16))
        self.assertSameBits(back, make_state(width=16))


class DamageTest(WorkdirTestCase):
    """Whatever befalls the newest checkpoint, it is kept aside and the one before is used."""

    def files(self, step):
        folder = self.workdir / "checkpoints" / str(step)
        return sorted(path for path in folder.rglob("*") if path.is_file())

    def restored(self):
        with ckpt.Checkpoints(self.workdir) as checkpoints:
            return checkpoints.restore_newest(self.layout())

    def check_set_aside(self, step=20, name="20"):
        with self.assertLogs("flowmatch_jax.training.checkpoints", "WARNING") as logs:
            self.assertEqual(self.restored().step, 10)
        self.assertStartsWith(logs.records[0].getMessage(), f"Checkpoint {step}")
        self.assertTrue((self.workdir / "damaged" / name).is_dir())
        kept = [path.name for path in (self.workdir / "checkpoints").iterdir()]
        self.assertEqual(kept, ["10"])

    def test_any_file_cut_short_missing_or_changed(self):
        self.save(10, 20)
        names = [path.relative_to(self.workdir) for path in self.files(20)]

        def flip(path):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)

        def cut(path):
            os.truncate(path, path.stat().st_size // 2)

        for harm in (cut, os.remove, flip):
            for name in names:
                if harm is not os.remove and not (self.workdir / name).stat().st_size:
                    continue
                if name.name == seals.SEAL:
                    continue  # of which not each byte counts; without it, see below
                copy = Path(self.create_tempdir().full_path) / "run"
                shutil.copytree(self.workdir, copy)
                harm(copy / name)
                with ckpt.Checkpoints(copy) as checkpoints:
                    state = checkpoints.restore_newest(self.layout())
                self.assertEqual(state.step, 10, f"{harm} {name}")
                self.assertSameBits(state, make_state().replace(step=jnp.int32(10)))
                self.assertTrue((copy / "damaged" / "20").exists())

    @parameterized.parameters(b"", b"{", b"[1]", b'{"params/x": {"bytes": 3}}', b"\xff")
    def test_a_seal_that_is_none(self, data):
        self.save(10, 20)
        (self.workdir / "checkpoints" / "20" / seals.SEAL).write_bytes(data)
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

    def test_process_0_names_what_is_set_aside(self):
        """Another process may still find the folder of before, which process 0 removes."""

        def gather(name, found):
            met.append((name, found))
            return ["20-half-written", found]

        met, half_written = [], f"20{ckpt.HALF_WRITTEN}-1"
        (self.workdir / "checkpoints" / half_written).mkdir(parents=True)
        (self.workdir / "damaged" / "20-half-written").mkdir(parents=True)
        with mock.patch.object(ckpt, "gather", gather), mock.patch.object(shutil, "rmtree"):
            self.assertIsNone(self.restored())
        self.assertEqual(met, [(f"{half_written} is set aside", "20-half-written-again")])
        self.assertEqual(os.listdir(self.workdir / "damaged"), ["20-half-written"])

    def test_the_second_of_a_name_has_a_name_of_its_own(self):
        for name in ("20", "20-again"):
            self.save(10, 20)
            for path in self.files(20):
                path.write_bytes(b"")
            self.check_set_aside(name=name)

    def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(self):
        self.save(10, 20)
        for path in [*self.files(10), *self.files(20)]:
            path.write_bytes(b"")
        for _ in range(2):  # nor at the next start, when they lie aside
            with self.assertRaisesRegex(
                RunStopped, "none .* is whole; .*/damaged has .*start over"
            ):
                self.restored()
            self.assertCountEqual(os.listdir(self.workdir / "damaged"), ["10", "20"])
        shutil.rmtree(self.workdir / "damaged")
        self.assertIsNone(self.restored())

    def test_a_run_killed_in_its_first_checkpoint_starts_over(self):
        (self.workdir / "checkpoints" / f"20{ckpt.HALF_WRITTEN}-1").mkdir(parents=True)
        self.assertIsNone(self.restored())
        self.assertIsNone(self.restored())


class SystemTest(WorkdirTestCase):
    """What is the system's is told, and nothing is moved."""

    @parameterized.parameters(
        (OSError(errno.EIO, "Input/output error"), "OSError: .*Input/output error"),
        (OSError(errno.ESTALE, "Stale file handle"), "Stale"),
        (PermissionError(errno.EACCES, "Permission denied"), "PermissionError: .*denied"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many"),
        (MemoryError(), "MemoryError"),
        (TypeError("a fault of our own"), "a fault of our own"),
    )
    def test_errors_that_are_no_damage(self, error, message):
        self.save(10, 20)
        before = sorted(self.workdir.rglob("*"))
        places = [(ocp.CheckpointManager, "restore")]
        if isinstance(error, OSError):
            places.append((seals, "_hash"))
        for place, name in places:
            with (
                mock.patch.object(place, name, side_effect=error),
                ckpt.Checkpoints(self.workdir) as checkpoints,
                self.assertRaisesRegex(RunStopped, f"checkpoints/20 .*{message}.*Nothing"),
            ):
                checkpoints.restore_newest(self.layout())
            self.assertEqual(sorted(self.workdir.rglob("*")), before)
        with ckpt.Checkpoints(self.workdir) as checkpoints:
            self.assertEqual(checkpoints.restore_newest(self.layout()).step, 20)

    def test_a_checkpoint_from_before_seals(self):
        self.save(10)
        (self.workdir / "checkpoints" / "10" / seals.SEAL).unlink()
        with ckpt.Checkpoints(self.workdir) as checkpoints:
            self.assertEqual(checkpoints.restore_newest(self.layout()).step, 10)

    def test_what_cannot_be_read_back_is_told_soon_after_it_is_written(self):
        """Orbax looks for parts of it by a pattern, in which [x] is a letter."""
        with ckpt.Checkpoints(self.workdir / "[x]") as checkpoints:
            checkpoints.save(10, make_state())
            with self.assertRaisesRegex(RunStopped, "checkpoints/10 was written, and cannot be"):
                checkpoints.finish()


if __name__ == "__main__":
    absltest.main()
