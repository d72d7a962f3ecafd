"""The feature extractors for sample quality metrics, by name.

Only features of the 2015 Inception give what the field calls FID, Inception score and KID; the same
metrics of other features are named after the extractor.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from flowmatch_jax.arrays import Array
from flowmatch_jax.metrics.features import efficientnet, inception
from flowmatch_jax.metrics.features.efficientnet import load_efficientnet_lite0
from flowmatch_jax.metrics.features.extractor import Extractor
from flowmatch_jax.metrics.features.inception import load_inception
from flowmatch_jax.pixels import as_bytes
from flowmatch_jax.runtime.errors import UserError, one_of
from flowmatch_jax.runtime.mesh import to_host

EXTRACTORS = ("pixels", "efficientnet_lite0", "inception")
NETWORK_DIMS = {"efficientnet_lite0": efficientnet.DIMS, "inception": inception.DIMS}
NAMES_OF_INCEPTION = {"fd": "fid", "is": "inception_score", "kd": "kid"}


def load_extractor(
    name: str, shape: tuple[int, ...], levels: int, weights: str | None = None
) -> Extractor:
    """Load an extractor for integer images of shape [H, W, C] with values in [0, levels).

    Args:
        name: one of EXTRACTORS.
        shape: shape [H, W, C] of an image.
        levels: grey levels of the images.
        weights: file of Inception's weights (pytorch-fid's); required for "inception" only.

    Raises:
        UserError: the name is unknown, or the weights are missing, damaged, or another network's.
    """
    one_of("extractor", name, EXTRACTORS)
    if name != "inception" and weights is not None:
        raise UserError("weights_file", weights, f"{name} needs none: leave it unset")
    if name == "pixels":
        apply = lambda images: (pixels(to_host(images), levels), None)  # noqa: E731
        return Extractor("pixels", shape[0], math.prod(shape), "", apply)
    if name == "efficientnet_lite0":
        net = load_efficientnet_lite0()
    elif weights is None:
        allowed = "name the file of FID's Inception weights, pt_inception-2015-12-05-6726825d.pth"
        raise UserError("weights_file", None, allowed)
    else:
        try:
            net = load_inception(Path(weights).expanduser())
        except UserError as error:
            raise UserError("weights_file", error.got, error.allowed) from error
    return replace(net, apply=lambda images: net.apply(as_bytes(images, levels)))


def pixels(images: np.ndarray, levels: int) -> np.ndarray:
    """Use pixels as features, at the centres of their bins in [-1, 1], float64; for tiny images."""
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    return (2 * flat + 1) / levels - 1


def score_name(score: str, extractor: str) -> str:
    """Return the metric name of fd (Fréchet), is, kd (kernel), precision or recall."""
    if extractor == "inception":
        return NAMES_OF_INCEPTION.get(score, score)
    return f"{score}_{extractor}"


def features_of(extractor: Extractor, images: Array) -> tuple[np.ndarray, np.ndarray | None]:
    """Compute features [B, D] and logits [B, K] (or None) of images, on the host."""
    features, logits = extractor.apply(images)
    if logits is None:
        return features, None
    return to_host(features), to_host(logits)
