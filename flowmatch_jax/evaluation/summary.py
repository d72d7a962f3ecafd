"""Formatting of an evaluation as a table for the terminal."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from flowmatch_jax.runtime.text import aligned

# Name of a metric (a regular expression) -> title with its unit, in the order of the table. Groups
# are the number of dequantisations or the extractor.
NAMES = {
    r"log_likelihood": "log-likelihood (nats)",
    r"bits_per_dim_k(\d+)": "bits per dimension (K = {})",
    r"fid": "FID",
    r"fd_(.+)": "Fréchet distance ({})",
    r"inception_score": "Inception score",
    r"is_(.+)": "Inception score ({})",
    r"kid": "KID",
    r"kd_(.+)": "kernel distance ({})",
    r"precision": "precision",
    r"precision_(.+)": "precision ({})",
    r"recall": "recall",
    r"recall_(.+)": "recall ({})",
    r"psnr": "PSNR (dB)",
    r"ssim": "SSIM",
    r"consistency_rmse": "consistency (RMSE in grey levels)",
    r"images": "test items scored",
    r"likelihood_nfe": "function evaluations of a likelihood",
    r"sample_nfe": "function evaluations of a sample",
    r"samples_not_finite": "samples left out as not finite",
}
ERROR = "_standard_error"


def summarise(record: dict[str, Any], path: Path) -> str:
    """Format an evaluation: a row per metric, a column per kind of weights and per baseline.

    Standard errors follow their means. The evaluation's warnings and its file are listed below the
    table.

    Args:
        record: record that `evaluate` returns.
        path: file of the record.
    """
    of_weights = {f"{kind} weights": results for kind, results in record["results"].items()}
    columns = of_weights | record.get("baselines", {})
    names = {name for results in columns.values() for name in results}
    rows = [
        (title, *(_cell(results, name) for results in columns.values()))
        for name, title in _titles(names)
        if name != "samples_not_finite" or any(r.get(name) for r in columns.values())
    ]
    table = aligned([("", *columns), *rows], right=range(1, len(columns) + 1))
    notes = [
        f"{title}: {warning}."
        for title, results in columns.items()
        for warning in results.get("warnings", ())
    ]
    head = f"Evaluation at step {record['step']}:"
    return "\n".join([head, table, *notes, f"It is kept in {path}."])


def _titles(names: set[str]) -> list[tuple[str, str]]:
    """Return the names of metrics in the order of NAMES, each with its title."""
    return [
        (name, title.format(*match.groups()))
        for pattern, title in NAMES.items()
        for name in sorted(names, key=lambda name: (len(name), name))
        if not name.endswith((ERROR, "_std")) and (match := re.fullmatch(pattern, name))
    ]


def _cell(results: dict[str, Any], name: str) -> str:
    """Format a value and its standard error to two digits; "-" if there is no value."""
    value, error = results.get(name), results.get(f"{name}{ERROR}")
    if value is None:
        return "-"
    if not error or not math.isfinite(error):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} +- {error:.{digits}f}"
