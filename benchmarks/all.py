"""Run all benchmarks of BENCHMARKS.md one after another, and rewrite the page.

    pip install -r requirements-bench.txt  # and the command in it
    python -m benchmarks.all [--rounds=7]

Each benchmark runs in its own process; if one fails, the others still run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks import report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, help="default: each benchmark's own")
    parser.add_argument("--only", default=",".join(report.TITLES), help="benchmarks, by name")
    flags = parser.parse_args()
    rounds = [] if flags.rounds is None else [f"--rounds={flags.rounds}"]
    failed = []
    for name in flags.only.split(","):
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *rounds]).returncode:
            failed.append(name)
    report.main()
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
