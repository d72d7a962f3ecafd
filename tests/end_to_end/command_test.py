"""What the command line promises of every run, whatever it is asked for."""

import signal
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl.testing import absltest, parameterized

from flowmatch_jax.evaluation import likelihoods
from flowmatch_jax.report import curves
from flowmatch_jax.training.checkpoints import PARTS, Checkpoints
from tests.end_to_end.runs import ROOT, TINY_POINTS, bits, command, environment, run, saved_state
from tests.runtime.children import free_port

LIMIT = 120  # seconds after which a process hangs
RUN = (
    "--config=configs/checkerboard_ot.py",
    *TINY_POINTS,
    "--config.train.steps=2",
    "--config.optimizer.warmup_steps=1",
)


def start(arguments, **variables):
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment(**variables), stderr=subprocess.PIPE, text=True
    )


def end(child):
    """Exit code and what was said on standard error."""
    try:
        _, stderr = child.communicate(timeout=LIMIT)
    finally:
        child.kill()
    return child.returncode, stderr


class CommandTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.plain, cls.wide = cls.folder / "plain", cls.folder / "wide"
        wide = start(command(*RUN, f"--workdir={cls.wide}"), JAX_ENABLE_X64="1")
        plain = run(*RUN, f"--workdir={cls.plain}")
        for code, stderr in ((plain.returncode, plain.stderr), end(wide)):
            if code:
                raise AssertionError(stderr)

    def test_float32_whatever_jax_enable_x64_says(self):
        with Checkpoints(self.wide, read_only=True) as checkpoints, ocp.StandardCheckpointer() as r:
            for part in PARTS:
                tree = r.metadata(checkpoints.folder / "2" / part).item_metadata.tree
                kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}
                self.assertNoCommonElements(kinds, ("float64", "int64"))
        (_, wide), (_, plain) = map(saved_state, (self.wide, self.plain))
        jax.tree.map(np.testing.assert_array_equal, bits(wide), bits(plain))

    @parameterized.parameters(
        ("evaluate", likelihoods, "to_host"), ("figures", curves, "paths_of_samples")
    )
    def test_sigterm_outside_training(self, mode, module, function):
        """While likelihoods are scored and figures are drawn."""
        interrupt = mock.Mock(side_effect=lambda *_: signal.raise_signal(signal.SIGTERM))
        with mock.patch.object(module, function, interrupt):
            child = run(*RUN, f"--mode={mode}", f"--workdir={self.plain}")
        interrupt.assert_called_once()
        self.assertEqual(child.returncode, 1, child.stderr)
        last = child.stderr.splitlines()[-1]
        self.assertEqual(last, "error: SIGTERM: the same command goes on from what is saved")
        self.assertNotIn("Traceback", child.stderr)

    def test_processes_of_different_modes(self):
        join = (f"--coordinator=127.0.0.1:{free_port()}", "--processes=2")
        children = [
            start(
                command(*RUN, f"--mode={mode}", f"--workdir={self.plain}", *join, f"--process={i}")
            )
            for i, mode in enumerate(("evaluate", "sample"))
        ]
        for code, stderr in map(end, children):
            self.assertEqual(code, 2, stderr)
            self.assertStartsWith(
                stderr, "error: --mode of process 1 of 2: got 'sample'; process 0"
            )
            self.assertEqual(stderr.count("\n"), 1, stderr)


if __name__ == "__main__":
    absltest.main()
