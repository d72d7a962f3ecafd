"""Where the time of training steps goes: a trace of them, and their costliest operations."""

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

DISPATCHES = 3  # that are traced, after one that is not
SHOWN = 10
# Parts of an operation's name that say how the program is built, not where it comes from.
_STRUCTURE = re.compile(r"jit\(.*\)|cond|while|body|branch_\d+_fun|closed_call|checkpoint")


@dataclass(frozen=True)
class Operation:
    """One operation of a compiled program.

    Attributes:
        name: in the program, such as "fusion.12".
        shape: of its result, such as "f32[16,8,8,64]"; empty where the program does not tell.
        origin: modules of the network and primitive that it was made of; likewise.
        milliseconds: that it takes in a step, over all devices of this process.
        share: of the time of all operations.
    """

    name: str
    shape: str
    origin: str
    milliseconds: float
    share: float


def profile_steps(experiment: Experiment, folder: Path) -> list[Operation]:
    """Trace a few training steps from a fresh state, and rank their operations by time.

    Args:
        folder: the trace is written here, for XProf or Perfetto.

    Returns:
        All operations of the step, the costliest first.

    Raises:
        UserError: a field of the config that does not fit the devices.
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
    """Seconds by the operations' names; of accelerators where there are any in the trace."""
    planes = {plane.name: _seconds(plane) for plane in trace.planes}
    devices = {name: seconds for name, seconds in planes.items() if name.startswith("/device:")}
    chosen = devices if any(devices.values()) else planes
    return sum(chosen.values(), Counter())


def _seconds(plane: jax.profiler.ProfilePlane) -> Counter[str]:
    seconds: Counter[str] = Counter()
    for line in plane.lines:
        for event in line.events:
            name = dict(event.stats).get("hlo_op")
            if name is None and line.name == "XLA Ops":  # of TPUs, named by the whole operation
                name = event.name.partition(" = ")[0].lstrip("%")
            if name is not None:
                seconds[name] += event.duration_ns * 1e-9
    return seconds


def ranked(seconds: Counter[str], program: str, steps: int) -> list[Operation]:
    """Operations by time, the costliest first.

    Args:
        seconds: of each in so many steps.
        program: the compiled program as text, which has their shapes and origins.
    """
    described = _described(program)
    total = sum(seconds.values())
    return [
        Operation(name, *described.get(name, ("", "")), 1e3 * s / steps, s / total)
        for name, s in seconds.most_common()
    ]


def _described(program: str) -> dict[str, tuple[str, str]]:
    """Name -> (shape, origin), from lines such as

        %name = f32[2,3]{1,0} fusion(...), calls=%computation, metadata={op_name="..."}

    A fusion that has no origin of its own has that of what it computes last.
    """
    described: dict[str, tuple[str, str]] = {}
    last: dict[str, str] = {}  # computation -> origin
    computation = ""
    for line in program.splitlines():
        if not line.startswith(" "):  # a computation's head; those that are called come first
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
    """Such as "backward UNet/up_1_0/conv_in/conv_general_dilated"."""
    parts = [part for part in op_name.split("/") if not _STRUCTURE.fullmatch(part)]
    readable = re.sub(r"transpose\(jvp\((\w*)\)\)", r"backward \1", "/".join(parts))
    return re.sub(r"jvp\((\w*)\)", r"\1", readable)


def table(operations: list[Operation]) -> str:
    """The costliest operations, a line each, and what the others take together."""
    shown, others = operations[:SHOWN], operations[SHOWN:]
    rows = [(f"{o.milliseconds:.3f}", f"{o.share:.1%}", o.shape, o.origin or o.name) for o in shown]
    if others:
        rest = sum(o.milliseconds for o in others), sum(o.share for o in others)
        rows.append((f"{rest[0]:.3f}", f"{rest[1]:.1%}", "", f"{len(others)} others"))
    rows.insert(0, ("ms a step", "share", "result", "operation"))
    return aligned(rows, right=(0, 1))
