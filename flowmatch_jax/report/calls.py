"""Table of the Fréchet distance over the number of network calls."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from flowmatch_jax.metrics.features.extractors import score_name
from flowmatch_jax.report.drawn import read_points, shared_settings
from flowmatch_jax.report.tables import Column, Table, over_seeds
from flowmatch_jax.runtime.files import Unreadable

logger = logging.getLogger(__name__)


def table_of_calls(figures: Mapping[str, Sequence[Path]]) -> Table | None:
    """Create the table of distances at each number of calls, by the best solver of each run.

    Runs with damaged numbers are left out with a warning.

    Args:
        figures: label -> folders of the figures of its runs, which differ only in their seeds.

    Returns:
        The table; None if no run has distances.

    Raises:
        UserError: the runs' figures were drawn with different settings.
    """
    folders = [folder for of_label in figures.values() for folder in of_label]
    settings = shared_settings(folders) if folders else {"extractor": None}
    if settings["extractor"] is None:
        return None
    distance = score_name("fd", settings["extractor"])
    found = {}
    for label, of_label in figures.items():
        if least := [numbers for folder in of_label if (numbers := _least(folder, distance))]:
            found[label] = least
    calls = sorted({n for least in found.values() for numbers in least for n in numbers})
    caption = (
        f"{distance} of {settings['generated']} samples over the number of network calls, each run "
        "by its best solver: on equal steps, fitted to the run, or calls of its flow map."
    )
    columns = [Column(f"{n} call{'s' if n > 1 else ''}", 3) for n in calls]
    rows = {
        label: [over_seeds([numbers.get(n) for numbers in least]) for n in calls]
        for label, least in found.items()
    }
    return Table(caption, columns, rows) if calls else None


def _least(folder: Path, distance: str) -> dict[int, float]:
    """Return the smallest distance at each number of calls."""
    try:
        points = read_points(folder / "over_nfe.csv", "nfe", distance)
    except Unreadable as error:
        logger.warning("Left out of the table of calls: %s", error)
        return {}
    least: dict[int, float] = {}
    for point in points:
        n, value = int(point["nfe"]), point[distance]
        least[n] = min(value, least.get(n, value))
    return least
