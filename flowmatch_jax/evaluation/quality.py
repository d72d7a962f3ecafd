"""How far samples are from the training images: a Fréchet distance of features."""

from __future__ import annotations

import hashlib
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from flowmatch_jax.arrays import Params
from flowmatch_jax.data.pipeline import ordered_batches
from flowmatch_jax.evaluation.samples import Sampler, sample_key
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.metrics.extractors import EXTRACTORS
from flowmatch_jax.metrics.frechet import Moments, frechet_distance
from flowmatch_jax.pixels import quantise
from flowmatch_jax.progress import progress_bar
from flowmatch_jax.workdir import user_cache

REFERENCE_BATCH = 10_000  # images whose features are in memory together


def distance_name(experiment: Experiment) -> str:
    """What the distance is called: fd_ and the features' name."""
    return f"fd_{experiment.config.evaluate.extractor}"


def reference_moments(experiment: Experiment) -> Moments:
    """Moments of the training images' features, without augmentation.

    They are computed once and kept in the user's cache, under the hash of the images.
    """
    config, source = experiment.config, experiment.train_source
    name = f"{config.evaluate.extractor}-{source.levels}-{source.content_hash}.npz"
    path = user_cache() / "reference" / name
    if path.exists():
        return Moments.load(path)
    moments, extract = None, EXTRACTORS[config.evaluate.extractor]
    batches = ordered_batches(source, REFERENCE_BATCH, max_corrupt=config.data.max_corrupt)
    total = math.ceil(len(source) / REFERENCE_BATCH)
    for images in progress_bar(batches, total=total, desc="reference"):
        features = extract(images, source.levels)
        moments = (moments or Moments.empty(features.shape[1])).add(features)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        moments.save(Path(folder) / name)
        (Path(folder) / name).replace(path)
    return moments


def moments_hash(moments: Moments) -> str:
    """sha256 of mean and covariance, in hexadecimal."""
    return hashlib.sha256(moments.mean.tobytes() + moments.cov.tobytes()).hexdigest()


def judge_samples(
    experiment: Experiment,
    sampler: Sampler,
    params: Params,
    count: int,
    reference: Moments,
    silent: bool = False,
) -> dict[str, Any]:
    """Draw ``count`` samples, batch by batch, and measure their distance from the reference.

    Args:
        sampler: its batches start from the noise of `sample_key`; what goes beyond ``count`` in
            the last one is left out.
        silent: no progress bar.

    Returns:
        {"fd_<extractor>", "sample_nfe": mean over batches, "samples_converged": of all batches}.
    """
    extract = EXTRACTORS[experiment.config.evaluate.extractor]
    config, levels = experiment.config.evaluate, experiment.train_source.levels
    moments, costs, converged, batch = Moments.empty(len(reference.mean)), [], True, 0
    with progress_bar(total=count, desc="samples", hidden=silent) as bar:
        while moments.count < count:
            solution = sampler(params, sample_key(config.seed, batch))
            images = np.asarray(quantise(solution.x, levels))[: count - moments.count]
            moments = moments.add(extract(images, levels))
            costs.append(float(solution.nfe))
            converged = converged and bool(solution.converged)
            batch += 1
            bar.update(len(images))
    return {
        distance_name(experiment): frechet_distance(moments, reference) if converged else None,
        "sample_nfe": float(np.mean(costs)),
        "samples_converged": converged,
    }
