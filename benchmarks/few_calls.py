"""Error and Fréchet distance of fixed-step solvers with few calls of a trained model's field.

    python -m benchmarks.few_calls --workdir=runs/digits_ot
    python -m benchmarks.few_calls --workdir=runs/digits_ot --distances
    python -m benchmarks.few_calls --workdir=runs/digits_reflow --calls 1 2 4
    python -m benchmarks.few_calls --records benchmarks/results/few_calls_digits_ot_seed*.json

The error is the mean squared difference per dimension, in model space, to the solution of dopri5 at
tolerance 1e-6 from the same 256 noises, for each method on each time grid and for the solvers that
--mode=fit_solver has fitted to the run. These noises have no part in a fit. A row of dopri5 has
fixed steps, too. With --distances, the Fréchet distance of config.evaluate.generated samples is
computed for each method on its best grid, and for dopri5 at 1e-5. Prints tables of the mean errors,
of their geometric means and of the distances in Markdown, and records the standard errors of the
means. With --records, prints the means over several runs with distances, from their records.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import flowmatch_jax
from benchmarks.timing import write
from flowmatch_jax.evaluation.quality import judge_samples
from flowmatch_jax.evaluation.reference import make_reference
from flowmatch_jax.evaluation.samples import (
    make_given_sampler,
    make_sampler,
    number_generated,
    sample_inputs,
)
from flowmatch_jax.model import Model
from flowmatch_jax.paths import GaussianPath
from flowmatch_jax.sampling import fitted
from flowmatch_jax.sampling.fit import typical
from flowmatch_jax.sampling.linear import METHODS, Coefficients, calls_per_step, of_method
from flowmatch_jax.solvers import Solver
from flowmatch_jax.times import GRIDS, shift_grid, sway_grid

SHOWN_GRIDS = GRIDS | {
    "shift, k = 0.5": partial(shift_grid, k=0.5),
    "sway, s = 0.5": partial(sway_grid, s=0.5),
}
NOISES = 256

Cells = dict[tuple[str, str], dict[int, float]]  # (method, grid) -> calls -> number


def solvers(
    path: GaussianPath, workdir: Path, numbers: Sequence[int]
) -> dict[tuple[str, str, int], Coefficients]:
    """Return the solver of each cell (method, grid, calls), for these numbers of calls."""
    cells = {}
    for calls in numbers:
        for method in (*METHODS, "dopri5"):
            steps, rest = divmod(calls, calls_per_step(method))
            for name, grid in {} if rest else SHOWN_GRIDS.items():
                cells[method, name, calls] = of_method(method, grid(steps, path), path)
        for file in sorted(workdir.glob(f"solvers/{calls}_calls*.json")):
            kept = file.stem.removeprefix(f"{calls}_calls").removeprefix("_")
            if "guidance" not in kept:
                cells[kept or "fitted", "fitted", calls], _ = fitted.read(file)
    return cells


def make_errors(model: Model) -> Callable[[Coefficients], np.ndarray]:
    """Create a function that computes the errors of a solver, [NOISES]."""
    inputs, key = sample_inputs(model.experiment, NOISES), jax.random.key(1234)
    by_coefficients = make_given_sampler(model.experiment, NOISES)
    accurately = make_given_sampler(model.experiment, NOISES, Solver(rtol=1e-6, atol=1e-6))
    accurate = np.asarray(accurately(model.params, key, inputs).x, np.float64)

    def errors(coefficients: Coefficients) -> np.ndarray:
        x = np.asarray(by_coefficients(model.params, key, inputs, coefficients).x)
        return ((x - accurate) ** 2).reshape(NOISES, -1).mean(axis=1)

    return errors


def statistics(errors: np.ndarray) -> dict[str, float]:
    """Return the mean of errors, its standard error and their geometric mean."""
    spread = float(errors.std(ddof=1) / math.sqrt(len(errors)))
    means = {"error": float(errors.mean()), "geometric_mean": typical(errors)}
    return means | {"standard_error": spread}


def make_distance(model: Model) -> Callable[[Solver | Coefficients], tuple[float, float]]:
    """Create a function that computes the NFE and the Fréchet distance of a solver's samples."""
    experiment = model.experiment
    reference, count = make_reference(experiment), number_generated(experiment)
    by_coefficients = make_sampler(experiment, experiment.config.evaluate.samples)

    def distance(solver: Solver | Coefficients) -> tuple[float, float]:
        sampler = partial(by_coefficients, coefficients=solver)
        if isinstance(solver, Solver):
            sampler = make_sampler(experiment, experiment.config.evaluate.samples, solver)
        judged = judge_samples(experiment, sampler, model.params, count, reference, silent=True)
        return judged["sample_nfe"], judged[f"fd_{experiment.extractor.name}"]

    return distance


def table(cells: Cells) -> str:
    """Format numbers as a Markdown table; the smallest of each column is bold."""
    numbers = sorted({n for row in cells.values() for n in row})
    least = {n: min(row[n] for row in cells.values() if n in row) for n in numbers}

    def cell(row: dict[int, float], n: int) -> str:
        shown = f"{row[n]:.3g}" if n in row else ""
        return f"**{shown}**" if row.get(n) == least[n] else shown

    head = ("method", "grid", *(f"{n} calls" for n in numbers))
    body = [(*names, *(cell(row, n) for n in numbers)) for names, row in cells.items()]
    lines = [head, ("---",) * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def over_runs(records: Sequence[dict[str, Any]]) -> str:
    """Format the means over runs, for each method on the grids that are best for the runs."""
    rows: list[dict[str, Any]] = []
    for record in records:
        errors = {(row["method"], row["grid"], row["calls"]): row for row in record["rows"]}
        rows += [errors[d["method"], d["grid"], d["calls"]] | d for d in record["distances"]]
    grids: dict[str, dict[str, None]] = {}
    for row in rows:
        grids.setdefault(row["method"], {})[row["grid"]] = None
    titles = {
        "geometric_mean": "geometric means of the errors",
        "error": "means of the errors",
        "distance": "distances",
    }
    tables = []
    for name, title in titles.items():
        found: dict[tuple[str, str], dict[int, list[float]]] = {}
        for row in rows:
            label = (row["method"], " / ".join(grids[row["method"]]))
            found.setdefault(label, {}).setdefault(row["calls"], []).append(row[name])
        means = {m: {n: float(np.mean(v)) for n, v in row.items()} for m, row in found.items()}
        tables.append(f"Over {len(records)} runs, {title}:\n\n{table(means)}")
    accurate = [record["accurate"] for record in records]
    nfe, distance = (np.mean([each[name] for each in accurate]) for name in ("nfe", "distance"))
    return "\n\n".join([*tables, f"dopri5 at 1e-5: NFE {nfe:.1f}, distance {distance:.3f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--workdir", type=Path)
    what.add_argument("--records", type=Path, nargs="+")
    parser.add_argument("--distances", action="store_true")
    parser.add_argument("--calls", type=int, nargs="+", default=(4, 6, 8, 10))
    flags = parser.parse_args()
    if flags.records:
        print(over_runs([json.loads(path.read_text()) for path in flags.records]))
        return
    model = flowmatch_jax.load(flags.workdir)
    made = solvers(model.experiment.path, flags.workdir, flags.calls)
    errors_of = make_errors(model)
    errors, typical_errors, records = {}, {}, []
    for (method, grid, calls), coefficients in made.items():
        found = statistics(errors_of(coefficients))
        errors.setdefault((method, grid), {})[calls] = found["error"]
        typical_errors.setdefault((method, grid), {})[calls] = found["geometric_mean"]
        records.append({"method": method, "grid": grid, "calls": calls} | found)
        print(*records[-1].values(), file=sys.stderr)
    result = {"step": model.step, "noises": NOISES, "rows": records}
    print(f"{table(errors)}\n\nGeometric means:\n\n{table(typical_errors)}")
    if flags.distances:
        result["accurate"], distances = compare_distances(model, made, typical_errors)
        result["distances"] = [
            {"method": method, "grid": grid, "calls": calls, "distance": value}
            for (method, grid), row in distances.items()
            for calls, value in row.items()
        ]
        print(f"\ndopri5 at 1e-5: {result['accurate']}\n\n{table(distances)}")
    write(f"few_calls_{flags.workdir.name}", result)


def compare_distances(
    model: Model, made: dict[tuple[str, str, int], Coefficients], errors: Cells
) -> tuple[dict[str, float], Cells]:
    """Return dopri5's NFE and distance, and the distances of each method on its best grid.

    The best grid is the one with the smallest geometric mean of the typical errors at all calls.
    """
    distance = make_distance(model)
    nfe, accurate = distance(Solver("dopri5", rtol=1e-5, atol=1e-5))
    by_method: dict[str, dict[str, float]] = {}
    for (method, grid), row in errors.items():
        by_method.setdefault(method, {})[grid] = float(np.mean(np.log(list(row.values()))))
    cells: Cells = {}
    for method, grids in by_method.items():
        grid = min(grids, key=grids.__getitem__)
        for calls in errors[method, grid]:
            _, value = distance(made[method, grid, calls])
            cells.setdefault((method, grid), {})[calls] = value
            print(method, grid, calls, value, file=sys.stderr)
    return {"nfe": nfe, "distance": accurate}, cells


if __name__ == "__main__":
    main()
