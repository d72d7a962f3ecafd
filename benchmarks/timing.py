"""Timing of alternatives, interleaved, so that a machine whose speed drifts treats them alike."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax


def interleaved(
    alternatives: dict[str, Callable[[], Any]], rounds: int = 9
) -> dict[str, list[float]]:
    """Seconds of each alternative in each round, after one uncounted round."""
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for count in range(rounds + 1):
        for name, call in alternatives.items():
            begin = time.perf_counter()
            jax.block_until_ready(call())
            if count:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def take_turns(
    makers: dict[str, Callable[[], Callable[[], Any]]], rounds: int = 5
) -> dict[str, list[float]]:
    """Seconds of each alternative in each round, after one uncounted round.

    Each lives in a process of its own, and waits while others run: the threads that torch leaves
    spinning cost JAX in the same process a fifth of its speed.

    Args:
        makers: name -> function, of a module's top level, that makes what is timed.
    """
    context = multiprocessing.get_context("spawn")
    workers, pipes = [], {}
    for name, make in makers.items():
        pipes[name], theirs = context.Pipe()
        workers.append(context.Process(target=_serve, args=(theirs, make), daemon=True))
        workers[-1].start()
        theirs.close()
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for count in range(rounds + 1):
        for name, pipe in pipes.items():
            pipe.send("go")
            taken = pipe.recv()
            if count:
                seconds[name].append(taken)
    for pipe in pipes.values():
        pipe.close()
    for worker in workers:
        worker.join()
    return seconds


def _serve(pipe: Connection, make: Callable[[], Callable[[], Any]]) -> None:
    call = None
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        if call is None:
            call = make()
        begin = time.perf_counter()
        jax.block_until_ready(call())
        pipe.send(time.perf_counter() - begin)


def summary(values: list[float]) -> dict[str, float]:
    """Median and spread."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Median and spread of the ratio, round by round."""
    each = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return summary(each)


PACKAGES = ("jax", "flax", "optax", "diffrax", "torch", "torchcfm", "torchdiffeq")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": _processor(),
        "cpu_cores": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES if _installed(name)},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return platform.processor() if named is None else named[1]


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def peers_installed() -> bool:
    """Whether requirements-bench.txt is."""
    return all(map(_installed, ("torch", "torchcfm", "torchdiffeq")))


def is_gpu() -> bool:
    return jax.default_backend() == "gpu"


def results(name: str) -> Path:
    """benchmarks/results/<name>.json, or <name>.gpu.json where there is one."""
    suffix = ".gpu.json" if is_gpu() else ".json"
    return Path(__file__).parent / "results" / f"{name}{suffix}"


def write(name: str, record: dict[str, Any]) -> None:
    """Print a record, with the machine's description, and keep it among the results."""
    record = {"machine": machine(), **record}
    path = results(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))
