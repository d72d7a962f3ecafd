"""Processes that join a run and do what a test says."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 120  # seconds after which a child hangs
LAUNCHERS = ("SLURM_", "OMPI_", "TPU_")  # how variables of launchers begin
# What children begin with: they are told where to meet, and tell exceptions and leave as main.py.
BEGIN = """
import json, os, signal, sys, threading, time
from flowmatch_jax.runtime import processes, stops
from flowmatch_jax.runtime.errors import RunStopped, UserError

def say(*words):
    print(*words, flush=True)

def tell(function, *arguments):
    try:
        say(function(*arguments))
    except (UserError, RunStopped) as error:
        say(type(error).__name__, error)

try:
    processes.initialize(*json.loads(sys.argv[1]))
except (UserError, RunStopped) as error:
    print(error, file=sys.stderr)
    processes.leave(1 if isinstance(error, RunStopped) else 2)
me = int(sys.argv[2])
"""


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def start(body, join="[null, null, null]", me=0, **variables):
    """A child that joins and runs ``body``, which knows its number as ``me``."""
    inherited = {name: v for name, v in os.environ.items() if not name.startswith(LAUNCHERS)}
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + textwrap.dedent(body), join, str(me)],
        env=inherited | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(children):
    """Exit code, stdout's lines and stderr of each, when all have ended."""
    try:
        outputs = [child.communicate(timeout=LIMIT) for child in children]
    finally:
        for child in children:
            child.kill()
    return [
        (child.returncode, out.splitlines(), err)
        for child, (out, err) in zip(children, outputs, strict=True)
    ]


def start_all(body, count=2):
    """Processes that are joined by the three flags."""
    port = free_port()
    joins = (f'["127.0.0.1:{port}", {count}, {me}, {LIMIT}]' for me in range(count))
    return [start(body, join, me) for me, join in enumerate(joins)]


def run_two(body):
    """Two processes, as `end` gives them."""
    return end(start_all(body))
