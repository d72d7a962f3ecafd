"""Signals that ask a run to stop, in all of its processes after the same step."""

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
POLL_INTERVAL = 2.0  # seconds between two looks at whether a process was asked to stop


def interrupt_on_stops() -> None:
    """SIGTERM and SIGHUP raise KeyboardInterrupt with their name, as Ctrl-C does without one.

    So that they end every phase of a program alike.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for number in heard((signal.SIGTERM, signal.SIGHUP)):
        signal.signal(number, interrupt)


def heard(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Those of the signals that are to be handled: all but SIGHUP under nohup, which ignores it."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in numbers if number != signal.SIGHUP or not ignored]


class StopNotice:
    """SIGTERM, SIGINT and SIGHUP ask to stop after a step, in all processes after the same one.

        with StopNotice() as notice:
            for step in ...:
                ...
                if notice.reached(step):
                    ...  # save, and stop because of notice.signal

    A second signal of the same kind does what it would have done without us, and so does a signal
    that no step answered, when the block ends. Outside the main thread Python has no signals, and
    other processes alone can ask for a stop.

    JAX's own notice of preemption (`multihost_utils.reached_preemption_sync_point`) is not used: it
    knows SIGTERM alone, it is missed for good when a step's number is left out, and Orbax calls it
    too, from a thread, with numbers of earlier steps.

    Attributes:
        signal: the name of the signal because of which `reached` said to stop.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._received: signal.Signals | None = None
        self._previous: dict[int, Any] = {}
        self._last: tuple[int, float] | None = None  # step and time of the last look
        self._due = 0  # the step of the next one

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
        """Whether to stop after this step; the same in all processes.

        With several processes it compares two numbers, and every few seconds, at steps that all
        processes work out alike, it asks the others.

        Args:
            step: increasing, and the same in all processes.

        Raises:
            RunStopped: a process did not come to this step.
        """
        if step < self._due:
            return False
        signals = self._look(step) if jax.distributed.is_initialized() else self._own()
        self.signal = next(filter(None, signals), None)
        return self.signal is not None

    def _own(self) -> list[str]:
        return [self._received.name if self._received else ""]

    def _look(self, step: int) -> list[str]:
        """The signals that processes have received; sets at which step to look next."""
        now = time.monotonic()
        last_step, last_time = self._last or (step - 1, now - POLL_INTERVAL)
        steps, elapsed = max(step - last_step, 1), max(now - last_time, 1e-9)
        # As many steps as take POLL_INTERVAL by process 0's clock. Not many more than so far: the
        # first ones compile, and a pace of which little is known may change.
        ahead = max(1, min(int(steps * POLL_INTERVAL / elapsed), 2 * steps))
        told = gather("stop", f"{ahead} {self._own()[0]}")
        aheads, signals = zip(*(text.split(" ") for text in told), strict=True)
        self._last, self._due = (step, now), step + int(aheads[0])
        return list(signals)
