"""Seconds from the start of the README's command to the end of its first training step.

    python -m benchmarks.cold_start

Each start has a new workdir. The first start of a round has an empty compilation cache; the second
uses the cache of the first. The run is killed after its first measurement, which is that of the
first step because config.train.log_every is 1.
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
    """Measure the seconds of one start.

    Raises:
        RuntimeError: the run ended before its first step; the message is its output.
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
