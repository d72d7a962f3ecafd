"""The paper's tables and overlaid figures, from the folders of finished runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from flowmatch_jax.errors import UserError
from flowmatch_jax.evaluation import runs as runs_
from flowmatch_jax.evaluation.overlays import draw_overlays
from flowmatch_jax.evaluation.runs import Run
from flowmatch_jax.evaluation.tables import Cell, Column, Table
from flowmatch_jax.files import write_atomically
from flowmatch_jax.metrics.extractors import score_name
from flowmatch_jax.workdir import write_csv

logger = logging.getLogger(__name__)

# A row's runs differ in their seed alone.
Rows = dict[str, list[Run]]


def write_report(workdirs: Sequence[Path], folder: Path) -> None:
    """Write report.md with table1 and table4 (.md, .csv, .tex) and the figures beside it.

    Args:
        workdirs: of runs; those that differ in nothing but the seed share a row.
        folder: of the report.

    Raises:
        UserError: a folder that is no evaluated run, or runs that were not evaluated alike.
    """
    runs = [runs_.load_run(workdir) for workdir in dict.fromkeys(workdirs)]
    if not runs:
        raise UserError("--runs", "", "give the folders of one or more runs, a,b,...")
    wanted = runs_.alike(runs)
    rows = _labelled(runs_.group_by_seed(runs))
    tables = {"table1": table_1(rows, wanted)}
    if wanted["data.levels"] is not None:
        tables["table4"] = table_4(rows, wanted)
    for name, table in tables.items():
        write_csv(folder / f"{name}.csv", table.records())
        write_atomically(folder / f"{name}.md", table.markdown())
        write_atomically(folder / f"{name}.tex", table.latex())
    figures = {label: found for label, runs in rows.items() if (found := _figures(runs))}
    drawn = draw_overlays(figures, wanted["data.levels"], folder)
    text = "\n".join(table.markdown() for table in tables.values())
    without = [label for label in rows if label not in figures]
    if without:
        text += f"\nWithout figures (run --mode=figures): {', '.join(without)}.\n"
    pictures = "".join(f"\n![{path.stem}]({path.name})\n" for path in drawn)
    write_atomically(folder / "report.md", f"# {wanted['data.name']}\n\n{text}{pictures}")
    logger.info("Report: %s\n\n%s", folder / "report.md", text)


def table_1(rows: Rows, wanted: dict[str, Any]) -> Table:
    """Negative log-likelihood, Fréchet distance and NFE of each method."""
    k = common_k(rows, wanted)
    frechet = runs_.frechet_settings([run for runs in rows.values() for run in runs], wanted)
    score, title = ("log_likelihood", "NLL (nats)") if k is None else _bits(k)
    columns = [Column(title, 3)]
    if frechet:
        columns.append(Column(score_name("fd", frechet["extractor"]), 3))
    columns += [Column("NFE", 1), Column("steps", 0, False), Column("ms a step", 0, False)]
    table = {}
    for label, runs in rows.items():
        for weights in _weights(runs, wanted):
            found = [runs_.results(run, wanted).get(weights, {}) for run in runs]
            cells = [_score(found, score)]
            if frechet:
                cells.append(_over_seeds(found, score_name("fd", frechet["extractor"])))
            cells += [_over_seeds(found, "sample_nfe"), Cell(runs[0].step)]
            cells.append(Cell(runs[0].milliseconds_a_step()))
            table[label if weights == "ema" else f"{label} ({weights} weights)"] = cells
    return Table(_caption(rows, wanted, frechet), columns, table)


def table_4(rows: Rows, wanted: dict[str, Any]) -> Table:
    """Bits/dim against K."""
    every_k = sorted({k for runs in rows.values() for run in runs for k in _ks(run, wanted)})
    table = {}
    for label, runs in rows.items():
        weights = _weights(runs, wanted)[0]
        found = [runs_.results(run, wanted).get(weights, {}) for run in runs]
        table[label] = [_score(found, _bits(k)[0]) for k in every_k]
    columns = [Column(f"K = {k}", 3) for k in every_k]
    return Table("Bits/dim against K, the number of dequantisations.", columns, table)


def common_k(rows: Rows, wanted: dict[str, Any]) -> int | None:
    """The largest K that all runs were evaluated with; None for points.

    Raises:
        UserError: there is none.
    """
    if wanted["data.levels"] is None:
        return None
    by_run = {str(run.workdir): _ks(run, wanted) for runs in rows.values() for run in runs}
    common = set.intersection(*map(set, by_run.values()))
    if not common:
        given = "; ".join(f"{name}: K = {', '.join(map(str, k))}" for name, k in by_run.items())
        field = "--config.evaluate.dequantisations"
        raise UserError("--runs", given, f"no K is shared; evaluate all with the same {field}")
    return max(common)


def _figures(runs: list[Run]) -> Path | None:
    folders = [run.workdir / "figures" for run in runs]
    return next((folder for folder in folders if (folder / "figures.json").exists()), None)


def _labelled(groups: list[list[Run]]) -> Rows:
    """Groups by their method's name, and by their folder's where two share a method."""
    methods = [runs[0].method for runs in groups]
    return {
        method if methods.count(method) == 1 else f"{method} ({runs[0].workdir.name})": runs
        for method, runs in zip(methods, groups, strict=True)
    }


def _weights(runs: list[Run], wanted: dict[str, Any]) -> list[str]:
    return sorted({weights for run in runs for weights in runs_.results(run, wanted)})  # ema first


def _ks(run: Run, wanted: dict[str, Any]) -> list[int]:
    return sorted({k for v in runs_.results(run, wanted).values() for k in runs_.ks(v)})


def _bits(k: int) -> tuple[str, str]:
    return f"bits_per_dim_k{k}", f"NLL (bits/dim, K = {k})"


def _score(found: list[dict[str, Any]], name: str) -> Cell:
    """Of one run, with the standard error over images; of several, over seeds."""
    sign = -1 if name == "log_likelihood" else 1
    cell = _over_seeds(found, name)
    if cell.value is None:
        return cell
    return Cell(sign * cell.value, cell.error or found[0].get(f"{name}_standard_error"))


def _over_seeds(found: list[dict[str, Any]], name: str) -> Cell:
    values = [values[name] for values in found if values.get(name) is not None]
    if len(values) < len(found):
        return Cell(None)
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Cell(mean(values), error)


def _caption(rows: Rows, wanted: dict[str, Any], frechet: dict[str, Any] | None) -> str:
    seeds = {len(runs) for runs in rows.values()}
    images = wanted["likelihood.images"]
    solver = wanted["solver.method"]
    if wanted["solver.steps"] is None:
        solver += f" at rtol {wanted['solver.rtol']:g}, atol {wanted['solver.atol']:g}"
    else:
        grid = wanted.get("solver.grid", "uniform")  # a field that older records lack
        solver += f" of {wanted['solver.steps']} {grid} steps"
    what = "points" if wanted["data.levels"] is None else "images"
    parts = [
        f"{wanted['data.name']} ({wanted['data.version']}), {images} {what} of its "
        f"{wanted['data.split']} split; {solver}; {wanted['likelihood.divergence']} divergence."
    ]
    if wanted["data.entropy"] is not None:
        parts.append(f"A perfect density has NLL {wanted['data.entropy']:.3f}.")
    if frechet:
        reference = frechet["reference"]
        images = reference["images"] or "an unknown number of"
        parts.append(
            f"Fréchet distance of {frechet['generated']} samples to {images} "
            f"{reference['split']} images."
        )
    parts.append(f"NFE to sample batches of {wanted['samples.batch_size']}.")
    if seeds == {1}:
        parts.append(f"Standard errors over {what}.")
    else:
        counts = ", ".join(f"{label}: {len(runs)}" for label, runs in rows.items())
        shared = f"{seeds.pop()} each" if len(seeds) == 1 else counts
        parts.append(f"Means and standard errors over seeds ({shared}).")
    return " ".join(parts + _unfinished(rows))


def _unfinished(rows: Rows) -> list[str]:
    return [
        f"{run.workdir.name} is unfinished: step {run.step} of {run.config['train']['steps']}."
        for runs in rows.values()
        for run in runs
        if run.step < run.config["train"]["steps"]
    ]
