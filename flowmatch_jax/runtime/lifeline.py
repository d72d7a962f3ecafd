"""A process that is gone is told by the others at once, in one line, and ends them.

JAX itself takes minutes to miss a process and then aborts with a stack trace. Here every process
keeps a connection to process 0: it closes when either end is killed, and stops answering when a
host is down. Threads wait for that, also while the main thread is in a collective that will never
end, and leave by ``os._exit``.

`watch` is that connection; `detour` keeps JAX from aborting first when process 0 is gone.
"""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from flowmatch_jax.runtime.errors import RunStopped, tell

CONNECT_TIMEOUT = 20.0  # seconds
# A host that is down: after so many seconds of silence, so many questions, so far apart.
SILENCE, QUESTIONS, APART = 10, 3, 5
BYE = "bye\n"

_leaving = threading.Event()  # this process ends in order, and so do the others
_open: list[socket.socket] = []  # they would close if nothing held them


def watch(client: Any, me: int, count: int, host: str) -> None:
    """Tell of processes that go, from now until this one ends in order.

    Args:
        client: of the coordination service, by which process 0 says where it listens.
        me: this process's number of ``count``.
        host: of process 0.

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
    connection.settimeout(None)
    connection.sendall(f"{token} {me}\n".encode())
    _start(_listen, connection, count)
    atexit.register(_say_bye, connection)


def detour(host: str, port: int) -> str:
    """An address on this host that leads to process 0, and stays open when process 0 is gone.

    When its connection to process 0 closes, JAX aborts the process before Python can say a word,
    and there is no parameter against it. So JAX is not told, and what `watch` hears counts.
    """
    if any("_proxy" in name.lower() for name in os.environ):  # gRPC would take it here too
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
    """In process 0: wait until another process says that it ends, or is gone."""
    _ask_when_silent(connection)
    lines = connection.makefile("r")
    given, _, number = _next(lines).strip().partition(" ")
    if given != token:  # whoever looks for open ports
        connection.close()
        return
    _open.append(connection)
    if _next(lines) == BYE or _leaving.is_set():
        return
    for other in _open:
        with suppress(OSError):
            other.sendall(f"{number}\n".encode())
    _end(int(number), count)


def _listen(connection: socket.socket, count: int) -> None:
    """In the others: wait until process 0 tells of one that is gone, or is gone itself."""
    _ask_when_silent(connection)
    said = _next(connection.makefile("r"))
    if not _leaving.is_set():
        _end(int(said or 0), count)


def _ask_when_silent(connection: socket.socket) -> None:
    """Have the system find out whether the other host is there: it answers for busy processes."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, QUESTIONS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, APART)


def _next(lines: Any) -> str:
    """The next line; empty when the other end is gone."""
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
    """Connect JAX's end to process 0's, both ways."""
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
    else:  # no coordination service has spoken: JAX tries again
        near.close()


def _send_on(near: socket.socket, far: socket.socket) -> None:
    _copy(near, far)
    with suppress(OSError):
        far.shutdown(socket.SHUT_RDWR)


def _copy(source: socket.socket, target: socket.socket) -> int:
    """Copy until one of them closes; the number of bytes."""
    count = 0
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
            count += len(data)
    return count
