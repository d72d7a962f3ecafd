"""The Inception score: exp of the mutual information between a sample and its class.

Salimans et al., Improved Techniques for Training GANs (2016). With Inception's classes it is the
Inception score; with another classifier it is named after that classifier.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from flowmatch_jax.metrics.frechet import checked
from flowmatch_jax.runtime.errors import UserError, at_least


class InceptionScore(NamedTuple):
    """Mean and population standard deviation of the scores of the splits."""

    mean: float
    std: float


def inception_score(logits: np.ndarray, splits: int = 10) -> InceptionScore:
    """Compute exp of the mean of KL(p(y | x) || p(y)) for each of ``splits`` parts of the samples.

    p(y) is the mean of p(y | x) over the part. Parts are consecutive, from i N // splits to
    (i + 1) N // splits, so samples must be in random order: independent draws are, images sorted
    by class must be shuffled first. The score equals torch-fidelity's with samples_shuffle off;
    torchmetrics divides the variance by splits - 1 and uses other part sizes where ``splits`` does
    not divide N.

    Args:
        logits: [N, C], a classifier's log p(y | x) up to a constant for each sample.
        splits: number of parts.

    Returns:
        The mean of the parts' scores, between 1 and C, and their standard deviation.

    Raises:
        UserError: there are fewer samples than splits, or a logit is not finite.
    """
    at_least("splits", splits, 1)
    logits = checked("logits", logits)
    if len(logits) < splits:
        raise UserError("splits", splits, f"there are {len(logits)} samples to split")
    edges = [i * len(logits) // splits for i in range(splits + 1)]
    scores = [_score(logits[start:end]) for start, end in itertools.pairwise(edges)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(logits: np.ndarray) -> float:
    logits = logits.astype(np.float64)
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    log_q = np.logaddexp.reduce(log_p, axis=0) - np.log(len(log_p))
    return np.exp(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1)))
