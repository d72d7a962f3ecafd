"""Logging to the terminal: short lines that do not interfere with progress bars."""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import absl.logging
from absl import flags
from tqdm import tqdm

logger = logging.getLogger(__name__)

OURS = "flowmatch_jax"  # name of the package's logger
PREFIXES = {logging.WARNING: "warning: ", logging.ERROR: "error: ", logging.CRITICAL: "error: "}
COMPILING = 2.0  # seconds after which a compilation is logged

# Messages that do not help the user of a run, by the name of their logger.
UNWANTED = {
    # Orbax logs through absl's logger.
    "absl": re.compile(
        # Evaluation opens checkpoints read-only on purpose.
        r"Given directory is read only="
        # Training measures its own waiting.
        r"|Waiting for previous save to complete took"
        # These accompany the traceback of an exception that Orbax raises again in
        # `Checkpoints.check`; the run ends with that exception, reported once.
        r"|.*_SignalingThread\.run\(\) raised an exception"
        r"|.*Failed to run \d+ Handler Commit operations"
        r"|.*Save Finalize thread \(.*\) failed",
        re.DOTALL,
    ),
    # The first failed write of a checkpoint is raised in `Checkpoints.check`. asyncio reports those
    # that fail beside it: its classes Task, Future and _GatheringFuture have this message.
    "asyncio": re.compile(r"\w+ exception was never retrieved"),
}


def set_up() -> None:
    """Log warnings and errors in short lines to standard error, in place of absl's handler.

    absl's flag --verbosity still sets the level.
    """
    if not _is_verbosity_given():
        absl.logging.set_verbosity(absl.logging.WARNING)
    handler = _Terminal()
    handler.setFormatter(_Plain())
    handler.addFilter(is_wanted)
    logging.root.handlers = [handler]
    sys.unraisablehook = _report
    logging.captureWarnings(True)  # otherwise they would be appended to a progress bar's line


def say_infos() -> None:
    """Log this package's messages of level INFO too, unless --verbosity is given."""
    if not _is_verbosity_given():
        logging.getLogger(OURS).setLevel(logging.INFO)


@contextmanager
def compiling(what: str, patience: float = COMPILING) -> Iterator[None]:
    """Log that this block compiles and how long it took, unless it is short.

    Args:
        what: name of the compiled program, such as "the training step".
        patience: seconds after which the compilation is logged.
    """
    said = threading.Event()

    def say() -> None:
        said.set()
        logger.info("Compiling %s...", what)

    timer, begin = threading.Timer(patience, say), time.perf_counter()
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
    if said.is_set():
        logger.info("Compiled %s in %.1f s.", what, time.perf_counter() - begin)


def _is_verbosity_given() -> bool:
    return bool(flags.FLAGS["verbosity"].present)


def is_wanted(record: logging.LogRecord) -> bool:
    """Test whether a message is wanted; with --verbosity=1 all are."""
    if logging.root.level <= logging.DEBUG:
        return True
    unwanted = UNWANTED.get(record.name)
    return unwanted is None or not unwanted.match(record.getMessage())


def _report(unraisable: Any) -> None:
    """Report an exception that nobody can catch, as Python does.

    Writes of a failed checkpoint that end after it was given up find the event loop closed. They
    are not reported: the failure itself is.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


class _Plain(logging.Formatter):
    """Format only the message, prefixed by the level of warnings and errors.

    Messages of other packages are also prefixed by the name of their logger.
    """

    def format(self, record: logging.LogRecord) -> str:
        named = record.name.split(".")[0] in (OURS, "py")  # Python's warnings name their line
        source = "" if named else f"{record.name}: "
        return f"{PREFIXES.get(record.levelno, '')}{source}{super().format(record).rstrip()}"


class _Terminal(logging.Handler):
    """Write messages above the progress bars, which are redrawn below."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)
