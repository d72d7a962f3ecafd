"""Progress bars: one look for all loops."""

from __future__ import annotations

import sys
from typing import Any

import jax
from tqdm import tqdm


def progress_bar(iterable: Any = None, hidden: bool = False, **options: Any) -> tqdm:
    """A tqdm bar of process 0: redrawn twice a second, in a file twice a minute.

    Args:
        iterable: to loop over; or None, and ``total`` among the options of tqdm.
        hidden: show nothing, inside a loop that has a bar.
    """
    interval = 0.5 if sys.stderr.isatty() else 30.0
    silent = hidden or jax.process_index() != 0
    return tqdm(iterable, disable=silent, mininterval=interval, **options)
