"""Log-likelihoods of a test split."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from flowmatch_jax.arrays import Array, Params
from flowmatch_jax.data.pipeline import ordered_batches
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.likelihood import image_bits_per_dim, log_prob

# (params, x, key) -> (score [B], nfe [], converged [])
Scorer = Callable[[Params, Array, Array], tuple[Array, Array, Array]]


def make_scorer(experiment: Experiment) -> Scorer:
    """Compile the score of a batch: bits/dim of images, log-likelihood in nats of points."""
    config = experiment.config.evaluate
    solve = dict(
        source_std=experiment.path.source_std,
        t1=experiment.path.t_end,
        divergence=config.divergence,
        probes=config.probes,
        **experiment.solver(),
    )
    levels = experiment.test_source.levels

    def score(params: Params, x: Array, key: Array) -> tuple[Array, Array, Array]:
        field = experiment.field(params)
        if levels is None:
            result = log_prob(field, x, key, **solve)
            return result.log_prob, result.nfe, result.converged
        return image_bits_per_dim(field, x, key, levels, config.dequantisations, **solve)

    return jax.jit(score)


def score_key(seed: int) -> Array:
    """The key of an evaluation's dequantisation noise and probes."""
    return jax.random.fold_in(jax.random.key(seed), 1)


def batch_size(experiment: Experiment) -> int:
    """Items scored together: the field evaluate.batch_size, or all where they are fewer."""
    config = experiment.config.evaluate
    return min(config.batch_size, config.images or math.inf, len(experiment.test_source))


def score_split(experiment: Experiment, scorer: Scorer, params: Params) -> dict[str, Any]:
    """Mean score over the test split with its standard error, and the solver's cost.

    Returns:
        {"bits_per_dim" or "log_likelihood": mean, "..._standard_error": over images,
        "images": their number, "likelihood_nfe": mean over batches, "converged": of all solves}.
    """
    config = experiment.config.evaluate
    size, key = batch_size(experiment), score_key(config.seed)
    batches = ordered_batches(experiment.test_source, size, config.images)
    scores, costs, converged = [], [], True
    for i, x in enumerate(tqdm(batches, "likelihood", disable=jax.process_index() != 0)):
        # A short last batch is filled up with its first item: one shape, compiled once.
        filled = np.concatenate([x, np.repeat(x[:1], size - len(x), axis=0)])
        score, nfe, ok = scorer(params, filled, jax.random.fold_in(key, i))
        scores.append(np.asarray(score, np.float64)[: len(x)])
        costs.append(float(nfe))
        converged = converged and bool(ok)
    scores = np.concatenate(scores)
    name = "bits_per_dim" if experiment.test_source.is_image else "log_likelihood"
    return {
        name: float(scores.mean()),
        f"{name}_standard_error": float(scores.std(ddof=1) / math.sqrt(len(scores))),
        "images": len(scores),
        "likelihood_nfe": float(np.mean(costs)),
        "converged": converged,
    }
