"""Handling of stop signals, so that all processes of a run stop after the same step."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any

import jax

from flowmatch_jax.runtime.processes import gather

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # SIGHUP: the terminal is gone
POLL_INTERVAL = 2.0  # seconds between two checks whether a process received a signal


def interrupt_on_stops() -> None:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt with their name.

    They then end every phase of a program in the same way as Ctrl-C.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for number in heard((signal.SIGTERM, signal.SIGHUP)):
        signal.signal(number, interrupt)


def heard(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Return the signals to handle: all of them, but SIGHUP not under nohup, which ignores it."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in numbers if number != signal.SIGHUP or not ignored]


class StopNotice:
    """Stop all processes after the same step on SIGTERM, SIGINT or SIGHUP.

        with StopNotice() as notice:
            for step in ...:
                ...
                if notice.reached(step):
                    ...  # save, and stop because of notice.signal

    A second signal of the same kind goes to the previous handler, as does, at the end of the block,
    a signal that no call of `reached` has answered. Python handles signals in the main thread only;
    in another thread, only other processes can request a stop.

    JAX's `multihost_utils.reached_preemption_sync_point` is not used: it handles SIGTERM only, it
    never triggers if a step's number is left out, and Orbax also calls it from a thread with the
    numbers of earlier steps.

    Attributes:
        signal: name of the signal for which `reached` returned True.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._received: signal.Signals | None = None
        self._previous: dict[int, Any] = {}
        self._last: tuple[int, float] | None = None  # step and time of the last check
        self._due = 0  # step of the next check

    def __enter__(self) -> StopNotice:
        if threading.current_thread() is threading.main_thread():
            for number in heard(STOPS):
                self._previous[number] = signal.signal(number, self._receive) or signal.SIG_DFL
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._received and self.signal is None and error is None:
            signal.raise_signal(self._received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        signal.signal(number, self._previous[number])

    def reached(self, step: int) -> bool:
        """Test whether to stop after this step; the result is the same in all processes.

        With several processes most calls only compare two numbers. Every `POLL_INTERVAL` seconds,
        at steps that all processes compute alike, they exchange the signals they received.

        Args:
            step: number of the step, the same in all processes. It increases, unless the run goes
                back to an earlier step.

        Raises:
            RunStopped: a process did not reach this step.
        """
        if self._last is not None and step <= self._last[0]:  # the run went back
            self._last, self._due = None, step
        if step < self._due:
            return False
        signals = self._look(step) if jax.distributed.is_initialized() else self._own()
        self.signal = next(filter(None, signals), None)
        return self.signal is not None

    def _own(self) -> list[str]:
        return [self._received.name if self._received else ""]

    def _look(self, step: int) -> list[str]:
        """Return the signals that the processes received; sets the step of the next check."""
        now = time.monotonic()
        last_step, last_time = self._last or (step - 1, now - POLL_INTERVAL)
        steps, elapsed = max(step - last_step, 1), max(now - last_time, 1e-9)
        # The number of steps that take POLL_INTERVAL by process 0's clock, but at most twice the
        # last number: the first steps compile, and their rate is not representative.
        ahead = max(1, min(int(steps * POLL_INTERVAL / elapsed), 2 * steps))
        told = gather("stop", f"{ahead} {self._own()[0]}")
        aheads, signals = zip(*(text.split(" ") for text in told), strict=True)
        self._last, self._due = (step, now), step + int(aheads[0])
        return list(signals)
