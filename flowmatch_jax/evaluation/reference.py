"""The reference of sample quality metrics: features of the training images and their moments."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np

from flowmatch_jax.data.images.encoded import CorruptCount
from flowmatch_jax.data.pipeline import ordered_batches, read_items
from flowmatch_jax.evaluation.samples import number_generated
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.metrics.features.extractors import features_of
from flowmatch_jax.metrics.frechet import Moments
from flowmatch_jax.metrics.scores import FeatureSet, need_features
from flowmatch_jax.metrics.statistics import Kind, Statistics
from flowmatch_jax.runtime.errors import renamed
from flowmatch_jax.runtime.files import Unreadable, remembered
from flowmatch_jax.runtime.progress import progress_bar
from flowmatch_jax.runtime.workdir import user_cache

BATCH = 512  # training images per batch of features


def make_reference(experiment: Experiment) -> FeatureSet:
    """Create the reference of an experiment with an extractor: features of its training images.

    Moments are read from the file config.evaluate.reference, if it is set. Otherwise they are
    computed once and cached under the hashes of the images and of the network.

    Raises:
        UserError: the file has no moments, or its moments are those of other features or, if it
            records a shape, of images of another shape.
    """
    config = experiment.config.evaluate
    if config.reference is not None:
        moments = _published_moments(experiment)
    else:
        moments = _training_moments(experiment)
    asked = need_features(config.scores)
    return FeatureSet(moments, _training_features(experiment) if asked else None)


def _published_moments(experiment: Experiment) -> Moments:
    path = Path(experiment.config.evaluate.reference).expanduser()
    net, shape = experiment.extractor, experiment.train_data.shape
    with renamed("config.evaluate.reference"):
        found = Statistics.load(path)
        found.kind.check_like(Kind(net.dims, net.name, shape), path)
    return found.moments


def _training_moments(experiment: Experiment) -> Moments:
    source, net = experiment.train_data, experiment.extractor
    name = f"{net.name}{net.side}-{net.sha256[:16]}-{source.levels}-{source.content_hash}.npz"

    def make() -> Moments:
        moments = Moments.empty(net.dims)
        batches = ordered_batches(source, BATCH, max_corrupt=experiment.config.data.max_corrupt)
        total = math.ceil(len(source) / BATCH)
        with progress_bar(batches, total=total, desc="reference") as bar:
            for batch in bar:
                moments = moments.add(features_of(net, batch["x"])[0])
        return moments

    def dump(moments: Moments) -> bytes:
        return Statistics(moments, net.name, source.shape).to_bytes()

    def load(path: Path) -> Moments:
        path.stat()  # raises FileNotFoundError
        moments = Moments.load(path)
        if moments.mean.shape != (net.dims,) or moments.count != len(source):
            raise Unreadable(path, "it holds moments of other features")
        return moments

    return remembered(user_cache() / "reference" / name, load, make, dump)


def _training_features(experiment: Experiment) -> np.ndarray:
    """Compute features of fixed training images, as many as samples, in random order."""
    source, config = experiment.train_data, experiment.config
    chosen = np.random.RandomState(0).permutation(len(source))[: number_generated(experiment)]
    corrupt = CorruptCount(config.data.max_corrupt)
    parts = (chosen[i : i + BATCH] for i in range(0, len(chosen), BATCH))
    images = (read_items(source, part, corrupt)["x"] for part in parts)
    return np.concatenate([features_of(experiment.extractor, x)[0] for x in images])


def moments_hash(moments: Moments) -> str:
    """Compute the sha256 of mean and covariance in hexadecimal digits."""
    return hashlib.sha256(moments.mean.tobytes() + moments.cov.tobytes()).hexdigest()
