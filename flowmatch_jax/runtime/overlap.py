"""Several results at a time on a CPU."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import jax
import numpy as np

Item, Result, Tree = TypeVar("Item"), TypeVar("Result"), TypeVar("Tree")

MOST = 4  # results that are computed at a time, each of which needs its own memory


def overlapped(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map a function of JAX over items in order, as ``map`` does; on a CPU in several threads.

    XLA computes a loop, such as that of a solver, with little more than one core of a CPU. Results
    do not depend on the number of threads. The first one is computed alone, because it compiles. A
    GPU or TPU computes one result after another in any case, and programs of several devices must
    be started in the same order everywhere: these have one thread.

    Args:
        function: function of an item, which may be called from another thread. What it returns is
            waited for.
        items: the items; they are taken a few ahead of the results.
    """
    threads, items = number_of_threads(), iter(items)
    if threads == 1:
        yield from map(function, items)
        return
    yield from map(function, islice(items, 1))
    submit = lambda item: pool.submit(lambda: jax.block_until_ready(function(item)))  # noqa: E731
    with ThreadPoolExecutor(threads) as pool:
        pending = deque(map(submit, islice(items, threads)))
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(map(submit, islice(items, 1)))
                yield result
        finally:
            for future in pending:
                future.cancel()


def number_of_threads() -> int:
    """Return the number of results that `overlapped` computes at a time."""
    alone = jax.default_backend() != "cpu" or jax.device_count() > 1
    return 1 if alone else min(os.cpu_count() or 1, MOST)


def mean_in_threads(function: Callable[[np.ndarray], Tree], batch: np.ndarray) -> Tree:
    """Compute the mean of a function over the items of a batch, on a CPU by parts in threads.

    Args:
        function: function from a batch to the mean of its items; it may be called from another
            thread.
        batch: array with the items as leading axis. It is one part unless the number of threads
            divides its length.
    """
    threads = number_of_threads()
    if threads == 1 or len(batch) % threads:
        return function(batch)
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(function, np.split(batch, threads)))
    return jax.tree.map(lambda *each: sum(each) / threads, *parts)
