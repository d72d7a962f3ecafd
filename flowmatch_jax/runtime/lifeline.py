"""Detect processes of a run that are gone, report them in one line, and end the others.

JAX itself notices a missing process after minutes and then aborts with a stack trace. Here every
process keeps a TCP connection to process 0, which closes when either end is killed and times out
when a host is down. Threads wait for this, even while the main thread is in a collective that will
never finish, and end the process with ``os._exit``.

`watch` opens that connection; `detour` keeps JAX from aborting first when process 0 is gone.
"""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TextIO

from flowmatch_jax.runtime.errors import RunStopped, tell

CONNECT_TIMEOUT = 20.0  # seconds
# TCP keepalive: seconds without data until the first probe, number of probes, seconds between them.
SILENCE, QUESTIONS, APART = 10, 3, 5
WELCOME, BYE = "welcome\n", "bye\n"

_leaving = threading.Event()  # set when the run ends normally
_open: list[socket.socket] = []  # references that keep the connections open


def watch(client: Any, me: int, count: int, host: str) -> None:
    """Watch the other processes from now until this process ends normally.

    When this returns in another process than 0, process 0 knows its connection.

    Args:
        client: client of the coordination service, through which process 0 publishes its port.
        me: number of this process.
        count: number of processes.
        host: host of process 0.

    Raises:
        OSError: process 0 does not answer there.
    """
    if me == 0:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)
        token = secrets.token_hex(8)
        client.key_value_set("flowmatch_jax/watch", f"{server.getsockname()[1]} {token}")
        _start(_accept, server, lambda connection: _attend(connection, token, count))
        atexit.register(_leaving.set)
        return
    limit = int(CONNECT_TIMEOUT * 1000)
    port, token = client.blocking_key_value_get("flowmatch_jax/watch", limit).split()
    connection = socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT)
    connection.sendall(f"{token} {me}\n".encode())
    lines = connection.makefile("r")
    if _next(lines) != WELCOME:
        raise ConnectionError("process 0 closed the connection")
    connection.settimeout(None)
    _start(_listen, connection, lines, count)
    atexit.register(_say_bye, connection)


def detour(host: str, port: int) -> str:
    """Open a local proxy to process 0 that stays open when process 0 is gone; returns its address.

    When its connection to process 0 closes, JAX aborts the process before Python can report
    anything, and no parameter prevents it. The proxy hides the closure from JAX and leaves the
    detection to `watch`.
    """
    if any("_proxy" in name.lower() for name in os.environ):  # gRPC would use that proxy here too
        os.environ.setdefault("no_grpc_proxy", f"{os.environ.get('no_proxy', '')},127.0.0.1")
    server = socket.create_server(("127.0.0.1", 0))
    _start(_accept, server, lambda connection: _forward(connection, host, port))
    return f"127.0.0.1:{server.getsockname()[1]}"


def _start(function: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()


def _accept(server: socket.socket, handle: Callable[[socket.socket], None]) -> None:
    while True:
        _start(handle, server.accept()[0])


def _attend(connection: socket.socket, token: str, count: int) -> None:
    """In process 0: wait until another process says goodbye or is gone."""
    _ask_when_silent(connection)
    lines = connection.makefile("r")
    given, _, number = _next(lines).strip().partition(" ")
    if given != token:  # a stranger, such as a port scanner
        connection.close()
        return
    _open.append(connection)
    with suppress(OSError):
        connection.sendall(WELCOME.encode())
    if _next(lines) == BYE or _leaving.is_set():
        return
    for other in _open:
        with suppress(OSError):
            other.sendall(f"{number}\n".encode())
    _end(int(number), count)


def _listen(connection: socket.socket, lines: TextIO, count: int) -> None:
    """In other processes: wait until process 0 reports one that is gone, or is gone itself."""
    _ask_when_silent(connection)
    said = _next(lines)
    if not _leaving.is_set():
        _end(int(said or 0), count)


def _ask_when_silent(connection: socket.socket) -> None:
    """Turn on TCP keepalive, which detects a host that is down; busy processes still answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, QUESTIONS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, APART)


def _next(lines: TextIO) -> str:
    """Read the next line; empty when the other end is gone."""
    with suppress(OSError, ValueError):
        return lines.readline()
    return ""


def _say_bye(connection: socket.socket) -> None:
    _leaving.set()
    with suppress(OSError):
        connection.sendall(BYE.encode())


def _end(number: int, count: int) -> NoReturn:
    why = "it failed, was killed, or its host is down"
    how = "the same command goes on from the newest checkpoint"
    tell(RunStopped(f"process {number} of {count} is gone ({why}); {how}"))
    os._exit(1)


def _forward(near: socket.socket, host: str, port: int) -> None:
    """Forward data between JAX's connection and process 0 in both directions."""
    try:
        far = socket.create_connection((host, port), timeout=CONNECT_TIMEOUT)
    except OSError:
        near.close()  # JAX tries again
        return
    far.settimeout(None)
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _start(_send_on, near, far)
    if _copy(far, near):
        _open.append(near)
    else:  # the coordination service has sent nothing: JAX tries again
        with suppress(OSError):
            near.shutdown(socket.SHUT_RDWR)  # close alone waits for the other thread, which reads
        near.close()


def _send_on(near: socket.socket, far: socket.socket) -> None:
    _copy(near, far)
    with suppress(OSError):
        far.shutdown(socket.SHUT_RDWR)


def _copy(source: socket.socket, target: socket.socket) -> int:
    """Copy data until either end closes; returns the number of bytes."""
    count = 0
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
            count += len(data)
    return count
