"""The processes of one run: how they join, wait for each other, agree and stop together.

Everything here goes through JAX's coordination service, a server in process 0 that all processes
are connected to: no device takes part, so nothing is compiled and nothing waits behind the steps
that devices still have to do. With one process every function returns at once.

All processes call the functions that wait (`barrier`, `same_everywhere`, `everywhere`, `largest`,
`StopNotice.reached`) in the same order.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn

import jax

from flowmatch_jax.runtime.errors import RunStopped, UserError

PATIENCE = 600.0  # seconds that processes wait for each other
FAREWELL = 10.0  # seconds that a process that failed waits for the others to fail too
HEARING = 2.0  # seconds between two looks at whether a process was asked to stop
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # SIGHUP: the terminal is gone
HOW_TO_GO_ON = "its own output says why; the same command goes on from the newest checkpoint"

_rounds: Counter[str] = Counter()  # how often each meeting was held
_outside = False  # this process could not join the others


def initialize(
    coordinator: str | None, processes: int | None, process: int | None, seconds: float = 300
) -> None:
    """Join the other processes of the run, before the first use of JAX's devices.

    With all three arguments, those are used, and the process has all devices that it can see. With
    none, JAX finds the others on Cloud TPUs, under SLURM (more tasks than one in the step; a GPU a
    task) and Open MPI (more ranks than one; a GPU a rank); elsewhere the process stays alone.

    Args:
        coordinator: host:port where process 0 listens and the others find it.
        processes: how many there are.
        process: this one's number, from 0.
        seconds: how long the others may take to come.

    Raises:
        UserError: arguments are missing or do not fit each other, or the port is taken.
        RunStopped: not all processes came in time.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) == len(given):
        if _is_launched():
            _join(seconds)
        return
    if missing:
        allowed = f"give all of {', '.join(given)}, or none where JAX finds the processes itself"
        raise UserError(missing[0], None, allowed)
    _check(coordinator, processes, process)
    # Without "deactivate" JAX would still look for a launcher, and take one GPU of several.
    _join(
        seconds,
        coordinator_address=coordinator,
        num_processes=processes,
        process_id=process,
        cluster_detection_method="deactivate",
    )


def _is_launched() -> bool:
    """Whether this is one of several processes that JAX can find by itself."""
    # The first is set when JAX is imported where there are Cloud TPUs; the others tell of hosts.
    hosts = {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_PROCESS_ADDRESSES_PATH"}
    on_tpu = "TPU_ML_PLATFORM" in os.environ and (
        "TPU_SKIP_MDS_QUERY" not in os.environ or not hosts.isdisjoint(os.environ)
    )
    # Only `srun` sets all of these, a shell of `salloc` or `sbatch` does not.
    task = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"}
    tasks = _count("SLURM_STEP_NUM_TASKS", _count("SLURM_NTASKS"))
    return on_tpu or (task <= os.environ.keys() and tasks > 1) or _count("OMPI_COMM_WORLD_SIZE") > 1


def _count(variable: str, default: int = 1) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() else default


def _check(coordinator: str, processes: int, process: int) -> None:
    """Raise UserError where the three flags do not fit each other."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError("--coordinator", coordinator, "it is host:port, such as 10.0.0.1:8476")
    if processes < 1:
        raise UserError("--processes", processes, "it must be 1 or more")
    if not 0 <= process < processes:
        allowed = f"{processes} processes are numbered from 0 to {processes - 1}"
        raise UserError("--process", process, allowed)
    if process == 0:  # JAX would end with a segmentation fault
        try:
            socket.create_server(("", int(port))).close()
        except (OSError, OverflowError) as error:
            allowed = f"process 0 cannot listen there ({error}); give another port"
            raise UserError("--coordinator", coordinator, allowed) from error


def _join(seconds: float, **options: Any) -> None:
    """`jax.distributed.initialize` with a time limit that ends in an exception.

    At its own time limit JAX aborts the process with a stack trace. So it gets a limit that it does
    not reach and a thread of its own, which is left behind.
    """
    global _outside
    failures: list[Exception] = []

    def join() -> None:
        try:
            jax.distributed.initialize(initialization_timeout=int(seconds) + 3600, **options)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive() and _group().process_id == 0:
        thread.join(1)  # so that the others see that process 0 was there
    _outside = thread.is_alive() or bool(failures)
    if thread.is_alive():
        raise RunStopped(_who_is_missing(seconds))
    if failures and options:
        raise failures[0]
    if failures:
        allowed = f"JAX cannot find the processes ({failures[0]}); name them by --coordinator, "
        raise UserError("--coordinator", None, f"{allowed}--processes and --process")
    if threading.current_thread() is threading.main_thread():
        # JAX has set a handler of its own that swallows SIGTERM: the one before it is put back.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)


def _who_is_missing(seconds: float) -> str:
    """What can be told of a run whose processes did not all come."""
    group = _group()
    me, count, address = group.process_id, group.num_processes, group.coordinator_address
    if address is None:
        missing = "JAX did not find the other processes"
    elif me and not _answers(address):
        missing = f"process 0 of {count} does not answer at {address}"
    elif me == 0 and count == 2:
        missing = "process 1 of 2 did not join"
    else:
        others = "one or more of the others"
        missing = f"not all of the {count} processes joined: {others} did not reach {address}"
    return f"{missing} within {seconds:g} s; start all processes of the run with the same flags"


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=5):
        return True
    return False


def _group() -> Any:
    """JAX's part in the coordination service: client, process_id, num_processes.

    It is private, and there is no public way to wait for processes with a time limit, to learn
    which are missing, or to exchange strings. `jax.process_index` would start the devices.
    """
    from jax._src import distributed

    return distributed.global_state


def barrier(name: str, seconds: float = PATIENCE) -> None:
    """Wait until all processes are here.

    Args:
        name: what is waited for, as it is told when a process does not come.
        seconds: the longest wait.

    Raises:
        RunStopped: processes that did not come in time, by number.
    """
    _gather(name, "", seconds)


def same_everywhere(field: str, value: str) -> None:
    """Raise UserError in all processes unless ``value`` is the same in all.

    Args:
        field: what the value is of, such as a flag.
        value: for instance a config as JSON; where it differs is told, not the whole of it.
    """
    values = _gather(f"same {field}", value)
    differing = [process for process, other in enumerate(values) if other != values[0]]
    if differing:
        theirs, ours = _difference(values[differing[0]], values[0])
        allowed = f"process 0 has {ours!r} there; start all processes with the same command"
        raise UserError(f"{field} of {_name(differing, len(values))}", theirs, allowed)


def _difference(*texts: str) -> tuple[str, ...]:
    """The first place where texts differ, with what stands around it."""
    length = min(map(len, texts))
    differ = (i for i in range(length) if len({text[i] for text in texts}) > 1)
    start = max(next(differ, length) - 30, 0)
    return tuple(text[start : start + 60] for text in texts)


def everywhere(flag: bool) -> bool:
    """Whether a flag is true in all processes: each of them gets the same answer."""
    return "no" not in _gather("everywhere", "yes" if flag else "no")


def largest(name: str, value: float) -> float:
    """The largest of all processes' values."""
    return max(map(float, _gather(name, str(value))))


def _gather(name: str, value: str, seconds: float = PATIENCE) -> list[str]:
    """The values of all processes, in order; returns when all have given theirs."""
    if not jax.distributed.is_initialized():
        return [value]
    group = _group()
    client, me, count = group.client, group.process_id, group.num_processes
    before, folder = (f"flowmatch_jax/{name}/{_rounds[name] + later}" for later in (-1, 0))
    _rounds[name] += 1
    client.key_value_set(f"{folder}/{me}", value)
    try:
        client.wait_at_barrier(folder, int(seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        here = {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get(folder)}
        # A process that comes too late finds everybody's mark, but the others have gone.
        missing = [process for process in range(count) if process not in here] or [me]
        late = f"{_name(missing, count)} did not reach {name!r} within {seconds:g} s"
        raise RunStopped(f"{late}; {HOW_TO_GO_ON}") from error
    found = {int(key.rpartition("/")[2]): text for key, text in client.key_value_dir_get(folder)}
    with suppress(jax.errors.JaxRuntimeError):  # all are here: nobody reads the last round's
        client.key_value_delete(f"{before}/{me}")
    return [found[process] for process in range(count)]


def _name(processes: list[int], count: int) -> str:
    """Processes by their numbers, the first few of many."""
    numbers = ", ".join(map(str, processes[:8])) + (", ..." if len(processes) > 8 else "")
    return f"process{'es' if len(processes) > 1 else ''} {numbers} of {count}"


def leave(code: int) -> NoReturn:
    """End this process after a failure, without minutes of waiting for processes that go on.

    At exit JAX waits 300 s for the other processes and then aborts with a stack trace. Where all
    fail alike, they leave together and in order; where the others do not follow, this process goes
    at once, and what has started them ends them.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if _outside:
        os._exit(code)
    try:
        _gather("leave", "", FAREWELL)
    except (RunStopped, jax.errors.JaxRuntimeError):
        os._exit(code)
    sys.exit(code)


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
        last_step, last_time = self._last or (step - 1, now - HEARING)
        steps, elapsed = max(step - last_step, 1), max(now - last_time, 1e-9)
        # As many steps as take HEARING by process 0's clock. Not many more than so far: the first
        # ones compile, and a pace of which little is known may change.
        ahead = max(1, min(int(steps * HEARING / elapsed), 2 * steps))
        told = _gather("stop", f"{ahead} {self._own()[0]}")
        aheads, signals = zip(*(text.split(" ") for text in told), strict=True)
        self._last, self._due = (step, now), step + int(aheads[0])
        return list(signals)
