"""Bias of bits/dim with K dequantisations under Hutchinson's estimate, for a trained model.

    python -m benchmarks.bound_checks --config=configs/digits_ot.py --workdir=runs/digits_ot

Scores the same images with the exact trace and with many probes. Prints how much log p_1 varies
with the dequantisation and with the probe, and by how much the likelihood is overestimated: with
one probe treated as exact, and by `likelihood.importance_bound` with two or more probes.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import write
from flowmatch_jax.arrays import Array
from flowmatch_jax.config.command_line import load_config, split_overrides
from flowmatch_jax.experiment import Experiment, build
from flowmatch_jax.likelihood import importance_bound, log_prob
from flowmatch_jax.parts.solver import likelihood_arguments
from flowmatch_jax.pixels import dequantise
from flowmatch_jax.training.weights import load_weights

PROBES = 16
BOUNDS = (2, 4, 8)  # numbers of probes per bound


def score(
    experiment: Experiment, params: Any, images: int, draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute log p_1 of the first test images in nats: exact [K, 1, B], per probe [K, P, B]."""
    image = jnp.stack([experiment.test_data[i]["x"] for i in range(images)])
    levels = experiment.test_data.levels
    how = likelihood_arguments(experiment.config, experiment.path)
    noise_key, probe_key = jax.random.split(jax.random.key(0))

    @jax.jit
    def both(params: Any, key: Array) -> tuple[Array, Array]:
        x, field = dequantise(key, image, levels), experiment.field(params)
        exact = log_prob(field, x, divergence="exact", **how)
        return exact.estimates, log_prob(field, x, probe_key, probes=PROBES, **how).estimates

    found = []
    for k, key in enumerate(jax.random.split(noise_key, draws)):
        found.append(jax.device_get(both(params, key)))
        print(f"{k + 1}/{draws} dequantisations", file=sys.stderr)
    exact, estimates = map(np.stack, zip(*found, strict=True))
    return exact, estimates


def deviations(exact: np.ndarray, estimates: np.ndarray) -> dict[str, float]:
    """Compute standard deviations in nats: the root of the variance averaged over images."""
    rms = lambda x, axis: float(np.sqrt(np.var(x, axis=axis, ddof=1).mean()))  # noqa: E731
    return {
        "dequantisation_exact": rms(exact, 0),
        "dequantisation_fixed_probe": rms(estimates, 0),
        "probe_fixed_dequantisation": rms(estimates, 1),
        "noise_over_dequantisations": rms(estimates - exact, 0),
    }


def over_stated(
    exact: np.ndarray, estimates: np.ndarray, k: int, probes: int, dims: int
) -> dict[str, Any]:
    """Compute by how many bits/dim the likelihood with K = k is overestimated, with its error.

    The result is averaged over disjoint groups of probes. The mean noise of all estimates is
    subtracted as a control variate: it is 0 in expectation and most of the variance. A single
    probe is treated as the exact log-density.
    """
    groups = np.split(estimates[:k], estimates.shape[1] // probes, axis=1)
    truth, noise = importance_bound(exact[:k]), (estimates - exact).mean(axis=(0, 1))
    differences = np.mean([importance_bound(group) - truth for group in groups], axis=0) - noise
    bits = differences / (dims * math.log(2))
    error = bits.std(ddof=1) / math.sqrt(len(bits))
    return {"k": k, "probes": probes, "bits_per_dim": float(bits.mean()), "error": float(error)}


def main() -> None:
    overrides, others = split_overrides(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--draws", type=int, default=20, help="dequantisations of each image")
    flags = parser.parse_args(others)
    experiment = build(load_config(flags.config, overrides))
    ((step, weights),) = load_weights(experiment, flags.workdir, ("ema",)).items()
    exact, estimates = score(experiment, weights["ema"], flags.images, flags.draws)
    dims = math.prod(experiment.test_data.shape)
    write(
        f"bound_checks_{Path(flags.config).stem}",
        {
            "step": step,
            "images": flags.images,
            "dimensions": dims,
            "nats": deviations(exact, estimates),
            "over_stated": [
                over_stated(exact, estimates, k, probes, dims)
                for k in sorted({10, flags.draws})
                for probes in (1, *BOUNDS)
            ],
        },
    )


if __name__ == "__main__":
    main()
