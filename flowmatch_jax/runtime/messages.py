"""What a run says in the terminal: short lines that stand clear of progress bars."""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import absl.logging
from absl import flags
from tqdm import tqdm

logger = logging.getLogger(__name__)

OURS = "flowmatch_jax"  # the logger of the whole package
PREFIXES = {logging.WARNING: "warning: ", logging.ERROR: "error: ", logging.CRITICAL: "error: "}
COMPILING = 2.0  # seconds of compilation that nobody needs to be told of

# What Orbax says, through absl's logger, of no use to the user of a run.
UNWANTED = re.compile(
    # Evaluation reads checkpoints without writing any; that is how we open them.
    r"Given directory is read only="
    # These come with the traceback of an exception that Orbax raises again where the checkpoint is
    # waited for (`Checkpoints.check`); the run ends with that exception, told once.
    r"|.*_SignalingThread\.run\(\) raised an exception"
    r"|.*Failed to run \d+ Handler Commit operations"
    r"|.*Save Finalize thread \(.*\) failed",
    re.DOTALL,
)


def set_up() -> None:
    """Say warnings and errors in short lines to standard error, in place of absl's handler.

    absl's flag --verbosity still says of what importance.
    """
    if not _is_verbosity_given():
        absl.logging.set_verbosity(absl.logging.WARNING)
    handler = _Terminal()
    handler.setFormatter(_Plain())
    handler.addFilter(_is_wanted)
    logging.root.handlers = [handler]
    logging.captureWarnings(True)  # or they would be glued to a progress bar


def say_infos() -> None:
    """Say this package's infos too, unless --verbosity is given."""
    if not _is_verbosity_given():
        logging.getLogger(OURS).setLevel(logging.INFO)


@contextmanager
def compiling(what: str, patience: float = COMPILING) -> Iterator[None]:
    """Say that the block compiles, and at its end how long it took, unless that is soon over.

    Args:
        what: is compiled, such as "the training step".
        patience: seconds after which it is said.
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


def _is_wanted(record: logging.LogRecord) -> bool:
    """Whether a message is of use; to who asks for --verbosity=1 all are."""
    if record.name != "absl" or logging.root.level <= logging.DEBUG:
        return True
    return UNWANTED.match(record.getMessage()) is None


class _Plain(logging.Formatter):
    """The message alone; before warnings and errors their importance, before others' messages the
    name of their logger.
    """

    def format(self, record: logging.LogRecord) -> str:
        named = record.name.split(".")[0] in (OURS, "py")  # Python's warnings name their line
        source = "" if named else f"{record.name}: "
        return f"{PREFIXES.get(record.levelno, '')}{source}{super().format(record).rstrip()}"


class _Terminal(logging.Handler):
    """Writes above the progress bars, which it draws again below."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)
