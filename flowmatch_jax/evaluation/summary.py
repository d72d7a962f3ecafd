"""Formatting of an evaluation as a table for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowmatch_jax.metrics.table import TITLES as QUALITIES
from flowmatch_jax.metrics.table import score_rows
from flowmatch_jax.runtime.text import aligned

# As in metrics.table; the group is the number of dequantisations.
LIKELIHOODS = {
    r"log_likelihood": "log-likelihood (nats)",
    r"bits_per_dim_k(\d+)": "bits per dimension (K = {})",
}
COUNTS = {
    r"consistency_rmse": "consistency (RMSE in grey levels)",
    r"images": "test items scored",
    r"likelihood_nfe": "function evaluations of a likelihood",
    r"sample_nfe": "function evaluations of a sample",
    r"samples_not_finite": "samples left out as not finite",
}


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
    titles = LIKELIHOODS | QUALITIES | COUNTS
    if not any(results.get("samples_not_finite") for results in columns.values()):
        del titles["samples_not_finite"]
    rows = score_rows(columns, titles)
    table = aligned([("", *columns), *rows], right=range(1, len(columns) + 1))
    notes = [
        f"{title}: {warning}."
        for title, results in columns.items()
        for warning in results.get("warnings", ())
    ]
    head = f"Evaluation at step {record['step']}:"
    return "\n".join([head, table, *notes, f"It is kept in {path}."])
