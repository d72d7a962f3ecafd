"""The log of a training run: metrics.jsonl, TensorBoard events, and a progress bar."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from flowmatch_jax.runtime.files import write_atomically
from flowmatch_jax.runtime.processes import largest
from flowmatch_jax.runtime.progress import progress_bar
from flowmatch_jax.runtime.workdir import read_metrics

FLUSH_EVERY = 60.0  # seconds between two flushes of TensorBoard events


class RunLog:
    """Write the measurements of a run; only process 0 writes.

    Args:
        workdir: folder of the run.
        start, steps: first and last step. Lines of metrics.jsonl after ``start`` are deleted,
            because a run that was killed measures those steps again.
    """

    def __init__(self, workdir: Path, start: int, steps: int) -> None:
        self._writes = jax.process_index() == 0
        self._path = workdir / "metrics.jsonl"
        self._events = None
        if self._writes:
            _keep_lines_until(self._path, start)
            self._events = _Events(workdir / "tensorboard", start + 1)
        self._start, self._steps = start, steps

    @cached_property
    def _bar(self) -> tqdm:
        """The progress bar, created after the first steps so that its times exclude compilation."""
        return progress_bar(total=self._steps, initial=self._start, desc="training")

    def advance(self, steps: int) -> None:
        """Advance the progress bar by a number of steps."""
        self._bar.update(steps)

    def write(self, step: int, metrics: dict[str, float | None]) -> None:
        """Record the metrics of a step; None marks a metric without a value."""
        if not self._writes:
            return
        line = {"step": step, "time": round(time.time(), 3), **metrics}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        measured = {name: value for name, value in metrics.items() if value is not None}
        self._events.write(step, measured)
        forms = {"loss": "loss {:.4f}", "images_per_second": "{:.0f} images/s"}
        shown = [form.format(measured[name]) for name, form in forms.items() if name in measured]
        self._bar.set_postfix_str(", ".join(shown), refresh=False)

    def close(self) -> None:
        """Flush the events to disk, and close the progress bar."""
        if "_bar" in vars(self):
            self._bar.close()
        if self._events is not None:
            self._events.close()


class _Events:
    """Writer of a TensorBoard event file.

    tensorboardX's own SummaryWriter writes in a thread, which dies with a traceback when the disk
    is full, and the run then waits for it forever.

    Args:
        folder: folder of the event files, one for each start of the run.
        first: first step of this start; TensorBoard hides later events of earlier starts.
    """

    def __init__(self, folder: Path, first: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._flushed = -FLUSH_EVERY
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(step=first, wall_time=time.time(), session_log=start))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record values of a step; events are flushed every `FLUSH_EVERY` seconds."""
        summary = Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in values.items()])
        self._writer.write_event(Event(step=step, wall_time=time.time(), summary=summary))
        if time.monotonic() - self._flushed > FLUSH_EVERY:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush the events to disk."""
        self._writer.close()


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


def _keep_lines_until(path: Path, step: int) -> None:
    if path.exists():
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
