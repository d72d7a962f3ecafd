"""TensorBoard event files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

FLUSH_EVERY = 60.0  # seconds between two flushes


class Events:
    """Writer of one TensorBoard event file, which is flushed every `FLUSH_EVERY` seconds.

    tensorboardX's own SummaryWriter writes in a thread, which dies with a traceback when the disk
    is full, and the run then waits for it forever.

    Args:
        folder: folder of the event files; it is created if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._flushed = -FLUSH_EVERY

    def start_from(self, step: int) -> None:
        """Record that steps from ``step`` on are measured again; TensorBoard hides older ones."""
        self._write(step, session_log=SessionLog(status=SessionLog.START))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers by name."""
        found = [Summary.Value(tag=name, simple_value=x) for name, x in values.items()]
        self._write(step, summary=Summary(value=found))

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Record a picture, uint8 [H, W] or [H, W, 3]."""
        axes = "HW" if pixels.ndim == 2 else "HWC"
        self._write(step, summary=summary.image(name, pixels, dataformats=axes))

    def text(self, step: int, name: str, markdown: str) -> None:
        """Record a text in Markdown."""
        self._write(step, summary=summary.text(name, markdown))

    def _write(self, step: int, **content: Summary | SessionLog) -> None:
        self._writer.write_event(Event(step=step, wall_time=time.time(), **content))
        if time.monotonic() - self._flushed > FLUSH_EVERY:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush the events to disk."""
        self._writer.close()
