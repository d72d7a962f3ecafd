"""Start one run as several processes on this machine.

    python -m flowmatch_jax.launch --processes=2 main.py --config=... --workdir=...
    python -m flowmatch_jax.launch --processes=2 --devices=4 main.py ...    # simulated, on CPU

Each process receives --coordinator, --processes and --process besides the script's own arguments,
and an equal share of the NVIDIA GPUs. Output lines are prefixed with the process's number; empty
lines and the carriage returns of progress bars are removed. SIGTERM, SIGINT and SIGHUP are
forwarded to all processes. When a process fails, the launcher names it and terminates the others;
they also terminate when the launcher is killed or its output is closed.
Exit codes: that of the process that failed first (128 + n if signal n ended it), or 0; 2 for a user
error, reported in one line.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import IO

from flowmatch_jax.runtime.errors import ArgumentParser, UserError, at_least, tell
from flowmatch_jax.runtime.stops import STOPS, heard

# After a process has failed: seconds until the others get SIGTERM; the same if all received a
# signal before and may be writing a checkpoint; and seconds from SIGTERM to SIGKILL.
FOLLOW, SAVE, END = 5.0, 300.0, 30.0

PR_SET_PDEATHSIG = 1  # option of Linux's prctl: the signal sent to a process when its parent dies

# Events in order: signals to this process, and (number, exit code) of processes that ended.
Events = SimpleQueue[signal.Signals | tuple[int, int]]


def launch(command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> int:
    """Run a script once per environment; returns the exit code of the first process that failed.

    Args:
        command: the script and its arguments.
        environments: environment variables of each process.
    """
    events: Events = SimpleQueue()
    previous = {
        number: signal.signal(number, lambda number, _: events.put(signal.Signals(number)))
        for number in heard(STOPS)
    }
    flags = [f"--coordinator=127.0.0.1:{_free_port()}", f"--processes={len(environments)}"]
    children = [
        _start([*command, *flags, f"--process={i}"], environment)
        for i, environment in enumerate(environments)
    ]
    copying = _copy_all(children, events)
    for i, child in enumerate(children):
        Thread(target=_await, args=(i, child, events), daemon=True).start()
    try:
        return _supervise(children, events)
    finally:
        for child in children:
            if child.poll() is None:
                _kill(child)
        for thread in copying:
            thread.join()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def _start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C then reaches the launcher alone, which forwards it once
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )


def _end_with_parent() -> None:
    """Make the system send SIGTERM to this process when the launcher is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _await(i: int, child: subprocess.Popen[str], events: Events) -> None:
    code = child.wait()
    _kill(child)  # subprocesses that it left running would keep its output open
    events.put((i, code if code >= 0 else 128 - code))


def _kill(child: subprocess.Popen[str]) -> None:
    """Kill a process and its subprocesses."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _supervise(children: Sequence[subprocess.Popen[str]], events: Events) -> int:
    """Wait until all processes have ended; returns the exit code of the first that failed."""
    failure, left, received, deadline, asked = 0, len(children), 0, None, False

    def send(number: int) -> None:
        for child in children:
            child.send_signal(number)

    while left:
        try:
            event = events.get(timeout=deadline and max(deadline - time.monotonic(), 0))
        except Empty:
            send(signal.SIGKILL if asked else signal.SIGTERM)
            asked, deadline = True, time.monotonic() + END
            continue
        if isinstance(event, signal.Signals):
            received += 1
            send(event if received < 3 else signal.SIGKILL)
            continue
        left -= 1
        i, code = event
        if code and not failure:
            failure = code
            deadline = time.monotonic() + (SAVE if received else FOLLOW)
            if left and not received:
                _tell(f"process {i} {_ended(code)}; the others are ended")
    return failure


def _ended(code: int) -> str:
    if code <= 128:
        return f"failed with exit code {code}"
    return f"was ended by {signal.Signals(code - 128).name}"


def _tell(text: str) -> None:
    with suppress(BrokenPipeError):
        print(f"launch: {text}", file=sys.stderr, flush=True)


def _copy_all(children: Sequence[subprocess.Popen[str]], events: Events) -> list[Thread]:
    """Start threads that copy the output of the processes."""
    lock = Lock()
    threads = [
        Thread(target=_copy, args=(source, target, f"[{i}] ", lock, events), daemon=True)
        for i, child in enumerate(children)
        for source, target in ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
    ]
    for thread in threads:
        thread.start()
    return threads


def _copy(source: IO[str], target: IO[str], prefix: str, lock: Lock, events: Events) -> None:
    """Copy lines with a prefix; the \\r of progress bars also ends a line.

    When the target is closed, as after ``| head``, the processes get SIGTERM. Their output is still
    read, because they would block on a full pipe otherwise.
    """
    is_read = True
    with source:
        for line in source:
            if is_read and line.strip():
                try:
                    with lock:
                        target.write(f"{prefix}{line.rstrip()}\n")
                        target.flush()
                except BrokenPipeError:
                    is_read = False
                    events.put(signal.SIGTERM)


def environments(
    processes: int, devices: int | None, variables: Mapping[str, str]
) -> list[dict[str, str]]:
    """Create the environment of each process.

    Args:
        processes: number of processes.
        devices: number of CPU devices to simulate in each process; None: use the machine's devices,
            with the NVIDIA GPUs divided among the processes.
        variables: environment variables of all processes.

    Raises:
        UserError: the number of processes does not divide the number of GPUs.
    """
    if devices is not None:
        # In JAX this variable overrides the equivalent flag in XLA_FLAGS.
        simulated = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        return [{**variables, **simulated} for _ in range(processes)]
    gpus = [] if variables.get("JAX_PLATFORMS") == "cpu" else _visible_gpus(variables)
    share, rest = divmod(len(gpus), processes)
    if rest:
        allowed = f"it must divide the number of visible GPUs, {len(gpus)}"
        raise UserError("--processes", processes, allowed)
    if not gpus:
        return [dict(variables) for _ in range(processes)]
    parts = (gpus[i * share : (i + 1) * share] for i in range(processes))
    return [{**variables, "CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]


def _visible_gpus(variables: Mapping[str, str]) -> list[str]:
    if "CUDA_VISIBLE_DEVICES" in variables:
        return [gpu.strip() for gpu in variables["CUDA_VISIBLE_DEVICES"].split(",") if gpu.strip()]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def main(arguments: Sequence[str]) -> int:
    """Parse the command line and launch the run; returns the exit code."""
    parser = ArgumentParser(
        prog="python -m flowmatch_jax.launch",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, required=True, help="number of processes")
    parser.add_argument("--devices", type=int, help="CPU devices to simulate in each process")
    parser.add_argument("script", help="script to run, such as main.py")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="its arguments")
    try:
        given = parser.parse_args(arguments)
        at_least("--processes", given.processes, 1)
        if given.devices is not None:
            at_least("--devices", given.devices, 1)
        if not Path(given.script).is_file():
            raise UserError("SCRIPT", given.script, "there is no such file; give one, as main.py")
        of_each = environments(given.processes, given.devices, os.environ)
    except UserError as error:
        tell(error)
        return 2
    return launch([given.script, *given.rest], of_each)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
