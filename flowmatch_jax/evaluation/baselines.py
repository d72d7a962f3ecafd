"""The baselines of Table 2, which need no model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowmatch_jax.arrays import Array, Params
from flowmatch_jax.evaluation.quality import judge_samples
from flowmatch_jax.evaluation.samples import Sampler, items_of_batch, number_generated
from flowmatch_jax.evaluation.super_resolution import SCORES
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.metrics.scores import FeatureSet
from flowmatch_jax.pixels import centres
from flowmatch_jax.solvers import Solution, counted


def judge_baselines(experiment: Experiment, reference: FeatureSet) -> dict[str, dict[str, Any]]:
    """Score the test images and their bicubically enlarged low resolution as samples.

    Returns:
        {"Reference": scores of the test images, without those against the originals, "Bicubic":
        scores of the enlarged images}.
    """
    conditioning, levels = experiment.conditioning, experiment.test_data.levels
    count = number_generated(experiment)

    def judged(make: Callable[[Array], Array]) -> dict[str, Any]:
        return judge_samples(experiment, _sampler(experiment, make), None, count, reference, True)

    originals = judged(lambda image: centres(image, levels))
    enlarged = judged(
        lambda image: conditioning.enlarge(conditioning.reduce(image), image.shape[1:3])
    )
    return {
        "Reference": {k: v for k, v in originals.items() if not k.startswith(SCORES)},
        "Bicubic": enlarged,
    }


def _sampler(experiment: Experiment, make: Callable[[Array], Array]) -> Sampler:
    """Create a sampler that returns ``make`` of the test images, with an NFE of 0."""
    size = experiment.config.evaluate.samples

    def sampler(params: Params, batch: int = 0) -> Solution:
        return counted(make(items_of_batch(experiment, size, batch)["x"]), 0)

    return sampler
