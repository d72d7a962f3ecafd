"""Comparison of two sets, A (samples) and B (data), each of images or of their statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flowmatch_jax.arrays import filled
from flowmatch_jax.data.images.image_set import ImageSet, open_images
from flowmatch_jax.metrics.features.extractor import Extractor
from flowmatch_jax.metrics.features.extractors import (
    EXTRACTORS,
    NETWORK_DIMS,
    features_of,
    load_extractor,
)
from flowmatch_jax.metrics.frechet import LARGEST, Moments
from flowmatch_jax.metrics.scores import SCORES, FeatureSet
from flowmatch_jax.metrics.statistics import Kind, Statistics, is_statistics
from flowmatch_jax.runtime.errors import UserError, one_of, renamed
from flowmatch_jax.runtime.progress import progress_bar

BATCH = 128  # images of which features are computed at once
LEVELS = 256  # grey levels of files

Sets = Mapping[str, ImageSet | Statistics]


def open_sets(
    paths: Mapping[str, Path], extractor: str, weights_file: str | None, size: int | None
) -> tuple[Sets, Extractor | None]:
    """Open the sets and load the extractor. No features are computed.

    Args:
        paths: "A" and "B", or "A" alone: each a folder of pictures, an .npy or .npz file of images
            (see `open_images`), or an npz file of statistics.
        extractor, weights_file: as in `load_extractor`.
        size: as in `open_images`.

    Returns:
        The sets, and the extractor; None if no set is of images.

    Raises:
        UserError: a set or the weights cannot be read, the extractor does not fit the images, or
            the sets are of different extractors, sizes or numbers of features.
    """
    one_of("--extractor", extractor, EXTRACTORS)
    sets = {}
    for name, path in paths.items():
        with renamed(name):
            sets[name] = Statistics.load(path) if is_statistics(path) else open_images(path, size)
    images = [images for images in sets.values() if isinstance(images, ImageSet)]
    if images:
        net = _load_extractor(images, extractor, weights_file)
        wanted = _kind(images[0], net)
    else:
        net, (dims, _, shape) = None, sets["A"].kind
        wanted = Kind(NETWORK_DIMS.get(extractor, dims), extractor, shape)
    for name, path in paths.items():
        with renamed(name):
            _kind(sets[name], net).check_like(wanted, path)
    return sets, net


def _kind(images: ImageSet | Statistics, net: Extractor | None) -> Kind:
    if isinstance(images, Statistics):
        return images.kind
    return Kind(net.dims, net.name, images.shape[1:])


def _load_extractor(
    sets: Sequence[ImageSet], extractor: str, weights_file: str | None
) -> Extractor:
    with renamed("--{}"):
        net = load_extractor(extractor, sets[0].shape[1:], LEVELS, weights_file)
    if extractor == "pixels" and 8 * net.dims**2 > LARGEST:
        allowed = (
            f"{sets[0].path} has {net.dims:,} pixels per image, too many for a covariance; choose "
            "efficientnet_lite0"
        )
        raise UserError("--extractor", extractor, allowed)
    for images in sets:
        if extractor != "pixels" and images.shape[-1] not in (1, 3):
            allowed = f"it takes grey or RGB images; {images.path} has {images.shape[-1]} channels"
            raise UserError("--extractor", extractor, allowed)
    return net


def choose_scores(sets: Sets, net: Extractor | None, asked: Sequence[str] | None) -> list[str]:
    """Return the scores to compute besides the Fréchet distance.

    Args:
        sets: the sets "A" and "B".
        net: the extractor.
        asked: names of SCORES; None: all for which there are images.

    Raises:
        UserError: a score needs images or classes that are not there, or more images.
    """
    for score in asked or ():
        one_of("--scores", score, SCORES)
        if lack := _lack(score, sets, net):
            raise UserError("--scores", score, f"{lack}; leave it out")
    chosen = [s for s in SCORES if not _lack(s, sets, net)] if asked is None else list(asked)
    for name, images in sets.items():
        count = len(images) if isinstance(images, ImageSet) else images.moments.count
        least = {"the Fréchet distance": 2}
        least |= {s: SCORES[s].least for s in chosen if SCORES[s].of_features or name == "A"}
        for score, number in least.items():
            if count is not None and count < number:
                allowed = f"{score} takes {number} images or more"
                if score in SCORES:
                    allowed += "; leave it out by --scores"
                raise UserError(name, f"{count} images", allowed)
    return chosen


def _lack(score: str, sets: Sets, net: Extractor | None) -> str | None:
    """Return what is not there for a score, or None."""
    if SCORES[score].of_features:
        of_images = all(isinstance(images, ImageSet) for images in sets.values())
        return None if of_images else "it takes images as A and B, not statistics"
    if net is None or not isinstance(sets["A"], ImageSet):
        return "it takes images as A, not statistics"
    return "pixels have no class scores" if net.name == "pixels" else None


def measure(
    images: ImageSet | Statistics,
    net: Extractor | None,
    keep_features: bool = False,
    keep_logits: bool = False,
) -> FeatureSet:
    """Compute the features of a set, `BATCH` images at a time.

    Args:
        images: the set. Of statistics the moments are returned.
        net: the extractor.
        keep_features: keep the features, as float32.
        keep_logits: keep the logits, in random order: the parts of an Inception score must not be
            the classes of a folder.

    Raises:
        UserError: an image cannot be read.
    """
    if isinstance(images, Statistics):
        return FeatureSet(images.moments)
    size, moments = min(BATCH, len(images)), Moments.empty(net.dims)
    features, logits = [], []
    with progress_bar(total=len(images), desc=images.path.name) as bar:
        for x in images.batches(size):
            found, classes = features_of(net, filled(x, size))
            moments = moments.add(found[: len(x)])
            if keep_features:  # pixels, which are float64, have a few bits each
                features.append(found[: len(x)].astype(np.float32))
            if keep_logits:
                logits.append(classes[: len(x)])
            bar.update(len(x))
    order = np.random.RandomState(0).permutation(len(images))
    return FeatureSet(
        moments,
        np.concatenate(features) if keep_features else None,
        np.concatenate(logits)[order] if keep_logits else None,
    )
