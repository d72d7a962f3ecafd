"""Seconds from the start of the README's command to the end of its first training step.

    python -m benchmarks.cold_start

Each start has a fresh workdir; the first of a round finds no compiled programs, the second those of
the first. The run is ended when it has written its first measurement, which config.train.log_every
= 1 makes that of the first step.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.timing import compared, write_rows

ROOT = Path(__file__).parents[1]
COMMAND = ("main.py", "--config=configs/digits_ot.py")


def first_step(cache: Path) -> float:
    """Seconds of one start.

    Raises:
        RuntimeError: it ended before its first step; what it said is the message.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        measured = Path(folder) / "metrics.jsonl"
        flags = ("--config.train.log_every=1", f"--workdir={folder}")
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *COMMAND, *flags],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while not (measured.exists() and measured.stat().st_size):
                if process.poll() is not None:
                    output.seek(0)
                    raise RuntimeError(output.read().decode(errors="replace"))
                time.sleep(0.02)
            return time.perf_counter() - begin
        finally:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {"without": [], "warm": []}
    for count in range(rounds + 1):
        with tempfile.TemporaryDirectory() as cache:
            for name, times in seconds.items():
                taken = first_step(Path(cache))
                if count:
                    times.append(taken)
                print(f"{name}: {taken:.1f} s", flush=True)
    name = "first step of the README's command, warm cache: without a cache"
    rows = [compared(name, "s", seconds["warm"], seconds["without"])]
    write_rows("cold_start", "python -m benchmarks.cold_start", rounds, rows)


if __name__ == "__main__":
    main()
