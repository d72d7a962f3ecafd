"""Accuracy of likelihoods by solver tolerance.

    python -m benchmarks.likelihood_checks

The data are narrow Gaussians, whose marginal field is known. Errors are in nats/dim, for solves
whose error control includes the log-density, as in this package, and for solves that control the
error of x only.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix

from benchmarks.timing import write
from flowmatch_jax import likelihood, marginals, paths
from flowmatch_jax.arrays import Array, Field
from flowmatch_jax.divergence import divergence
from flowmatch_jax.solvers import Solver, integrate

PATHS = {"ot": paths.optimal_transport(), "vp": paths.variance_preserving()}
MEAN, DIMS, POINTS = 0.2, 4, 64


def judged_by_x(field: Field, x1: Array, t1: float, tolerance: float) -> tuple[Array, Array]:
    """Compute log p_1 [B] and NFE by a solve that controls the error of x only."""

    def augmented(t: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        return divergence(field, t, state[0])

    start = (x1, jnp.zeros(len(x1), x1.dtype))
    norm = lambda error: optimistix.rms_norm(error[0])  # noqa: E731
    solver = Solver(rtol=tolerance, atol=tolerance)
    solution = integrate(augmented, start, t1, 0.0, solver, error_norm=norm)
    x0, minus_integral = solution.x
    return likelihood.gaussian_log_prob(x0) + minus_integral, solution.nfe


def narrow(name: str, std: float, tolerance: float) -> dict[str, Any]:
    """Compute both RMS errors in nats/dim, and the NFE, for data N(MEAN, std^2 I)."""
    path = PATHS[name]
    x = jnp.asarray(MEAN + std * np.random.RandomState(0).randn(POINTS, DIMS))
    data = jnp.full((1, DIMS), MEAN)
    field = lambda t, x: marginals.velocity(marginals.smoothed(path, std), t, x, data)  # noqa: E731
    score = partial(likelihood.log_prob, field, x, divergence="exact", t1=path.t_end)
    exact = score(solver=Solver(rtol=1e-9, atol=1e-9)).log_prob

    def rms(log_prob: Array) -> float:
        return float(jnp.sqrt(jnp.mean((log_prob - exact) ** 2))) / DIMS

    ours = score(solver=Solver(rtol=tolerance, atol=tolerance))
    by_x, nfe = judged_by_x(field, x, path.t_end, tolerance)
    return {
        "path": name,
        "std": std,
        "tolerance": tolerance,
        "error": rms(ours.log_prob),
        "nfe": int(ours.nfe),
        "error_by_x_alone": rms(by_x),
        "nfe_by_x_alone": int(nfe),
    }


def main() -> None:
    with jax.enable_x64(True):
        rows = [
            narrow(name, std, tolerance)
            for name in PATHS
            for std in (0.3, 0.01, 0.003)
            for tolerance in (1e-3, 1e-5)
        ]
    write("likelihood_checks", {"narrow": rows})


if __name__ == "__main__":
    main()
