"""Run a script in several processes of this machine that make up one run.

    python -m flowmatch_jax.launch --processes=2 main.py --config=... --workdir=...
    python -m flowmatch_jax.launch --processes=2 --devices=4 main.py ...    # simulated, on CPU

Each process gets --coordinator, --processes and --process besides the script's own arguments, and
an even part of the NVIDIA GPUs. Lines of output begin with the process's number; empty ones, and
what moves progress bars back to the start of their line, are left out. SIGTERM, SIGINT and SIGHUP
are handed on to all. When a process fails, it is named and the others are ended; they also end when
the launcher is killed, or when nobody reads its output any more.
Exit codes: that of the process that failed first (128 + n when signal n ended it), or 0; 2 a
mistake of the user's, told in one line.
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

# When a process has failed: seconds until the others are asked to end; the same where all were
# asked before and may be writing a checkpoint; and from there until they are killed.
FOLLOW, SAVE, END = 5.0, 300.0, 30.0

PR_SET_PDEATHSIG = 1  # of Linux' prctl: the signal that a process gets when its parent dies

# What happens, in order: signals to this process, (number, exit code) of the others.
Events = SimpleQueue[signal.Signals | tuple[int, int]]


def launch(command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> int:
    """Run a script once for each environment; returns the exit code of the first that failed.

    Args:
        command: the script and its arguments.
        environments: of each process.
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
        start_new_session=True,  # Ctrl-C reaches a terminal's session: only us, who hand it on once
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )


def _end_with_parent() -> None:
    """Have this process get SIGTERM when the launcher is killed, which can hand nothing on."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _await(i: int, child: subprocess.Popen[str], events: Events) -> None:
    code = child.wait()
    _kill(child)  # what it has left behind would keep its output open
    events.put((i, code if code >= 0 else 128 - code))


def _kill(child: subprocess.Popen[str]) -> None:
    """Kill a process and what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _supervise(children: Sequence[subprocess.Popen[str]], events: Events) -> int:
    """Wait until all have ended; the exit code of the first that failed."""
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
    """Threads that copy what processes write."""
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
    """Copy lines, which the \\r of progress bars ends too, with a prefix.

    When nobody reads them any more, as after ``| head``, the processes are asked to end; their
    lines are still taken from them, or they would wait for that for ever.
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
    """The environment of each process.

    Args:
        devices: simulated on CPU, in each process; None: the machine's own, NVIDIA GPUs shared out.
        variables: the environment of all.

    Raises:
        UserError: the processes do not divide the GPUs.
    """
    if devices is not None:
        # JAX puts this variable above the flag of the same meaning in XLA_FLAGS.
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
    """Launch what the command line asks for; returns the exit code."""
    parser = ArgumentParser(
        prog="python -m flowmatch_jax.launch",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, required=True, help="how many processes")
    parser.add_argument("--devices", type=int, help="CPU devices to simulate in each process")
    parser.add_argument("script", help="what to run, such as main.py")
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
