"""Timing of alternatives that take turns: a machine whose speed drifts treats them alike."""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Several processes share a GPU; JAX would take three quarters of its memory in each.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp  # has bfloat16, by name
import numpy as np

RESULTS = Path(__file__).parent / "results"
UNCOUNTED = 4
VERSIONS = ("jax", "jaxlib", "flax", "diffrax", "torch", "torchcfm", "torchdiffeq")

# Made in the process that calls it. It returns when its work is done, with what there is to tell of
# it besides the time.
Call = Callable[[], Any]


@dataclass(frozen=True)
class Turns:
    """What rounds of alternatives took.

    Attributes:
        seconds: of each alternative in each round.
        told: what each returned in the last round.
    """

    seconds: dict[str, list[float]]
    told: dict[str, Any]


def take_turns(alternatives: dict[str, Callable[[], Call]], rounds: int) -> Turns:
    """Seconds of each alternative in each round, after UNCOUNTED rounds; one runs at a time.

    Each has a process of its own: the threads of two libraries in one process disturb each other.
    What has just started disturbs other processes too: a step of ours took 4.7 s in place of 3.5 s
    for three rounds after torch's start. Before all rounds each makes its call once, all of them at
    the same time: a compiler of theirs waits for none of ours.

    Args:
        alternatives: name -> what makes its call there; it must pickle.

    Raises:
        RuntimeError: one of them failed; its traceback is the message.
    """
    turns = Turns({name: [] for name in alternatives}, {})
    with ExitStack() as stack:
        workers = {name: Worker(make) for name, make in alternatives.items()}
        for worker in workers.values():
            stack.callback(worker.close)
            worker.start()
        for worker in workers.values():
            worker.end()
        for count in range(-UNCOUNTED, rounds):
            for name, worker in workers.items():
                worker.start()
                seconds, turns.told[name] = worker.end()
                if count >= 0:
                    turns.seconds[name].append(seconds)
    return turns


class Worker:
    """A process that makes a call and waits for its turns; it begins with the first."""

    def __init__(self, make: Callable[[], Call]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make), daemon=True)

    def start(self) -> None:
        """Let it make one call."""
        if self._process.pid is None:
            self._process.start()
        self._pipe.send("go")

    def end(self) -> tuple[float, Any]:
        """Wait for the call: its seconds and what it returned."""
        while not self._pipe.poll(1):
            if not self._process.is_alive():
                raise RuntimeError(f"a worker ended with exit code {self._process.exitcode}")
        answer = self._pipe.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        if self._process.pid is not None:
            self._process.kill()
            self._process.join()


def _serve(pipe: Connection, make: Callable[[], Call]) -> None:
    try:
        call = make()
        while pipe.recv() == "go":
            begin = time.perf_counter()
            told = call()
            pipe.send((time.perf_counter() - begin, told))
    except Exception:
        pipe.send(traceback.format_exc())


def interleaved(alternatives: dict[str, Call], rounds: int = 9) -> dict[str, list[float]]:
    """The same in this process, for alternatives of one library that are short."""
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for count in range(rounds + 1):
        for name, call in alternatives.items():
            begin = time.perf_counter()
            jax.block_until_ready(call())
            if count:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def products(dtype: str, size: int, count: int) -> Call:
    """``count`` products of matrices size x size, 2 size^3 operations each."""

    @jax.jit
    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, count, lambda _, a: a @ b, a)

    # Orthogonal, so that products keep their size.
    q = np.linalg.qr(np.random.RandomState(0).standard_normal((size, size)))[0]
    a, b = (jnp.asarray(m, dtype) for m in (q, q.T))

    def call() -> None:
        multiply(a, b).block_until_ready()

    return call


@dataclass(frozen=True)
class Ceiling:
    """The matrix products whose rate stands for what a device can do.

    Attributes:
        size, count: of `products`.
    """

    size: int
    count: int

    @property
    def flops(self) -> float:
        return 2.0 * self.size**3 * self.count

    def alternative(self, dtype: str) -> Callable[[], Call]:
        return partial(products, dtype, self.size, self.count)


def ceiling() -> Ceiling:
    """Products large enough for this machine's device."""
    return Ceiling(8192, 50) if on_gpu() else Ceiling(2048, 4)


@dataclass(frozen=True)
class Row:
    """A line of a benchmark's table.

    Attributes:
        name: of the case, the same on every machine.
        unit: of the two below.
        ratio: of ours to what it is held against, round by round: median, min, max.
        ours, against: the same of each.
        note: what else is worth knowing.
    """

    name: str
    unit: str
    ours: dict[str, float]
    ratio: dict[str, float] | None = None
    against: dict[str, float] | None = None
    note: str = ""


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """The spread of the ratio, round by round."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def compared(name: str, unit: str, ours: list[float], against: list[float], note: str = "") -> Row:
    """A row of two quantities, round by round."""
    return Row(name, unit, spread(ours), ratios(ours, against), spread(against), note)


def rates(amount: float, seconds: list[float]) -> list[float]:
    """Amounts a second."""
    return [amount / each for each in seconds]


def on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpu": _cpu_model(),
        "cpu_cores": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        **{name: _version(name) for name in VERSIONS},
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def write(name: str, record: dict[str, Any]) -> None:
    """Print a record and keep it as benchmarks/results/<name>.json, of a GPU as <name>.gpu.json."""
    record = {"machine": machine(), **record}
    path = RESULTS / (f"{name}.gpu.json" if on_gpu() else f"{name}.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def write_rows(name: str, command: str, rounds: int, rows: list[Row]) -> None:
    """The record of a table that `benchmarks.report` puts into BENCHMARKS.md."""
    write(name, {"command": command, "rounds": rounds, "rows": [asdict(row) for row in rows]})
