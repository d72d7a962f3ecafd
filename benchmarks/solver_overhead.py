"""What a solve costs over the network calls it makes: solve / (NFE x one call).

    python -m benchmarks.solver_overhead

The digits U-Net with random parameters; one call is timed inside a loop of as many calls, so that
neither side pays for dispatch from Python. Interleaved rounds, ratios round by round.
"""

from __future__ import annotations

import statistics

import jax
import jax.numpy as jnp

from benchmarks.timing import interleaved, ratios, write
from configs import digits_ot
from flowmatch_jax import solvers
from flowmatch_jax.arrays import Array, Params
from flowmatch_jax.experiment import build

BATCH = 128


def main() -> None:
    experiment = build(digits_ot.get_config())
    params = experiment.init_params(jax.random.key(0))
    # Away from the initial zero field, which an adaptive method would cross in a few steps.
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape), params)
    x = jax.random.normal(jax.random.key(2), (BATCH, *experiment.train_source.shape))

    cases = {
        "dopri5 1e-5": {"rtol": 1e-5, "atol": 1e-5},
        "tsit5 1e-5": {"method": "tsit5", "rtol": 1e-5, "atol": 1e-5},
        "midpoint 50": {"method": "midpoint", "steps": 50},
        "euler 50": {"method": "euler", "steps": 50},
    }
    record = {}
    for name, options in cases.items():

        @jax.jit
        def solve(params: Params, x: Array, options: dict = options) -> solvers.Solution:
            return solvers.integrate(experiment.field(params), x, **options)

        nfe = int(solve(params, x).nfe)

        @jax.jit
        def calls(params: Params, x: Array, nfe: int = nfe) -> Array:
            field = experiment.field(params)
            times = jnp.linspace(0.0, 1.0, nfe)
            return jax.lax.scan(lambda x, t: (x + 1e-3 * field(t, x), None), x, times)[0]

        seconds = interleaved(
            {"solve": lambda: solve(params, x), "calls": lambda: calls(params, x)}
        )
        record[name] = {
            "ratio": ratios(seconds["solve"], seconds["calls"]),
            "nfe": nfe,
            "solve_seconds": statistics.median(seconds["solve"]),
        }
    write("solver_overhead", {"batch": BATCH, "cases": record})


if __name__ == "__main__":
    main()
