"""Coordination of the processes of one run: joining, barriers, agreement, and leaving together.

All functions use JAX's coordination service, a server in process 0 to which all processes connect.
Nothing runs on the devices: nothing is compiled or waits for queued steps. With one process every
function returns at once.

All processes must call the functions that wait (`barrier`, `same_everywhere`, `everywhere`,
`largest`, `gather`) in the same order. A process that is gone ends the others, see `lifeline`.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any, NoReturn

import jax

from flowmatch_jax.runtime import lifeline
from flowmatch_jax.runtime.errors import RunStopped, UserError

logger = logging.getLogger(__name__)

BARRIER_TIMEOUT = 600.0  # seconds that processes wait for each other
EXIT_TIMEOUT = 10.0  # seconds that a failed process waits for the others to fail too
NEWS_TIMEOUT = 2.0  # seconds that `lifeline` gets to report a process that is gone
HOW_TO_GO_ON = "its own output says why; the same command goes on from the newest checkpoint"

_rounds: Counter[str] = Counter()  # number of times that each name was gathered
_outside = False  # whether this process failed to join the others


def initialize(
    coordinator: str | None, processes: int | None, process: int | None, seconds: float = 300
) -> None:
    """Join the other processes of the run; must precede the first use of JAX's devices.

    If all three arguments are given, they are used, and the process has all devices visible to it.
    If none is given, JAX finds the processes on Cloud TPUs, under SLURM (with more than one task in
    the step; one GPU per task) and Open MPI (with more than one rank; one GPU per rank); elsewhere
    the run has one process.

    Args:
        coordinator: host:port at which process 0 listens.
        processes: number of processes.
        process: number of this process, from 0.
        seconds: timeout for all processes to join.

    Raises:
        UserError: arguments are missing or inconsistent, or the port is in use.
        RunStopped: not all processes joined within the timeout.
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
    host, _, port = coordinator.rpartition(":")
    address = lifeline.detour(host.strip("[]"), int(port)) if process else coordinator
    # Without "deactivate" JAX would still detect a launcher and use only one of several GPUs.
    _join(
        seconds,
        coordinator,
        coordinator_address=address,
        num_processes=processes,
        process_id=process,
        cluster_detection_method="deactivate",
    )


def _is_launched() -> bool:
    """Test whether this is one of several processes that JAX can find by itself."""
    # JAX sets TPU_ML_PLATFORM on import on Cloud TPUs; the other variables name the hosts.
    hosts = {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_PROCESS_ADDRESSES_PATH"}
    on_tpu = "TPU_ML_PLATFORM" in os.environ and (
        "TPU_SKIP_MDS_QUERY" not in os.environ or not hosts.isdisjoint(os.environ)
    )
    # Only `srun` sets all of these; a shell of `salloc` or `sbatch` does not have them.
    task = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"}
    tasks = _count("SLURM_STEP_NUM_TASKS", _count("SLURM_NTASKS"))
    return on_tpu or (task <= os.environ.keys() and tasks > 1) or _count("OMPI_COMM_WORLD_SIZE") > 1


def _count(variable: str, default: int = 1) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() else default


def _check(coordinator: str, processes: int, process: int) -> None:
    """Raise UserError if the three flags are inconsistent."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError("--coordinator", coordinator, "it is host:port, such as 10.0.0.1:8476")
    if processes < 1:
        raise UserError("--processes", processes, "it must be 1 or more")
    if not 0 <= process < processes:
        allowed = f"{processes} processes are numbered from 0 to {processes - 1}"
        raise UserError("--process", process, allowed)
    if process == 0:  # with a port in use, JAX would end with a segmentation fault
        try:
            socket.create_server(("", int(port))).close()
        except (OSError, OverflowError) as error:
            allowed = f"process 0 cannot listen there ({error}); give another port"
            raise UserError("--coordinator", coordinator, allowed) from error


def _join(seconds: float, coordinator: str | None = None, **options: Any) -> None:
    """Call `jax.distributed.initialize` with a timeout that raises an exception.

    At its own timeout JAX aborts the process with a stack trace. It therefore runs with a longer
    timeout in a thread, which is abandoned.

    Args:
        coordinator: address of process 0; None where JAX finds it.
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
        thread.join(1)  # lets the others see that process 0 was there
    _outside = thread.is_alive() or bool(failures)
    if thread.is_alive():
        raise RunStopped(_who_is_missing(seconds, coordinator))
    if failures and options:
        raise failures[0]
    if failures:
        allowed = f"JAX cannot find the processes ({failures[0]}); name them by --coordinator, "
        raise UserError("--coordinator", None, f"{allowed}--processes and --process")
    if threading.current_thread() is threading.main_thread():
        # JAX has installed a handler that ignores SIGTERM; the previous handler is restored.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
    _watch(coordinator)


def _watch(coordinator: str | None) -> None:
    """Watch the other processes; if that fails, JAX aborts this one minutes after one is gone."""
    group = _group()
    host = (coordinator or group.coordinator_address).rpartition(":")[0].strip("[]")
    try:
        lifeline.watch(group.client, group.process_id, group.num_processes, host)
    except (OSError, jax.errors.JaxRuntimeError) as error:
        logger.warning("A process that is gone will be noticed late: %s", error)


def _who_is_missing(seconds: float, coordinator: str | None) -> str:
    """Describe which processes did not join, as far as this process can know."""
    group = _group()
    me, count = group.process_id, group.num_processes
    address = coordinator or group.coordinator_address
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
    """Return JAX's state of the coordination service: client, process_id, num_processes.

    It is private, but no public function waits for processes with a timeout, reports which are
    missing, or exchanges strings. `jax.process_index` would initialise the devices.
    """
    from jax._src import distributed

    return distributed.global_state


def barrier(name: str, seconds: float = BARRIER_TIMEOUT) -> None:
    """Wait until all processes have reached this barrier.

    Args:
        name: name of the barrier in error messages.
        seconds: the timeout.

    Raises:
        RunStopped: processes, named by number, did not reach the barrier within the timeout.
    """
    gather(name, "", seconds)


def same_everywhere(field: str, value: str) -> None:
    """Raise UserError in all processes unless ``value`` is equal in all of them.

    Args:
        field: name of the value, such as a flag.
        value: for example a config as JSON; the message quotes only the first difference.
    """
    values = gather(f"same {field}", value)
    differing = [process for process, other in enumerate(values) if other != values[0]]
    if differing:
        theirs, ours = _difference(values[differing[0]], values[0])
        allowed = f"process 0 has {ours!r} there; start all processes with the same command"
        raise UserError(f"{field} of {_name(differing, len(values))}", theirs, allowed)


def _difference(*texts: str) -> tuple[str, ...]:
    """Return an excerpt of each text around the first position where they differ."""
    length = min(map(len, texts))
    differ = (i for i in range(length) if len({text[i] for text in texts}) > 1)
    start = max(next(differ, length) - 30, 0)
    return tuple(text[start : start + 60] for text in texts)


def everywhere(flag: bool) -> bool:
    """Test whether a flag is true in all processes; all of them get the same result."""
    return "no" not in gather("everywhere", "yes" if flag else "no")


def largest(name: str, value: float) -> float:
    """Return the largest value over all processes."""
    return max(map(float, gather(name, str(value))))


def gather(name: str, value: str, seconds: float = BARRIER_TIMEOUT) -> list[str]:
    """Return the values of all processes in order; waits and raises as `barrier` does."""
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
        # A process that comes too late finds all marks, but the others have gone.
        missing = [process for process in range(count) if process not in here] or [me]
        late = f"{_name(missing, count)} did not reach {name!r} within {seconds:g} s"
        raise RunStopped(f"{late}; {HOW_TO_GO_ON}") from error
    found = {int(key.rpartition("/")[2]): text for key, text in client.key_value_dir_get(folder)}
    with suppress(jax.errors.JaxRuntimeError):  # all are here: the last round's are read no more
        client.key_value_delete(f"{before}/{me}")
    return [found[process] for process in range(count)]


def _name(processes: list[int], count: int) -> str:
    """Format process numbers, at most the first eight."""
    numbers = ", ".join(map(str, processes[:8])) + (", ..." if len(processes) > 8 else "")
    return f"process{'es' if len(processes) > 1 else ''} {numbers} of {count}"


def await_news() -> None:
    """Before reporting an exception, give `lifeline` time to end this process.

    A collective fails just when `lifeline` notices a process that is gone, reports it and exits.
    """
    if jax.distributed.is_initialized():
        time.sleep(NEWS_TIMEOUT)


def leave(code: int) -> NoReturn:
    """End this process after a failure, without waiting minutes for processes that are running.

    At exit JAX waits 300 s for the other processes and then aborts with a stack trace. If all
    processes fail, they exit together normally; otherwise this process exits after `EXIT_TIMEOUT`,
    which ends the others, see `lifeline`.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if _outside:
        os._exit(code)
    try:
        gather("leave", "", EXIT_TIMEOUT)
    except (RunStopped, jax.errors.JaxRuntimeError):
        os._exit(code)
    sys.exit(code)
