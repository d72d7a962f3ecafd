"""Training steps including data loading, by steps per dispatch and by storage of the images.

    python -m benchmarks.dispatch

The checkerboard's network is so small that the overhead of dispatching a step matters; the digits
show the effect on images.
"""

from __future__ import annotations

import argparse

import jax
from ml_collections import ConfigDict

from benchmarks.timing import Call, Row, compared, interleaved, rates, write_rows
from configs import checkerboard_ot, digits_ot
from flowmatch_jax.experiment import build
from flowmatch_jax.runtime.mesh import put_batches
from flowmatch_jax.training.setup import Run

AT_ONCE = 10
CASES = {
    f"checkerboard, {AT_ONCE} steps a dispatch: 1": (checkerboard_ot, "steps_per_dispatch"),
    f"digits, {AT_ONCE} steps a dispatch: 1": (digits_ot, "steps_per_dispatch"),
    "digits, images on the device: on the host": (digits_ot, "storage"),
}


def steps(config: ConfigDict) -> Call:
    """Create a call of `AT_ONCE` steps of an experiment, as its training loop runs them."""
    run, at_once = Run.of(build(config)), config.train.steps_per_dispatch
    state, batches = run.init(), run.batches(0, 0)

    def call() -> None:
        nonlocal state
        for _ in range(AT_ONCE // at_once):
            batch = put_batches([next(batches) for _ in range(at_once)], run.experiment.mesh)
            if at_once not in run.programs:
                run.compile(at_once, state, batch)
            state, metrics = run.programs[at_once](state, batch, run.images)
        jax.block_until_ready((state, metrics))

    return call


def measure(name: str, rounds: int) -> Row:
    """Measure items per second with and without the change."""
    module, field = CASES[name]
    changed, plain = module.get_config(), module.get_config()
    if field == "storage":
        changed.data.storage = "device"
    else:
        changed.train.steps_per_dispatch = AT_ONCE
    seconds = interleaved({"changed": steps(changed), "plain": steps(plain)}, rounds)
    batch = plain.train.batch_size
    items = {name: rates(AT_ONCE * batch, times) for name, times in seconds.items()}
    return compared(name, "items/s", items["changed"], items["plain"], f"batch {batch}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    rows = [measure(name, rounds) for name in CASES]
    write_rows("dispatch", "python -m benchmarks.dispatch", rounds, rows)


if __name__ == "__main__":
    main()
