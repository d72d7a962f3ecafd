"""Noise of estimators: Hutchinson's probes by kind, and gradients by the times of training.

    python -m benchmarks.estimators --workdir=runs/digits_ot

Probes: the standard deviation of log p_1 over probes, in nats, as the root mean square over 16 test
images at one dequantisation each, by the same number of derivatives. Gradients: the variance of the
gradient of flow matching with the likelihood's weight, summed over parameters, over batches of 128
training images with equal images and other times and noise. The path ends where truncated normal
dequantisation ends it, because the weight grows without bound at the data. Prints ratios to
independent Rademacher probes, and to weighted uniform times.
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import flowmatch_jax
from benchmarks.timing import write
from flowmatch_jax import times
from flowmatch_jax.arrays import Array, Params
from flowmatch_jax.couplings import independent
from flowmatch_jax.dequantisation import truncated_normal
from flowmatch_jax.divergence import PROBES
from flowmatch_jax.likelihood import log_prob
from flowmatch_jax.model import Model
from flowmatch_jax.objectives import Objective, Target, one, path_regression
from flowmatch_jax.parts.solver import likelihood_arguments
from flowmatch_jax.pixels import dequantise

IMAGES, BATCH = 16, 128
COUNTS = (1, 4)
REPEATS = 24


def probe_noise(model: Model) -> list[dict[str, float | str]]:
    """Return the standard deviation of log p_1 over probes for each kind and number of them."""
    experiment = model.experiment
    image = jnp.asarray(experiment.test_data.x[:IMAGES])
    x = dequantise(jax.random.key(0), image, model.levels)
    how = likelihood_arguments(experiment.config, experiment.path)

    def estimate(kind: str, count: int, params: Params, key: Array) -> Array:
        field = experiment.field(params)
        return log_prob(field, x, key, probes=count, probe_kind=kind, **how).log_prob

    rows = []
    for count in COUNTS:
        for kind in PROBES:
            solve = jax.jit(partial(estimate, kind, count))
            keys = jax.random.split(jax.random.key(1), REPEATS)
            found = np.stack([solve(model.params, key) for key in keys])
            deviation = math.sqrt(found.var(axis=0, ddof=1).mean())
            rows.append({"probes": count, "kind": kind, "deviation": deviation})
            print(rows[-1], flush=True)
    return rows


def gradient_noise(model: Model) -> list[dict[str, float | str]]:
    """Return the variance of the gradient for each way to give times the likelihood's weight."""
    experiment = model.experiment
    path = truncated_normal(experiment.path, model.levels).path
    # The weight at uniform times has mean 1, so that all expectations are equal.
    t = times.uniform(jax.random.key(0), 1_000_000, path, stratified=True)
    mean = float(times.likelihood_weight(path, t).mean())

    root = lambda c: jnp.sqrt(times.velocity_weight(c) / mean)  # noqa: E731
    weighted, plain = Target("velocity", root, "velocity"), Target("velocity", one, "velocity")
    make = lambda target, time: path_regression(target, path, "velocity", independent, time)  # noqa: E731
    stratified = partial(times.likelihood, stratified=True)
    ways = {
        "weighted uniform times": make(weighted, times.uniform),
        "weighted stratified times": make(weighted, partial(times.uniform, stratified=True)),
        "times by the weight": make(plain, times.likelihood),
        "stratified times by the weight": make(plain, stratified),
    }
    return [{"times": name, **_variance(model, way)} for name, way in ways.items()]


def _variance(model: Model, objective: Objective) -> dict[str, float]:
    experiment = model.experiment
    image = jnp.asarray(experiment.train_data.x[:BATCH])
    x = dequantise(jax.random.key(0), image, model.levels)

    @jax.jit
    def gradient(params: Params, key: Array) -> Array:
        loss = lambda params: objective(experiment.apply, params, {"x": x}, key)[0]  # noqa: E731
        return ravel_pytree(jax.grad(loss)(params))[0]

    keys = jax.random.split(jax.random.key(2), REPEATS)
    found = np.stack([gradient(model.params, key) for key in keys]).astype(np.float64)
    result = {"variance": float(found.var(axis=0, ddof=1).sum())}
    result["mean_norm"] = float(np.linalg.norm(found.mean(axis=0)))
    print(result, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    model = flowmatch_jax.load(parser.parse_args().workdir)
    probes, gradients = probe_noise(model), gradient_noise(model)
    write(f"estimators_{Path(model.config.data.name).name}", {"probes": probes, "times": gradients})
    independent_ones = {r["probes"]: r["deviation"] for r in probes if r["kind"] == "rademacher"}
    print("| probes | kind | nats | ratio |\n| --- | --- | --- | --- |")
    for row in probes:
        ratio = row["deviation"] / independent_ones[row["probes"]]
        print(f"| {row['probes']} | {row['kind']} | {row['deviation']:.2f} | {ratio:.2f} |")
    print("| times | variance of the gradient, ratio |\n| --- | --- |")
    for row in gradients:
        print(f"| {row['times']} | {row['variance'] / gradients[0]['variance']:.3f} |")


if __name__ == "__main__":
    main()
