"""The scores of a set of images against another, from the features of both, with their names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flowmatch_jax.metrics.features.extractors import score_name
from flowmatch_jax.metrics.frechet import Moments, frechet_distance
from flowmatch_jax.metrics.inception_score import inception_score
from flowmatch_jax.metrics.kid import kernel_distance
from flowmatch_jax.metrics.precision_recall import precision_recall


@dataclass(frozen=True)
class FeatureSet:
    """What scores use of a set of images.

    Attributes:
        moments: moments of the features of all images.
        features: features [N, D], of all images or of some; None where no score needs them.
        logits: logits [N, K] of the extractor's classes; None where no score needs them.
    """

    moments: Moments
    features: np.ndarray | None = None
    logits: np.ndarray | None = None


class Score(NamedTuple):
    """A score besides the Fréchet distance.

    Attributes:
        compute: (samples, data, extractor's name) -> values by name.
        least: the least number of images of each set that it uses.
        of_features: whether it uses the features of both sets; otherwise the samples' logits.
    """

    compute: Callable[[FeatureSet, FeatureSet, str], dict[str, float]]
    least: int
    of_features: bool


def few_images(count: int | None, dims: int, what: str = "samples") -> list[str]:
    """Return a warning if there are no more images than features, otherwise nothing."""
    if count is None or count > dims:
        return []
    return [
        f"{count} {what} are too few for {dims} features: the Fréchet distance is biased upwards"
    ]


def _inception_score(samples: FeatureSet, data: FeatureSet, extractor: str) -> dict[str, float]:
    score, name = inception_score(samples.logits), score_name("is", extractor)
    return {name: score.mean, f"{name}_std": score.std}


def _kernel_distance(samples: FeatureSet, data: FeatureSet, extractor: str) -> dict[str, float]:
    size = min(1000, len(samples.features) // 2, len(data.features) // 2)
    distance = kernel_distance(samples.features, data.features, subset_size=size)
    name = score_name("kd", extractor)
    return {name: distance.mean, f"{name}_standard_error": distance.standard_error}


def _precision_recall(samples: FeatureSet, data: FeatureSet, extractor: str) -> dict[str, float]:
    found = precision_recall(samples.features, data.features)
    return {
        score_name("precision", extractor): found.precision,
        score_name("recall", extractor): found.recall,
    }


# Least numbers: ten splits, two subsets of two, three nearest neighbours.
SCORES = {
    "inception_score": Score(_inception_score, 10, of_features=False),
    "kernel_distance": Score(_kernel_distance, 4, of_features=True),
    "precision_recall": Score(_precision_recall, 4, of_features=True),
}


def compute_scores(
    samples: FeatureSet, data: FeatureSet, extractor: str, scores: Iterable[str] = ()
) -> dict[str, float]:
    """Compute the Fréchet distance, "fd_<extractor>" or "fid", and these of SCORES, by name."""
    distance = frechet_distance(samples.moments, data.moments)
    values = {score_name("fd", extractor): distance}
    for score in scores:
        values |= SCORES[score].compute(samples, data, extractor)
    return values


def need_features(scores: Iterable[str]) -> bool:
    """Test whether any of these scores uses the features themselves."""
    return any(SCORES[score].of_features for score in scores)
