"""The report: the paper's tables and figures for several finished runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowmatch_jax.metrics.features.extractors import score_name
from flowmatch_jax.report import runs as runs_
from flowmatch_jax.report.calls import table_of_calls
from flowmatch_jax.report.drawn import read_settings
from flowmatch_jax.report.overlays import draw_overlays
from flowmatch_jax.report.runs import Run
from flowmatch_jax.report.tables import Cell, Column, Table, over_seeds
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.files import Unreadable, write_atomically
from flowmatch_jax.runtime.workdir import write_csv

logger = logging.getLogger(__name__)

# Label -> runs of a row, which differ only in their seeds.
Rows = dict[str, list[Run]]


def write_report(
    workdirs: Sequence[Path], folder: Path, names: Mapping[Path, str] | None = None
) -> None:
    """Write report.md with its tables (.md, .csv, .tex) and figures.

    Super-resolution has table2; other models have table1 and, for images, table4. Runs with figures
    have the table of `calls`. Runs with damaged records are skipped with a warning.

    Args:
        workdirs: folders of runs; runs that differ only in their seed share a row.
        folder: folder of the report.
        names: names of the runs' rows, by folder; the others are named by their methods.

    Raises:
        UserError: a folder is not an evaluated run, or runs were evaluated with different settings.
    """
    runs = []
    for workdir in dict.fromkeys(workdirs):
        try:
            runs.append(runs_.load_run(workdir))
        except Unreadable as error:
            logger.warning("Left out, since it cannot be read: %s", error)
    if not runs:
        raise UserError("--runs", "", "give the folders of one or more runs, a,b,...")
    wanted = runs_.alike(runs)
    rows = _labelled(runs_.group_by_seed(runs), names or {})
    if wanted.get("condition.low_resolution"):
        tables = {"table2": table_2(rows, wanted)}
    else:
        tables = {"table1": table_1(rows, wanted)}
        if common_k(rows, wanted) is not None:
            tables["table4"] = table_4(rows, wanted)
    figures = {label: found for label, runs in rows.items() if (found := _figures(runs))}
    if (by_calls := table_of_calls(figures)) is not None:
        tables["calls"] = by_calls
    for name, table in tables.items():
        write_csv(folder / f"{name}.csv", table.records())
        write_atomically(folder / f"{name}.md", table.markdown())
        write_atomically(folder / f"{name}.tex", table.latex())
    of_first = {label: folders[0] for label, folders in figures.items()}
    drawn = draw_overlays(of_first, wanted["data.levels"], folder, _share_objective(runs))
    text = "\n".join(table.markdown() for table in tables.values())
    without = [label for label in rows if label not in figures]
    if without:
        text += f"\nWithout figures (run --mode=figures): {'; '.join(without)}.\n"
    pictures = "".join(f"\n![{path.stem}]({path.name})\n" for path in drawn)
    write_atomically(folder / "report.md", f"# {wanted['data.name']}\n\n{text}{pictures}")
    logger.info("The report is in %s.\n\n%s", folder / "report.md", text)


def table_1(rows: Rows, wanted: dict[str, Any]) -> Table:
    """Create Table 1: negative log-likelihood, Fréchet distance and NFE of each method."""
    likelihoods = _likelihoods(rows, wanted)
    frechet = runs_.frechet_settings([run for runs in rows.values() for run in runs], wanted)
    columns = [Column(title, 3) for title in likelihoods.values()]
    if frechet:
        columns.append(Column(score_name("fd", frechet["extractor"]), 3))
    columns += [Column("NFE", 1), Column("steps", 0, None), Column("ms a step", 0, None)]
    table = {}

    def add(label: str, weights: str, runs: list[Run], found: list[dict[str, Any]]) -> None:
        cells = [_score(found, name) for name in likelihoods]
        if frechet:
            cells.append(_over_seeds(found, score_name("fd", frechet["extractor"])))
        cells += [_over_seeds(found, "sample_nfe"), Cell(runs[0].step)]
        cells.append(Cell(runs[0].milliseconds_a_step()))
        table[label if weights == "ema" else f"{label} ({weights} weights)"] = cells

    for label, runs in rows.items():
        for weights in _weights(runs, wanted):
            add(label, weights, runs, [runs_.results(run, wanted).get(weights, {}) for run in runs])
        by_calls = [runs_.results_by_calls(run, wanted, frechet) for run in runs]
        for calls in sorted(set().union(*by_calls)):
            name = f"{label}, {calls} call{'s' if calls > 1 else ''}"
            found = [results.get(calls, {}) for results in by_calls]
            for weights in dict.fromkeys(kind for results in found for kind in results):
                add(name, weights, runs, [results.get(weights, {}) for results in found])
    return Table(_caption(rows, wanted, frechet), columns, table)


def table_4(rows: Rows, wanted: dict[str, Any]) -> Table:
    """Create Table 4: bits/dim over K."""
    every_k = sorted({k for runs in rows.values() for run in runs for k in _ks(run, wanted)})
    table = {}
    for label, runs in rows.items():
        weights = _weights(runs, wanted)[0]
        found = [runs_.results(run, wanted).get(weights, {}) for run in runs]
        table[label] = [_score(found, _bits(k)[0]) for k in every_k]
    columns = [Column(f"K = {k}", 3) for k in every_k]
    return Table("Bits/dim against K, the number of dequantisations.", columns, table)


def table_2(rows: Rows, wanted: dict[str, Any]) -> Table:
    """Create Table 2: sample quality of super-resolution, and similarity to the originals."""
    runs = [run for runs in rows.values() for run in runs]
    frechet = runs_.frechet_settings(runs, wanted)
    if frechet is None:
        names = ", ".join(str(run.workdir) for run in runs)
        allowed = "none has sample quality metrics: evaluate with config.evaluate.extractor set"
        raise UserError("--runs", names, allowed)
    columns = {
        score_name("fd", frechet["extractor"]): Column(score_name("fd", frechet["extractor"]), 3),
        score_name("is", frechet["extractor"]): Column("IS", 1, max),
        "psnr": Column("PSNR", 2, max),
        "ssim": Column("SSIM", 3, max),
        "consistency_rmse": Column("consistency (RMSE)", 2),
        "sample_nfe": Column("NFE", 1, None),
    }
    found = {label: [values] for label, values in runs_.baselines(runs[0], wanted).items()}
    for_scale = list(found)
    for label, of_label in rows.items():
        for weights in _weights(of_label, wanted):
            name = label if weights == "ema" else f"{label} ({weights} weights)"
            found[name] = [runs_.results(run, wanted).get(weights, {}) for run in of_label]
    measured = [
        name
        for name in columns
        if any(v.get(name) is not None for vs in found.values() for v in vs)
    ]
    table = {label: [_score(values, name) for name in measured] for label, values in found.items()}
    return Table(
        _caption_2(rows, wanted, frechet), [columns[n] for n in measured], table, for_scale
    )


def common_k(rows: Rows, wanted: dict[str, Any]) -> int | None:
    """Return the largest K of all runs that have bits/dim; None if none has, as for points.

    Raises:
        UserError: they have no K in common.
    """
    found = {str(run.workdir): _ks(run, wanted) for runs in rows.values() for run in runs}
    by_run = {name: ks for name, ks in found.items() if ks}
    if not by_run:
        return None
    common = set.intersection(*map(set, by_run.values()))
    if not common:
        given = "; ".join(f"{name}: K = {', '.join(map(str, k))}" for name, k in by_run.items())
        field = "--config.evaluate.dequantisations"
        raise UserError("--runs", given, f"no K is shared; evaluate all runs with the same {field}")
    return max(common)


def _figures(runs: list[Run]) -> list[Path]:
    """Return the folders of readable figures among the runs."""
    found = []
    for folder in (run.workdir / "figures" for run in runs):
        try:
            read_settings(folder)
            found.append(folder)
        except FileNotFoundError:
            pass
        except Unreadable as error:
            logger.warning("Left out of the figures, since it cannot be read: %s", error)
    return found


def _share_objective(runs: Sequence[Run]) -> bool:
    """Test whether the losses of the runs are those of one objective on one path."""
    parts = [{name: run.config[name] for name in ("objective", "path")} for run in runs]
    return all(part == parts[0] for part in parts)


def _labelled(groups: list[list[Run]], names: Mapping[Path, str]) -> Rows:
    """Label groups of runs by their name or method, and by their folder if two groups share it."""
    labels = [names.get(runs[0].workdir) or runs[0].method for runs in groups]
    return {
        label if labels.count(label) == 1 else f"{label} ({runs[0].workdir.name})": runs
        for label, runs in zip(labels, groups, strict=True)
    }


def _weights(runs: list[Run], wanted: dict[str, Any]) -> list[str]:
    return sorted({weights for run in runs for weights in runs_.results(run, wanted)})  # ema first


def _ks(run: Run, wanted: dict[str, Any]) -> list[int]:
    return sorted({k for v in runs_.results(run, wanted).values() for k in runs_.ks(v)})


def _likelihoods(rows: Rows, wanted: dict[str, Any]) -> dict[str, str]:
    """Return {name: title} of the likelihood of Table 1; nothing if no run has any."""
    if not runs_.has_likelihoods(wanted):
        return {}
    if wanted["data.levels"] is None:
        return {"log_likelihood": "NLL (nats)"}
    k = common_k(rows, wanted)
    return {} if k is None else dict([_bits(k)])


def _bits(k: int) -> tuple[str, str]:
    return f"bits_per_dim_k{k}", f"NLL (bits/dim, K = {k})"


def _score(found: list[dict[str, Any]], name: str) -> Cell:
    """Return a score with its standard error: over images for one run, over seeds for several."""
    sign = -1 if name == "log_likelihood" else 1
    cell = _over_seeds(found, name)
    if cell.value is None:
        return cell
    return Cell(sign * cell.value, cell.error or found[0].get(f"{name}_standard_error"))


def _over_seeds(found: list[dict[str, Any]], name: str) -> Cell:
    return over_seeds([values.get(name) for values in found])


def _caption(rows: Rows, wanted: dict[str, Any], frechet: dict[str, Any] | None) -> str:
    what = "points" if wanted["data.levels"] is None else "images"
    parts = [f"{wanted['data.name']} ({wanted['data.version']}); samples by {_solver(wanted)}."]
    if runs_.has_likelihoods(wanted):
        images, split = wanted["likelihood.images"], wanted["data.split"]
        by = f"{_solver(wanted, 'likelihood')}, {_divergence(wanted)}"
        parts.append(f"NLL of {images} {what} of the {split} split by {by}.")
        if wanted["data.entropy"] is not None:
            parts.append(f"A perfect density has NLL {wanted['data.entropy']:.3f}.")
    if frechet:
        parts.append(f"Fréchet distance of {frechet['generated']} samples {_reference(frechet)}.")
    parts.append(f"NFE to sample batches of {wanted['samples.batch_size']}.")
    return " ".join([*parts, _errors(rows, what), *_unfinished(rows)])


def _caption_2(rows: Rows, wanted: dict[str, Any], frechet: dict[str, Any]) -> str:
    low, made_by = (wanted[f"condition.{name}"] for name in ("low_resolution", "filter"))
    parts = [
        f"Super-resolution from {low} x {low} pixels ({made_by}) of {frechet['generated']} images "
        f"of {wanted['data.name']} ({wanted['data.version']}), {wanted['data.split']} split, one "
        f"sample each; Fréchet distance {_reference(frechet)}; consistency in grey levels of "
        f"{wanted['data.levels']}; flows by {_solver(wanted)}, in batches of "
        f"{wanted['samples.batch_size']}."
    ]
    return " ".join([*parts, _errors(rows, "images"), *_unfinished(rows)])


def _divergence(wanted: dict[str, Any]) -> str:
    if wanted["likelihood.divergence"] == "exact":
        return "exact divergence"
    probes = wanted["likelihood.probes"]
    if probes == 1:  # evaluations by versions that allowed K > 1 with one probe
        return "hutchinson divergence by one probe, with which K > 1 over-states the likelihood"
    return f"hutchinson divergence by {probes} probes"


def _solver(wanted: dict[str, Any], of: str = "solver") -> str:
    solver, steps = wanted[f"{of}.method"], wanted.get(f"{of}.steps")
    if steps is None:
        return f"{solver} at rtol {wanted['solver.rtol']:g}, atol {wanted['solver.atol']:g}"
    return f"{solver} of {steps} {wanted.get('solver.grid', 'uniform')} steps"  # older: no grid


def _reference(frechet: dict[str, Any]) -> str:
    reference = frechet["reference"]
    return f"to {reference['images'] or 'an unknown number of'} {reference['split']} images"


def _errors(rows: Rows, what: str) -> str:
    seeds = {len(runs) for runs in rows.values()}
    if seeds == {1}:
        return f"Standard errors over {what}."
    counts = ", ".join(f"{label}: {len(runs)}" for label, runs in rows.items())
    shared = f"{seeds.pop()} each" if len(seeds) == 1 else counts
    return f"Means and standard errors over seeds ({shared})."


def _unfinished(rows: Rows) -> list[str]:
    return [
        f"{run.workdir.name} is unfinished: step {run.step} of {run.config['train']['steps']}."
        for runs in rows.values()
        for run in runs
        if run.step < run.config["train"]["steps"]
    ]
