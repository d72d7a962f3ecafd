"""The reference of sample quality metrics: features of the training images and their moments."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowmatch_jax.data.images.encoded import CorruptCount
from flowmatch_jax.data.pipeline import ordered_batches, read_items
from flowmatch_jax.evaluation.samples import number_generated
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.metrics.features.extractors import features_of
from flowmatch_jax.metrics.frechet import Moments
from flowmatch_jax.runtime.errors import UserError, section
from flowmatch_jax.runtime.files import Unreadable, npz, remembered
from flowmatch_jax.runtime.progress import progress_bar
from flowmatch_jax.runtime.workdir import user_cache

BATCH = 512  # training images per batch of features
NEED_FEATURES = ("kernel_distance", "precision_recall")


@dataclass(frozen=True)
class Reference:
    """Features of the training images, without augmentation.

    Attributes:
        moments: moments of the features of all training images.
        features: features [N, D] of as many training images as samples, if a score needs
            them.
    """

    moments: Moments
    features: np.ndarray | None = None


def make_reference(experiment: Experiment) -> Reference:
    """Create the reference of an experiment with an extractor.

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
    asked = any(score in NEED_FEATURES for score in config.scores)
    return Reference(moments, _training_features(experiment) if asked else None)


def _published_moments(experiment: Experiment) -> Moments:
    path = Path(experiment.config.evaluate.reference).expanduser()
    with section("config.evaluate"):
        try:
            moments = Moments.load(path)
        except UserError as error:
            raise UserError("reference", error.got, error.allowed) from error
        net, shape = experiment.extractor, experiment.train_data.shape
        if len(moments.mean) != net.dims:
            allowed = f"{net.name} has {net.dims} features"
            raise UserError("reference", f"{path} of {len(moments.mean)} features", allowed)
        with np.load(path) as file:  # only files of this package record the images' shape
            held = tuple(file["shape"].tolist()) if "shape" in file else shape
        if held != shape:
            raise UserError("reference", f"{path} of images {held}", f"the samples are {shape}")
    return moments


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
        return npz(mu=moments.mean, sigma=moments.cov, count=moments.count, shape=source.shape)

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
