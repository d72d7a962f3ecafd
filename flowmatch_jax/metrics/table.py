"""Rows of a table of scores for the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

# Name of a score (a regular expression) -> its title with its unit, in the order of a table. The
# group is the extractor.
TITLES = {
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
}
ERROR = "_standard_error"


def score_rows(
    columns: Mapping[str, dict[str, Any]], titles: Mapping[str, str] = TITLES
) -> list[tuple[str, ...]]:
    """Return a row for each score: its title and a cell for each column, "-" for no value.

    A standard error follows its mean; names without a title are left out.

    Args:
        columns: values by name, for each column.
        titles: title of each name, a regular expression, in the order of the rows.
    """
    names = {name for results in columns.values() for name in results}
    return [
        (title, *(_cell(results, name) for results in columns.values()))
        for name, title in _titles(names, titles)
    ]


def _titles(names: set[str], titles: Mapping[str, str]) -> list[tuple[str, str]]:
    return [
        (name, title.format(*match.groups()))
        for pattern, title in titles.items()
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
