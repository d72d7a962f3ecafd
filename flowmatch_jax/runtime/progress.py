"""Progress bars with one format for all loops."""

from __future__ import annotations

import sys
from typing import Any

import jax
from tqdm import tqdm

COUNTS = "{n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"
IN_TERMINAL = "{desc}: {percentage:3.0f}%|{bar}| " + COUNTS
IN_FILE = "{desc}: " + COUNTS


def progress_bar(iterable: Any = None, hidden: bool = False, **options: Any) -> tqdm:
    """Create a tqdm bar that only process 0 shows.

    In a terminal it is redrawn twice a second; in a file it writes a line twice a minute. Loops
    should use it as a context manager, so that an error ends its line.

    Args:
        iterable: iterable of the loop; or None with ``total`` among the options.
        hidden: show nothing, for a loop inside another loop with a bar.
        **options: options of tqdm, such as ``desc``.
    """
    silent = hidden or jax.process_index() != 0
    if sys.stderr.isatty():
        return tqdm(iterable, disable=silent, mininterval=0.5, bar_format=IN_TERMINAL, **options)
    look = {"mininterval": 30.0, "maxinterval": 30.0, "bar_format": IN_FILE}
    return tqdm(iterable, disable=silent, file=_Lines(), **look, **options)


class _Lines:
    """A file for one bar that writes each redraw as a line, except the first at the bar's start."""

    def __init__(self) -> None:
        self._drawn = ""

    def write(self, text: str) -> None:
        """Write a line unless it is empty or equal to the last one."""
        text = text.strip()
        if text and self._drawn not in ("", text):
            sys.stderr.write(f"{text}\n")
        self._drawn = text or self._drawn

    def flush(self) -> None:
        """Flush standard error."""
        sys.stderr.flush()
