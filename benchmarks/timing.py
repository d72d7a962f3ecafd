"""Timing of alternatives, interleaved, so that a machine whose speed drifts treats them alike."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
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


def ratios(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Median and spread of the ratio, round by round."""
    each = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return {"median": statistics.median(each), "min": min(each), "max": max(each)}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpu_cores": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def write(name: str, record: dict[str, Any]) -> None:
    """Print a record and keep it as benchmarks/results/<name>.json."""
    record = {"machine": machine(), **record}
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))
