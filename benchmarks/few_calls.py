"""Error of fixed-step solvers with few calls of a trained model's field, by method and time grid.

    python -m benchmarks.few_calls --workdir=runs/digits_ot

The error is the mean squared difference per dimension, in model space, to the solution of dopri5 at
tolerance 1e-6 from the same 256 noises. Prints a table in Markdown, and records the standard errors
over the noises too. One program is compiled for each cell of the table.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np

import flowmatch_jax
from benchmarks.timing import write
from flowmatch_jax.evaluation.samples import sample_inputs
from flowmatch_jax.model import Model
from flowmatch_jax.paths import PATHS, GaussianPath
from flowmatch_jax.solvers import Solver, count_calls
from flowmatch_jax.times import GRIDS, shift_grid, sway_grid

CALLS = (4, 6, 8, 10)
METHODS = ("euler", "midpoint", "heun", "rk4", "ab2", "ab3", "abm2", "dpmpp2m")
SHOWN_GRIDS = GRIDS | {
    "shift, k = 0.5": partial(shift_grid, k=0.5),
    "sway, s = 0.5": partial(sway_grid, s=0.5),
}
NOISES = 256

Errors = dict[int, tuple[float, float]]  # mean and standard error by number of calls


def make_error(model: Model) -> Callable[[Solver], tuple[float, float]]:
    """Create a function that computes the error of a solver and its standard error."""
    x0 = model.noise(jax.random.key(0), NOISES)
    inputs = sample_inputs(model.experiment, NOISES)

    def solve(solver: Solver) -> np.ndarray:
        sample = lambda params: model.experiment.generate(  # noqa: E731
            params, x0, jax.random.key(1), inputs, solver
        )
        return np.asarray(jax.jit(sample)(model.params).x, np.float64)

    accurate = solve(Solver(rtol=1e-6, atol=1e-6))

    def error(solver: Solver) -> tuple[float, float]:
        each = ((solve(solver) - accurate) ** 2).reshape(NOISES, -1).mean(axis=1)
        return float(each.mean()), float(each.std(ddof=1) / math.sqrt(NOISES))

    return error


def solvers(path: GaussianPath) -> Iterator[tuple[str, str, int, Solver]]:
    """List (method, grid, calls, solver) of all cells; some methods take even calls alone."""
    for method in METHODS:
        for grid, make in SHOWN_GRIDS.items():
            for calls in CALLS:
                steps, rest = divmod(calls, count_calls(method, 1))
                if not rest:
                    yield method, grid, calls, Solver(method, grid=make(steps, path), path=path)


def table(rows: dict[tuple[str, str], Errors]) -> str:
    """Format mean errors as a Markdown table; the smallest of each column is bold."""
    least = {n: min(errors[n] for errors in rows.values() if n in errors) for n in CALLS}

    def cell(errors: Errors, n: int) -> str:
        shown = f"{errors[n][0]:.2e}" if n in errors else ""
        return f"**{shown}**" if errors.get(n) == least[n] else shown

    head = ("method", "grid", *(f"{n} calls" for n in CALLS))
    body = [(*names, *(cell(errors, n) for n in CALLS)) for names, errors in rows.items()]
    lines = [head, ("---",) * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--path", choices=sorted(PATHS), help="path along which samples are drawn")
    flags = parser.parse_args()
    model = flowmatch_jax.load(flags.workdir)
    path = model.experiment.path if flags.path is None else PATHS[flags.path]()
    error, rows = make_error(model), {}
    for method, grid, calls, solver in solvers(path):
        rows.setdefault((method, grid), {})[calls] = error(solver)
        print(method, grid, calls, *rows[method, grid][calls], file=sys.stderr)
    records = [
        {"method": method, "grid": grid, "calls": calls, "error": mean, "standard_error": spread}
        for (method, grid), errors in rows.items()
        for calls, (mean, spread) in errors.items()
    ]
    name = "_".join(filter(None, ("few_calls", flags.workdir.name, flags.path)))
    write(name, {"step": model.step, "noises": NOISES, "rows": records})
    print(table(rows))


if __name__ == "__main__":
    main()
