"""Timing of alternatives in turns, so that drifts in a machine's speed affect all of them alike."""

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

# Several processes share a GPU; JAX would preallocate three quarters of its memory in each.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp  # provides bfloat16 by name
import numpy as np

RESULTS = Path(__file__).parent / "results"
UNCOUNTED = 4  # warm-up rounds
VERSIONS = ("jax", "jaxlib", "flax", "diffrax", "torch", "torchcfm", "torchdiffeq")

# A call is created in the process that runs it. It returns when its work is done; its return value
# is recorded beside the time.
Call = Callable[[], Any]


@dataclass(frozen=True)
class Turns:
    """Timings of alternatives.

    Attributes:
        seconds: seconds of each alternative in each round.
        told: return value of each alternative in the last round.
    """

    seconds: dict[str, list[float]]
    told: dict[str, Any]


def take_turns(alternatives: dict[str, Callable[[], Call]], rounds: int) -> Turns:
    """Time each alternative in each round, one at a time, after UNCOUNTED warm-up rounds.

    Each alternative has its own process, because the threads of two libraries in one process
    disturb each other. A process that has just started also disturbs the others: our step took
    4.7 s instead of 3.5 s for three rounds after torch's start. Before the rounds all alternatives
    make one call at the same time, so that they compile concurrently.

    Args:
        alternatives: name -> function that creates the call in its process; it must pickle.
        rounds: number of timed rounds.

    Raises:
        RuntimeError: an alternative failed; the message is its traceback.
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
    """A process that creates a call and runs it on request; it starts with the first request."""

    def __init__(self, make: Callable[[], Call]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make), daemon=True)

    def start(self) -> None:
        """Request one call."""
        if self._process.pid is None:
            self._process.start()
        self._pipe.send("go")

    def end(self) -> tuple[float, Any]:
        """Wait for the call; returns its seconds and its return value."""
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
    """Time short alternatives of one library in turns in this process."""
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for count in range(rounds + 1):
        for name, call in alternatives.items():
            begin = time.perf_counter()
            jax.block_until_ready(call())
            if count:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def products(dtype: str, size: int, count: int) -> Call:
    """Create a call of ``count`` products of size x size matrices, 2 size^3 operations each."""

    @jax.jit
    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, count, lambda _, a: a @ b, a)

    # Orthogonal matrices preserve the scale of the products.
    q = np.linalg.qr(np.random.RandomState(0).standard_normal((size, size)))[0]
    a, b = (jnp.asarray(m, dtype) for m in (q, q.T))

    def call() -> None:
        multiply(a, b).block_until_ready()

    return call


@dataclass(frozen=True)
class Ceiling:
    """Matrix products whose rate is taken as the peak of a device.

    Attributes:
        size, count: arguments of `products`.
    """

    size: int
    count: int

    @property
    def flops(self) -> float:
        return 2.0 * self.size**3 * self.count

    def alternative(self, dtype: str) -> Callable[[], Call]:
        return partial(products, dtype, self.size, self.count)


def ceiling() -> Ceiling:
    """Return products that are large enough for this machine's device."""
    return Ceiling(8192, 50) if on_gpu() else Ceiling(2048, 4)


@dataclass(frozen=True)
class Row:
    """A row of a benchmark's table.

    Attributes:
        name: name of the case, equal on all machines.
        unit: unit of ``ours`` and ``against``.
        ours, against: our result and the one it is compared with: median, min, max.
        ratio: ours / against per round: median, min, max.
        note: additional information.
    """

    name: str
    unit: str
    ours: dict[str, float]
    ratio: dict[str, float] | None = None
    against: dict[str, float] | None = None
    note: str = ""


def spread(values: list[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Return the spread of the ratio per round."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def compared(name: str, unit: str, ours: list[float], against: list[float], note: str = "") -> Row:
    """Create a row that compares two quantities per round."""
    return Row(name, unit, spread(ours), ratios(ours, against), spread(against), note)


def rates(amount: float, seconds: list[float]) -> list[float]:
    """Return amounts per second."""
    return [amount / each for each in seconds]


def on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def machine() -> dict[str, Any]:
    """Describe this machine and its packages."""
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
    """Print a record and write it to benchmarks/results/<name>.json, or <name>.gpu.json on GPUs."""
    record = {"machine": machine(), **record}
    path = RESULTS / (f"{name}.gpu.json" if on_gpu() else f"{name}.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def write_rows(name: str, command: str, rounds: int, rows: list[Row]) -> None:
    """Write the record of a table that `benchmarks.report` includes in BENCHMARKS.md."""
    write(name, {"command": command, "rounds": rounds, "rows": [asdict(row) for row in rows]})
