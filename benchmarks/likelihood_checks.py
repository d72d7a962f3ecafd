"""How far likelihoods are to be trusted: by tolerance, and by Hutchinson's probes.

    python -m benchmarks.likelihood_checks
    python -m benchmarks.likelihood_checks --config=configs/fashion_mnist16_ot.py --workdir=runs/...

The first is of narrow Gaussians, whose marginal field is known: errors in nats/dim of solves that
keep the log-density to the tolerance too, as the package's do, and of solves that judge x alone.
With a trained model of images also how much log p_1 scatters for the same images, by dequantisation
and by probes.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix

from benchmarks.timing import write
from flowmatch_jax import likelihood, marginals, paths, solvers
from flowmatch_jax.arrays import Array, Field
from flowmatch_jax.command_line import load_config, split_overrides
from flowmatch_jax.experiment import build
from flowmatch_jax.pixels import dequantise
from main import load_weights

PATHS = {"ot": paths.optimal_transport(), "vp": paths.variance_preserving()}
MEAN, DIMS, POINTS = 0.2, 4, 64
IMAGES, DRAWS = 32, 8


def judged_by_x(field: Field, x1: Array, t1: float, tolerance: float) -> tuple[Array, Array]:
    """(log p_1 [B], NFE) by a solve whose steps the error of x alone decides."""

    def augmented(t: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        return likelihood.divergence(field, t, state[0])

    start = (x1, jnp.zeros(len(x1), x1.dtype))
    norm = lambda error: optimistix.rms_norm(error[0])  # noqa: E731
    tolerances = dict(rtol=tolerance, atol=tolerance, error_norm=norm)
    solution = solvers.integrate(augmented, start, t1, 0.0, **tolerances)
    x0, minus_integral = solution.x
    return likelihood.gaussian_log_prob(x0) + minus_integral, solution.nfe


def narrow(name: str, std: float, tolerance: float) -> dict[str, Any]:
    """Root mean square errors in nats/dim of both, and their NFE, of data N(MEAN, std^2 I)."""
    path = PATHS[name]
    x = jnp.asarray(MEAN + std * np.random.RandomState(0).randn(POINTS, DIMS))
    data = jnp.full((1, DIMS), MEAN)
    field = lambda t, x: marginals.velocity(marginals.smoothed(path, std), t, x, data)  # noqa: E731
    score = partial(likelihood.log_prob, field, x, divergence="exact", t1=path.t_end)
    exact = score(rtol=1e-9, atol=1e-9).log_prob

    def rms(log_prob: Array) -> float:
        return float(jnp.sqrt(jnp.mean((log_prob - exact) ** 2))) / DIMS

    ours = score(rtol=tolerance, atol=tolerance)
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


def scatter(file: str, overrides: list[str], workdir: Path) -> dict[str, float]:
    """Standard deviations of log p_1 in nats over draws, the mean (of squares) over images."""
    experiment = build(load_config(file, overrides))
    ((_, weights),) = load_weights(experiment, workdir, ("ema",)).items()
    image = jnp.stack([experiment.test_source[i]["x"] for i in range(IMAGES)])
    levels, solve = experiment.test_source.levels, experiment.solver()

    @jax.jit
    def score(params: Any, noise_key: Array, probe_key: Array) -> Array:
        x, field = dequantise(noise_key, image, levels), experiment.field(params)
        return likelihood.log_prob(field, x, probe_key, t1=experiment.path.t_end, **solve).log_prob

    noise, probes = jax.random.split(jax.random.key(0), (2, DRAWS))
    score = partial(score, weights["ema"])
    draws = {
        "probes": [score(noise[0], z) for z in probes],
        "dequantisation": [score(u, probes[0]) for u in noise],
        "both": [score(u, z) for u, z in zip(noise, probes, strict=True)],
    }
    return {
        name: float(np.sqrt(np.var(np.stack(values), axis=0, ddof=1).mean()))
        for name, values in draws.items()
    }


def main() -> None:
    overrides, others = split_overrides(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config")
    parser.add_argument("--workdir", type=Path)
    flags = parser.parse_args(others)
    with jax.enable_x64(True):
        record: dict[str, Any] = {
            "narrow": [
                narrow(name, std, tolerance)
                for name in PATHS
                for std in (0.3, 0.01, 0.003)
                for tolerance in (1e-3, 1e-5)
            ]
        }
    if flags.workdir:
        record["scatter"] = scatter(flags.config, overrides, flags.workdir)
    write("likelihood_checks", record)


if __name__ == "__main__":
    main()
