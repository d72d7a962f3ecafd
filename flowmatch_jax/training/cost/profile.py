"""Profiles of training steps: a trace, and the operations that take most time."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import jax

from flowmatch_jax.arrays import Batch
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.runtime.mesh import put_batches
from flowmatch_jax.runtime.text import aligned
from flowmatch_jax.training.setup import Run

DISPATCHES = 3  # number of traced dispatches, after one that is not traced
SHOWN = 10  # number of operations in the table
# Parts of an operation's name that describe the program's structure, not the operation's origin.
_STRUCTURE = re.compile(r"jit\(.*\)|cond|while|body|branch_\d+_fun|closed_call|checkpoint")


@dataclass(frozen=True)
class Operation:
    """One operation of a compiled program.

    Attributes:
        name: name in the program, such as "fusion.12".
        shape: shape of the result, such as "f32[16,8,8,64]"; empty if it is unknown.
        origin: modules of the network and primitive from which it was compiled; empty if unknown.
        milliseconds: time per step, summed over all devices of this process.
        share: fraction of the time of all operations.
    """

    name: str
    shape: str
    origin: str
    milliseconds: float
    share: float


def profile_steps(experiment: Experiment, folder: Path) -> list[Operation]:
    """Trace a few training steps from a new state, and rank their operations by time.

    Args:
        experiment: the experiment.
        folder: folder for the trace, which XProf and Perfetto can read.

    Returns:
        All operations of the step, slowest first.

    Raises:
        UserError: a field of the config is incompatible with the devices.
    """
    run, steps = Run.of(experiment), experiment.config.train.steps_per_dispatch
    batches = run.batches()

    def next_batch() -> Batch:
        return put_batches([next(batches) for _ in range(steps)], experiment.mesh)

    state, batch = run.init(), next_batch()
    run.compile(steps, state, batch)
    program = run.programs[steps]
    state, _ = jax.block_until_ready(program(state, batch, run.images))
    with jax.profiler.trace(folder):
        for _ in range(DISPATCHES):
            state, _ = jax.block_until_ready(program(state, next_batch(), run.images))
    newest = max(folder.glob("**/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    seconds = operation_seconds(jax.profiler.ProfileData.from_file(str(newest)))
    return ranked(seconds, program.as_text(), DISPATCHES * steps)


def operation_seconds(trace: jax.profiler.ProfileData) -> Counter[str]:
    """Sum seconds by operation; only accelerators count if the trace has any."""
    planes = {plane.name: _seconds(plane) for plane in trace.planes}
    devices = {name: seconds for name, seconds in planes.items() if name.startswith("/device:")}
    chosen = devices if any(devices.values()) else planes
    return sum(chosen.values(), Counter())


def _seconds(plane: jax.profiler.ProfilePlane) -> Counter[str]:
    seconds: Counter[str] = Counter()
    for line in plane.lines:
        for event in line.events:
            name = dict(event.stats).get("hlo_op")
            if name is None and line.name == "XLA Ops":  # TPUs: the name is the whole operation
                name = event.name.partition(" = ")[0].lstrip("%")
            if name is not None:
                seconds[name] += event.duration_ns * 1e-9
    return seconds


def ranked(seconds: Counter[str], program: str, steps: int) -> list[Operation]:
    """Rank operations by time, slowest first.

    Args:
        seconds: time of each operation over all steps.
        program: text of the compiled program, which has their shapes and origins.
        steps: number of steps.
    """
    described = _described(program)
    total = sum(seconds.values())
    return [
        Operation(name, *described.get(name, ("", "")), 1e3 * s / steps, s / total)
        for name, s in seconds.most_common()
    ]


def _described(program: str) -> dict[str, tuple[str, str]]:
    """Parse a program's text into name -> (shape, origin). Its lines have the form

        %name = f32[2,3]{1,0} fusion(...), calls=%computation, metadata={op_name="..."}

    A fusion without an origin gets that of the last operation in its computation.
    """
    described: dict[str, tuple[str, str]] = {}
    last: dict[str, str] = {}  # computation -> origin
    computation = ""
    for line in program.splitlines():
        if not line.startswith(" "):  # head of a computation; called computations come first
            computation = line.removeprefix("ENTRY ").partition(" ")[0].lstrip("%")
        name, is_operation, operation = line.strip().removeprefix("ROOT ").partition(" = ")
        if not is_operation:
            continue
        shape = re.match(r"\w+\[[\d,]*\]", operation)
        origin = re.search(r'op_name="([^"]*)"', operation)
        called = re.search(r"calls=%?([\w.\-]+)", operation)
        if origin is not None:
            last[computation] = _readable(origin[1])
        of_called = "" if called is None else last.get(called[1], "")
        described[name.lstrip("%")] = (
            "" if shape is None else shape[0],
            of_called if origin is None else last[computation],
        )
    return described


def _readable(op_name: str) -> str:
    """Format an origin, such as "backward UNet/up_1_0/conv_in/conv_general_dilated"."""
    parts = [part for part in op_name.split("/") if not _STRUCTURE.fullmatch(part)]
    readable = re.sub(r"transpose\(jvp\((\w*)\)\)", r"backward \1", "/".join(parts))
    return re.sub(r"jvp\((\w*)\)", r"\1", readable)


def table(operations: list[Operation]) -> str:
    """Format the slowest operations, one per line, and the sum of the others."""
    shown, others = operations[:SHOWN], operations[SHOWN:]
    rows = [(f"{o.milliseconds:.3f}", f"{o.share:.1%}", o.shape, o.origin or o.name) for o in shown]
    if others:
        rest = sum(o.milliseconds for o in others), sum(o.share for o in others)
        rows.append((f"{rest[0]:.3f}", f"{rest[1]:.1%}", "", f"{len(others)} others"))
    rows.insert(0, ("ms per step", "share", "result", "operation"))
    return aligned(rows, right=(0, 1))
