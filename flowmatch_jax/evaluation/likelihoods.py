"""Log-likelihoods of the test split."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import numpy as np

from flowmatch_jax.arrays import Array, Batch, Params, filled
from flowmatch_jax.data.pipeline import ordered_batches
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.likelihood import bits_of, image_bits_per_dim, importance_bound, log_prob
from flowmatch_jax.parts.solver import likelihood_arguments
from flowmatch_jax.runtime.mesh import gather, split_if_even, to_host
from flowmatch_jax.runtime.messages import compiling
from flowmatch_jax.runtime.overlap import overlapped
from flowmatch_jax.runtime.progress import progress_bar

# (params, batch, key) -> (scores {name: [B]}, nfe [], converged [])
Scorer = Callable[[Params, Batch, Array], tuple[dict[str, Array], Array, Array]]

SCORES = ("bits_per_dim", "log_likelihood")  # prefixes of the scores' names


def make_scorer(experiment: Experiment) -> Scorer:
    """Create a jitted function for the likelihoods of a batch of the stored data.

    Scores are bits/dim of images for each K, named by `bits_name`, or the log-likelihood of points
    in nats. Likelihoods of a conditional model condition on the item's label or low resolution.
    """
    config = experiment.config.evaluate
    how = dict(
        likelihood_arguments(experiment.config, experiment.path),
        divergence=config.divergence,
        probes=config.probes,
        probe_kind=config.probe_kind,
        block=config.exact_block,
    )
    source = experiment.test_data
    mesh = experiment.mesh

    def score(params: Params, batch: Batch, key: Array) -> tuple[dict[str, Array], Array, Array]:
        batch = jax.tree.map(lambda x: split_if_even(x, mesh), batch)
        inputs = experiment.conditioning.inputs(batch)
        x, field = batch["x"], experiment.field(gather(params, mesh), **inputs)
        if not source.is_image:
            result = log_prob(field, x, key, **how)
            return {"log_likelihood": result.log_prob}, result.nfe, result.converged
        most, draw = max(config.dequantisations), experiment.dequantisation.likelihood
        result = image_bits_per_dim(field, x, key, samples=most, draw=draw, **how)
        dims = math.prod(source.shape)
        bits = {
            bits_name(k): bits_of(importance_bound(result.estimates[:k]), dims)
            for k in config.dequantisations
        }
        return bits, result.nfe, result.converged

    return jax.jit(score)


def bits_name(k: int) -> str:
    """Return the name of bits/dim with k dequantisations in an evaluation."""
    return f"bits_per_dim_k{k}"


def score_key(seed: int) -> Array:
    """Return the key for an evaluation's dequantisation noise and probes."""
    return jax.random.fold_in(jax.random.key(seed), 1)


def number_scored(experiment: Experiment) -> int:
    """Return the number of test items whose likelihoods an evaluation computes."""
    images, count = experiment.config.evaluate.images, len(experiment.test_data)
    return count if images is None else min(images, count)


def batch_size(experiment: Experiment) -> int:
    """Return config.evaluate.batch_size, or the number of items to score if that is smaller."""
    return min(experiment.config.evaluate.batch_size, number_scored(experiment))


def score_split(experiment: Experiment, scorer: Scorer, params: Params) -> dict[str, Any]:
    """Average the scores over the test split.

    Args:
        experiment: the experiment.
        scorer: result of `make_scorer`.
        params: the parameters.

    Returns:
        {"bits_per_dim_k<K>" for each K, or "log_likelihood": mean, "..._standard_error": standard
        error over images, "images": their number, "likelihood_nfe": mean NFE over solves,
        "converged": whether all solves converged}.
    """
    config, number, size = experiment.config, number_scored(experiment), batch_size(experiment)
    batches = ordered_batches(experiment.test_data, size, number, config.data.max_corrupt)
    key = score_key(config.evaluate.seed)
    score = partial(_score_batch, scorer, params=params, size=size, key=key)
    scored = overlapped(score, enumerate(batches))
    parts, costs, converged = [], [], True
    with progress_bar(scored, total=math.ceil(number / size), desc="likelihood") as bar:
        for scores, nfe, ok in bar:
            parts.append(scores)
            costs.append(nfe)
            converged = converged and ok
    results = {}
    for name in parts[0]:
        scores = np.concatenate([part[name] for part in parts])
        results[name] = float(scores.mean())
        results[f"{name}_standard_error"] = float(scores.std(ddof=1) / math.sqrt(len(scores)))
    return results | {
        "images": len(scores),
        "likelihood_nfe": float(np.mean(costs)),
        "converged": converged,
    }


def _score_batch(
    scorer: Scorer, numbered: tuple[int, Batch], params: Params, size: int, key: Array
) -> tuple[dict[str, np.ndarray], float, bool]:
    """Score a batch, filled up to the size; returns the scores, the NFE, and if it converged."""
    i, batch = numbered
    whole = {name: filled(x, size) for name, x in batch.items()}
    with nullcontext() if i else compiling("the likelihood"):
        scores, nfe, ok = scorer(params, whole, jax.random.fold_in(key, i))
    n = len(batch["x"])
    return {k: to_host(s).astype(np.float64)[:n] for k, s in scores.items()}, float(nfe), bool(ok)
