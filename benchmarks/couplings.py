"""Time and cost of minibatch optimal transport between noise and digits, by several algorithms.

    pip install --no-deps ott-jax jaxopt  # optional: its row is left out without it
    python -m benchmarks.couplings
    python -m benchmarks.couplings --only=steps

Bind the process to one core (taskset -c 1). Seconds are those of the processor, of all threads, so
that other processes do not disturb them. The first table has the seconds of one plan for a batch of
each size, and which share of the possible reduction of the cost the pairs have: 0 for independent
pairs, 1 for the optimal ones. The second has the seconds of BLOCK training steps of
configs/digits_ot.py with and without the coupling, in turns. Each block starts with an empty buffer
of batches, so that all of its noise is paired within it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.timing import spread, write
from flowmatch_jax import couplings
from flowmatch_jax.config.command_line import load_config
from flowmatch_jax.couplings import MinibatchOT
from flowmatch_jax.data.digits import digits
from flowmatch_jax.experiment import build
from flowmatch_jax.pixels import centres
from flowmatch_jax.runtime.mesh import put_batches
from flowmatch_jax.training.setup import Run

SIZES = (64, 256, 1024, 4096)
STEP_SIZES = (256,)
MOST_SECONDS = 30.0  # larger batches, for which an algorithm may need more, are left out
ROUNDS = 3
BLOCK = 10  # training steps

# (x_0, x_1) [B, D] each -> indices of x_0
Plan = Callable[[np.ndarray, np.ndarray], np.ndarray]


def ours(x0: np.ndarray, x1: np.ndarray, **options: Any) -> np.ndarray:
    return MinibatchOT(**options).pair(np.random.default_rng(0), x0, x1, None)


@jax.jit
def _optax(x0: jax.Array, x1: jax.Array) -> jax.Array:
    i, j = optax.assignment.hungarian_algorithm(-x0 @ x1.T)
    return jnp.zeros_like(i).at[j].set(i)


def by_optax(x0: np.ndarray, x1: np.ndarray) -> np.ndarray:
    return np.asarray(_optax(x0, x1))


@cache
def _ott_plan(regularisation: float) -> Callable[[jax.Array], jax.Array]:
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    @jax.jit
    def plan(cost: jax.Array) -> jax.Array:
        geom = geometry.Geometry(cost_matrix=cost, epsilon=regularisation * cost.std())
        solve = sinkhorn.Sinkhorn(max_iterations=2000)
        return solve(linear_problem.LinearProblem(geom)).matrix

    return plan


def by_ott(x0: np.ndarray, x1: np.ndarray, regularisation: float) -> np.ndarray:
    """Draw from the entropic plan of OTT's Sinkhorn, in logarithms, with its own threshold."""
    plan = np.asarray(_ott_plan(regularisation)(-x0 @ x1.T), np.float64) * len(x0)
    return couplings.draw_columns(np.random.default_rng(0), plan)


def algorithms() -> dict[str, Plan]:
    found: dict[str, Plan] = {
        "exact: SciPy, on the host": ours,
        "exact: optax.assignment, jitted": by_optax,
    }
    for value in (0.03, 0.1, 0.3):
        name = f"sinkhorn, regularisation {value}: NumPy, on the host"
        found[name] = partial(ours, method="sinkhorn", regularisation=value)
    try:
        import ott  # noqa: F401
    except ImportError:
        return found
    return found | {
        "sinkhorn, regularisation 0.1: ott-jax, jitted": partial(by_ott, regularisation=0.1)
    }


def draw(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw noise and digits, float32 [size, 64] each."""
    rng, data = np.random.default_rng(0), digits("train")
    x1 = centres(data.x[rng.integers(0, len(data), size)], data.levels)
    return rng.standard_normal((size, 64), np.float32), x1.reshape(size, -1)


def plans() -> Iterator[dict[str, Any]]:
    """Time each algorithm at each size; yields rows."""
    for name, plan in algorithms().items():
        for size in SIZES:
            x0, x1 = draw(size)
            compiled = "jitted" in name
            chosen, seconds = None, []
            for count in range(ROUNDS + compiled):
                begin = time.process_time()
                chosen = plan(x0, x1)
                if count >= compiled:
                    seconds.append(time.process_time() - begin)
            inner = lambda rows: float(np.sum(x0[rows] * x1))  # noqa: B023, E731
            least, none = inner(ours(x0, x1)), float(x0.sum(0) @ x1.sum(0)) / size
            gained = (inner(chosen) - none) / (least - none)
            yield {"algorithm": name, "size": size, "seconds": spread(seconds), "gained": gained}
            print(name, size, f"{statistics.median(seconds):.4g} s, {gained:.3f}", flush=True)
            if 4**3 * statistics.median(seconds) > MOST_SECONDS:
                break


def step_call(coupling: str, size: int) -> Callable[[], Any]:
    """Create a call of BLOCK training steps with their batches."""
    overrides = [f"--config.objective.coupling={coupling}", f"--config.train.batch_size={size}"]
    run = Run.of(build(load_config("configs/digits_ot.py", overrides)))
    kept = {"state": run.init()}

    def call() -> Any:
        batches = run.batches(int(kept["state"].step))
        for _ in range(BLOCK):
            batch = put_batches([next(batches)], run.experiment.mesh)
            kept["state"], metrics = run.train_step(kept["state"], batch, run.images)
        return metrics

    return call


def steps() -> Iterator[dict[str, Any]]:
    """Time blocks of training steps with and without the coupling; yields rows."""
    for size in STEP_SIZES:
        names = ("independent", "minibatch_ot")
        calls = {name: step_call(name, size) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for count in range(ROUNDS + 1):
            for name, call in calls.items():
                begin = time.process_time()
                jax.block_until_ready(call())
                if count:
                    seconds[name].append(time.process_time() - begin)
        ratio = statistics.median(seconds["minibatch_ot"]) / statistics.median(
            seconds["independent"]
        )
        row = {name: spread(values) for name, values in seconds.items()}
        print(size, {name: f"{each['median']:.4g} s" for name, each in row.items()}, ratio)
        yield {"size": size, **row, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    tables = {"steps": steps, "plans": plans}
    parser.add_argument("--only", choices=tables, help="one table, which is not saved")
    only = parser.parse_args().only
    if only is not None:
        list(tables[only]())
        return
    write("couplings", {name: list(table()) for name, table in tables.items()})


if __name__ == "__main__":
    main()
