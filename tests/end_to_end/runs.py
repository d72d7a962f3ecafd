"""Runs of main.py as a user starts it: its flags, its exit code, what it says, its files."""

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags as absl_flags
from absl.testing import flagsaver

from flowmatch_jax import command as entry
from flowmatch_jax.training.checkpoints import PARTS, Checkpoints

ROOT = Path(__file__).parents[2]
DIGITS = "--config=configs/digits_ot.py"
# A whole run in seconds: the same code on a network of a few thousand parameters.
TINY = (
    "--config.network.unet.channels=8",
    "--config.network.unet.multipliers=(1,)",
    "--config.network.unet.attention_sides=()",
    "--config.network.unet.dropout=0.1",
    "--config.optimizer.warmup_steps=5",
    "--config.train.steps=60",
    "--config.train.batch_size=16",
    "--config.train.log_every=5",
    "--config.train.sample_every=20",
    "--config.train.checkpoint_every=10",
    "--config.train.keep_every=50",
    "--config.solver.method=ab2",
    "--config.solver.steps=2",
    "--config.evaluate.samples=4",
    "--config.evaluate.images=11",
    "--config.evaluate.batch_size=8",
    "--config.evaluate.generated=8",
    "--config.figures.nfe=(4,)",
    "--config.figures.reference_nfe=8",
    "--config.figures.seeds=4",
    "--config.figures.generated=8",
    "--config.figures.sample_nfe=(2,4)",
)
# The same without the U-Net, whose programs take most of a run's time.
SMALL = "tests.end_to_end.nets:Small"
SMALL_NET = (*TINY, f"--config.network.name={SMALL}")
# The same in the plane.
TINY_POINTS = (
    "--config.network.mlp.width=8",
    "--config.network.mlp.depth=1",
    "--config.optimizer.warmup_steps=5",
    "--config.train.steps=20",
    "--config.train.batch_size=16",
    "--config.train.log_every=5",
    "--config.train.sample_every=100",
    "--config.train.checkpoint_every=10",
    "--config.train.keep_every=10",
    "--config.solver.method=ab2",
    "--config.solver.steps=2",
    "--config.evaluate.samples=64",
    "--config.evaluate.images=11",
    "--config.evaluate.batch_size=8",
    "--config.figures.nfe=(4,)",
    "--config.figures.reference_nfe=8",
    "--config.figures.seeds=4",
    "--config.figures.sample_nfe=(2,4)",
)
# For runs of which what is trained is tested, and no score.
UNSCORED = "--config.evaluate.after_training=False"


def command(*flags):
    return [sys.executable, str(ROOT / "main.py"), *flags]


def environment(**variables):
    return os.environ | {"PYTHONPATH": str(ROOT), **variables}


def run(*flags):
    """Run to the end in this process, which spares the start of another one.

    Returns:
        What `run_process` returns.
    """
    stdout, stderr = io.StringIO(), io.StringIO()
    program, code = command(*flags)[1:], 0
    with _as_it_was(), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            entry.main(entry.parse_flags(program))
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(program, code, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def _as_it_was():
    """Leave what main.py sets for its whole process as it was: flags, messages, signals."""
    levels = {name: logging.getLogger(name).level for name in (None, "absl", "flowmatch_jax")}
    handlers = list(logging.root.handlers)
    stops = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with flagsaver.flagsaver(), contextlib.chdir(ROOT):
        try:
            yield
        finally:
            logging.captureWarnings(False)
            logging.root.handlers = handlers
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            for number, handler in stops.items():
                signal.signal(number, handler)
    absl_flags.FLAGS.mark_as_parsed()


def run_process(*flags, **variables):
    """Run to the end; returns the finished process with stdout and stderr as text."""
    return subprocess.run(
        command(*flags),
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )


def metrics(workdir):
    """The measurements of a training that a stopped or running process has finished."""
    return [line for line in lines_of(workdir) if "loss" in line]


def lines_of(workdir):
    """The lines of metrics.jsonl that are finished, those of evaluations among them."""
    path = Path(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def evaluations(workdir, step):
    return json.loads((Path(workdir) / "evaluation" / f"{step}.json").read_text())["evaluations"]


def saved_state(workdir):
    """The step of the last checkpoint, and all its arrays by name."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(Path(workdir), read_only=True) as checkpoints:
        step = checkpoints.steps()[0]
    restored = {}
    with ocp.StandardCheckpointer() as reader:
        for part in PARTS:
            folder = checkpoints.folder / str(step) / part
            layout = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here),
                reader.metadata(folder).item_metadata.tree,
            )
            restored[part] = reader.restore(folder, layout)
    return step, restored


def bits(tree):
    """Arrays of the tree as NumPy's; random keys as their data."""

    def array(a):
        is_key = jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(a) if is_key else a)

    return jax.tree.map(array, tree)
