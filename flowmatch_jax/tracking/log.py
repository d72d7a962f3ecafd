"""The log of a run: its numbers and pictures, in metrics.jsonl, TensorBoard and a tracker."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from flowmatch_jax.config.field import flat
from flowmatch_jax.config.identity import record
from flowmatch_jax.runtime.files import write_atomically
from flowmatch_jax.runtime.workdir import read_metrics
from flowmatch_jax.tracking.events import Events
from flowmatch_jax.tracking.tracker import Tracker


class RunLog:
    """Record the numbers and pictures of a run; only process 0 writes.

    Files are opened, and the tracker is created, when there is something to write.

    Args:
        workdir: folder of the run.
        config: its config; config.train.tracker names a function that gets the same.

    Raises:
        UserError: the tracker does not exist or is not installed.
    """

    def __init__(self, workdir: Path, config: ConfigDict) -> None:
        self._workdir, self._path = workdir, workdir / "metrics.jsonl"
        self._writes = jax.process_index() == 0
        self._config = record(config)
        self._tracker = Tracker(config.train.tracker, workdir, self._config)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Flush the events to disk."""
        if "_events" in vars(self):
            self._events.close()

    @cached_property
    def _events(self) -> Events:
        return Events(self._workdir / "tensorboard")

    def begin(self, step: int) -> None:
        """Begin training after ``step``, and record the config as text.

        Lines of metrics.jsonl after the step are deleted, because a run that was killed measures
        those steps again.
        """
        if not self._writes:
            return
        if self._path.exists():
            kept = [line for line in read_metrics(self._path) if line["step"] <= step]
            write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._events.start_from(step + 1)
        self._events.text(step + 1, "config", _markdown(self._config))

    def write(self, step: int, numbers: Mapping[str, float | None]) -> None:
        """Append a line to metrics.jsonl; None marks a number without a value."""
        if not self._writes:
            return
        line = {"step": step, "time": round(time.time(), 3), **numbers}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        measured = {name: value for name, value in numbers.items() if value is not None}
        self._events.numbers(step, measured)
        self._tracker(step, measured, {})

    def picture(self, step: int, name: str, path: Path) -> None:
        """Record the picture in a PNG file."""
        if not self._writes:
            return
        with Image.open(path) as image:
            pixels = np.asarray(image)
        self._events.picture(step, name, pixels)
        self._tracker(step, {}, {name: pixels})


def _markdown(config: Mapping[str, object]) -> str:
    """Format a config as a table with a row for each field."""
    shown = {name: repr(value).replace("|", "\\|") for name, value in flat(config)}
    rows = [f"| config.{name} | {value} |" for name, value in shown.items()]
    return "\n".join(["| field | value |", "| --- | --- |", *rows])
