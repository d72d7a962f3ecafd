"""Progress bars: one look for all loops."""

from __future__ import annotations

import sys
from typing import Any

import jax
from tqdm import tqdm

COUNTS = "{n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"
IN_TERMINAL = "{desc}: {percentage:3.0f}%|{bar}| " + COUNTS
IN_FILE = "{desc}: " + COUNTS


def progress_bar(iterable: Any = None, hidden: bool = False, **options: Any) -> tqdm:
    """A tqdm bar of process 0, redrawn twice a second; in a file a line twice a minute.

    Loops use it as a context manager, so that an error in them ends its line.

    Args:
        iterable: to loop over; or None, and ``total`` among the options of tqdm.
        hidden: show nothing, inside a loop that has a bar.
        **options: of tqdm: ``desc``, what is done, and others.
    """
    silent = hidden or jax.process_index() != 0
    if sys.stderr.isatty():
        return tqdm(iterable, disable=silent, mininterval=0.5, bar_format=IN_TERMINAL, **options)
    look = {"mininterval": 30.0, "maxinterval": 30.0, "bar_format": IN_FILE}
    return tqdm(iterable, disable=silent, file=_Lines(), **look, **options)


class _Lines:
    """A file for one bar that makes lines of what it draws, but for the first, where it stands
    at its beginning.
    """

    def __init__(self) -> None:
        self._drawn = ""

    def write(self, text: str) -> None:
        """Write a line, unless it is empty or there already."""
        text = text.strip()
        if text and self._drawn not in ("", text):
            sys.stderr.write(f"{text}\n")
        self._drawn = text or self._drawn

    def flush(self) -> None:
        """Flush standard error."""
        sys.stderr.flush()
