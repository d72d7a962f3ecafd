"""What is seen of a training: means and rates of its steps, and a progress bar."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import jax
import numpy as np
from tqdm import tqdm

from flowmatch_jax.runtime.processes import largest
from flowmatch_jax.runtime.progress import progress_bar


class Progress:
    """The progress bar of a training, with the newest losses and speed.

    Args:
        start, steps: first and last step.
    """

    SHOWN: ClassVar[dict[str, str]] = {
        "loss": "loss {:.4f}",
        "validation_loss_ema": "validation {:.4f}",
        "validation_loss_raw": "validation (raw) {:.4f}",
        "images_per_second": "{:.0f} images/s",
    }

    def __init__(self, start: int, steps: int) -> None:
        self._start, self._steps = start, steps

    @cached_property
    def _bar(self) -> tqdm:
        """The bar, created after the first steps so that its times exclude compilation."""
        return progress_bar(total=self._steps, initial=self._start, desc="training")

    def advance(self, steps: int) -> None:
        """Advance by a number of steps."""
        self._bar.update(steps)

    def show(self, metrics: dict[str, float | None]) -> None:
        """Show metrics from the next redraw on; None marks a metric without a value."""
        known = {name: metrics[name] for name in self.SHOWN if metrics.get(name) is not None}
        shown = [self.SHOWN[name].format(value) for name, value in known.items()]
        self._bar.set_postfix_str(", ".join(shown), refresh=False)

    def close(self) -> None:
        """End the bar's line."""
        if "_bar" in vars(self):
            self._bar.close()


class Meter:
    """Mean metrics of the steps, and rates of the loop, between two reads.

    At most two calls of the step are dispatched ahead of the device, so that it never waits for
    Python and batches do not accumulate in its memory.
    """

    AHEAD = 2

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._skipped = 0
        self._start()

    def _start(self) -> None:
        self._pending: list[dict[str, jax.Array]] = []
        self._waited = 0.0
        self._paused = 0.0
        self._begin = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in this block as waiting for input."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time in this block from the rates."""
        jax.block_until_ready(self._pending)
        begin = time.perf_counter()
        yield
        self._paused += time.perf_counter() - begin

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Add the metrics, [n] each, of the n steps that were just dispatched."""
        self._pending.append(metrics)
        if len(self._pending) > self.AHEAD:
            jax.block_until_ready(self._pending[-1 - self.AHEAD])

    def skipped(self, all_steps: bool) -> int:
        """Return the number of consecutive skipped updates up to the last step.

        Args:
            all_steps: wait for all steps; otherwise the last dispatches, which may still be
                running on the device, are ignored.
        """
        known = self._pending if all_steps else self._pending[: -self.AHEAD]
        # Copied before it is indexed: indexing on the device would wait for the queued steps.
        return int(np.asarray(known[-1]["skipped"])[-1]) if known else self._skipped

    def read(self) -> dict[str, float | None]:
        """Return mean metrics and rates since the last read.

        Returns:
            Means over the steps whose update was applied, None if there was none;
            "updates_skipped"; "images_per_second"; and "input_wait", the fraction of the time spent
            waiting for input, in the process that waited longest.
        """
        parts = jax.device_get(self._pending)
        elapsed = time.perf_counter() - self._begin - self._paused
        steps = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self._skipped = int(steps["skipped"][-1])
        made = steps.pop("skipped") == 0
        means = {name: float(np.mean(m[made])) if made.any() else None for name, m in steps.items()}
        rates = {
            "updates_skipped": int((~made).sum()),
            "images_per_second": len(made) * self._batch_size / elapsed,
            "input_wait": largest("input_wait", self._waited / elapsed),
        }
        self._start()
        return means | rates
