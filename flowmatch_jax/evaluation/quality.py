"""How far samples are from the training images, by their features."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import time
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Params
from flowmatch_jax.data.images.encoded import CorruptCount
from flowmatch_jax.data.pipeline import ordered_batches, read_items
from flowmatch_jax.evaluation.samples import Sampler, items_of_batch
from flowmatch_jax.evaluation.super_resolution import pair_scores, summary
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.metrics.features.extractors import features_of, score_name
from flowmatch_jax.metrics.frechet import Moments, frechet_distance
from flowmatch_jax.metrics.inception_score import inception_score
from flowmatch_jax.metrics.kid import kernel_distance
from flowmatch_jax.metrics.precision_recall import precision_recall
from flowmatch_jax.pixels import quantise
from flowmatch_jax.runtime.errors import RunStopped, UserError, section
from flowmatch_jax.runtime.files import Unreadable, remembered, write_atomically
from flowmatch_jax.runtime.mesh import to_host
from flowmatch_jax.runtime.stops import StopNotice
from flowmatch_jax.runtime.progress import progress_bar
from flowmatch_jax.runtime.workdir import user_cache

logger = logging.getLogger(__name__)

BATCH = 512  # training images whose features are computed together
SAVE_EVERY = 60.0  # seconds between two savings of what is known
PARTS = ("features", "logits", "pairs")  # of a tally
NEED_FEATURES = ("kernel_distance", "precision_recall")


@dataclass(frozen=True)
class Reference:
    """What samples are held against: training images, without augmentation.

    Attributes:
        moments: of all their features.
        features: [N, D] of as many as are generated, where a score asks for them.
    """

    moments: Moments
    features: np.ndarray | None = None


def make_reference(experiment: Experiment) -> Reference:
    """The reference of an experiment with an extractor.

    Moments are computed once and kept in the user's cache, under the hash of the images and of the
    net; or read from the file config.evaluate.reference.

    Raises:
        UserError: the file is none of moments, or holds those of other features or, where it says
            so, of images of another shape.
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
        with np.load(path) as file:
            held = tuple(file["shape"].tolist()) if "shape" in file else shape  # ours say it
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
        for batch in progress_bar(batches, total=total, desc="reference"):
            moments = moments.add(features_of(net, batch["x"])[0])
        return moments

    def dump(moments: Moments) -> bytes:
        return _npz(mu=moments.mean, sigma=moments.cov, count=moments.count, shape=source.shape)

    def load(path: Path) -> Moments:
        path.stat()  # raises FileNotFoundError
        moments = Moments.load(path)
        if moments.mean.shape != (net.dims,) or moments.count != len(source):
            raise Unreadable(path, "it holds moments of other features")
        return moments

    return remembered(user_cache() / "reference" / name, load, make, dump)


def _training_features(experiment: Experiment) -> np.ndarray:
    """Of config.evaluate.generated training images, or all: a fixed choice, in random order."""
    source, config = experiment.train_data, experiment.config
    chosen = np.random.RandomState(0).permutation(len(source))[: config.evaluate.generated]
    corrupt = CorruptCount(config.data.max_corrupt)
    parts = (chosen[i : i + BATCH] for i in range(0, len(chosen), BATCH))
    images = (read_items(source, part, corrupt)["x"] for part in parts)
    return np.concatenate([features_of(experiment.extractor, x)[0] for x in images])


def moments_hash(moments: Moments) -> str:
    """sha256 of mean and covariance, in hexadecimal."""
    return hashlib.sha256(moments.mean.tobytes() + moments.cov.tobytes()).hexdigest()


@dataclass
class Tally:
    """What is known of the samples drawn so far.

    Attributes:
        moments: of the features of those that are finite.
        drawn, not_finite: samples, and those left out since they hold values that are not finite.
        converged: of all batches.
        nfe: of each batch.
        features, logits: of the finite ones, batch by batch, where a score asks for them.
        pairs: of the finite ones beside their originals, where there are any; see `pair_scores`.
    """

    moments: Moments
    drawn: int = 0
    not_finite: int = 0
    converged: bool = True
    nfe: list[float] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    pairs: list[np.ndarray] = field(default_factory=list)

    def save(self, path: Path, settings: str) -> None:
        """Write all of it, exactly, with the settings that it was drawn by."""
        fields = vars(self) | {
            name: np.concatenate(parts) if (parts := getattr(self, name)) else np.zeros(0)
            for name in PARTS
        }
        moments = fields.pop("moments")
        path.parent.mkdir(parents=True, exist_ok=True)
        known = {"mu": moments.mean, "sigma": moments.cov, "count": moments.count}
        write_atomically(path, _npz(settings=settings, **fields, **known))

    @classmethod
    def load(cls, path: Path, settings: str) -> Tally | None:
        """What `save` wrote; None where there is nothing, or it was drawn by other settings."""
        if not path.exists():
            return None
        try:
            with np.load(path) as saved:
                if str(saved["settings"]) != settings:
                    return None
                return cls(
                    moments=Moments(int(saved["count"]), saved["mu"], saved["sigma"]),
                    drawn=int(saved["drawn"]),
                    not_finite=int(saved["not_finite"]),
                    converged=bool(saved["converged"]),
                    nfe=saved["nfe"].tolist(),
                    **{name: [saved[name]] if saved[name].size else [] for name in PARTS},
                )
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            logger.warning("%s cannot be read, and samples are drawn anew: %s", path, error)
            return None


def judge_samples(
    experiment: Experiment,
    sampler: Sampler,
    params: Params,
    count: int,
    reference: Reference,
    silent: bool = False,
    partial: tuple[Path, str] | None = None,
) -> dict[str, Any]:
    """Draw ``count`` samples, batch by batch, and score them against the reference.

    Of a super-resolution model no more than there are test images, whose low resolution it is
    given; each is scored against its original too. Samples are quantised by `pixels.quantise`
    first. Those that are not finite are left out and counted.

    Args:
        sampler: of `make_sampler`; what goes beyond ``count`` in its last batch is left out.
        silent: no progress bar.
        partial: (file, settings) of what is known, saved every minute and removed at the end, so
            that a killed evaluation goes on and ends with the same numbers.

    Returns:
        {"fd_<extractor>" or "fid": None if the solver gave up, further scores that
        config.evaluate.scores names, of super-resolution those of `super_resolution.summary`,
        "sample_nfe": mean over batches, "samples_converged": of all batches, "samples_not_finite",
        and "warnings" where there are any}.
    """
    count = number_judged(experiment, count)
    tally = _draw(experiment, sampler, params, count, silent, partial)
    config, name = experiment.config.evaluate, experiment.extractor.name
    results: dict[str, Any] = {
        score_name("fd", name): None,
        "sample_nfe": float(np.mean(tally.nfe)),
        "samples_converged": tally.converged,
        "samples_not_finite": tally.not_finite,
    }
    if tally.converged and tally.moments.count >= 2:
        results[score_name("fd", name)] = frechet_distance(tally.moments, reference.moments)
        for score in config.scores:
            results |= _SCORES[score](tally, reference, name)
        if tally.pairs:
            results |= summary(np.concatenate(tally.pairs))
    if tally.moments.count <= experiment.extractor.dims:
        results["warnings"] = [
            f"{tally.moments.count} samples are too few for {experiment.extractor.dims} features: "
            "the Fréchet distance is biased upwards"
        ]
    if partial is not None:
        partial[0].unlink(missing_ok=True)
    return results


def number_judged(experiment: Experiment, count: int) -> int:
    """How many samples are judged where ``count`` are asked for."""
    if experiment.conditioning.low_resolution is None:
        return count
    return min(count, len(experiment.test_data))


def _draw(
    experiment: Experiment,
    sampler: Sampler,
    params: Params,
    count: int,
    silent: bool,
    partial: tuple[Path, str] | None,
) -> Tally:
    net, levels = experiment.extractor, experiment.train_data.levels
    config = experiment.config.evaluate
    tally = (partial and Tally.load(*partial)) or Tally(Moments.empty(net.dims))
    if tally.drawn:
        logger.info("Going on with %d samples drawn before", tally.drawn)
    saved_at = time.monotonic()
    with (
        progress_bar(total=count, initial=tally.drawn, desc="samples", hidden=silent) as bar,
        StopNotice() as notice,
    ):
        while tally.drawn < count:
            batch = len(tally.nfe)
            solution = sampler(params, batch)
            wanted = min(len(solution.x), count - tally.drawn)
            finite = to_host(jnp.isfinite(solution.x).all(axis=(1, 2, 3)))[:wanted]
            images = quantise(solution.x, levels)
            features, logits = features_of(net, images)
            tally.moments = tally.moments.add(features[:wanted][finite])
            tally.drawn += wanted
            tally.not_finite += int((~finite).sum())
            tally.converged = tally.converged and bool(solution.converged)
            tally.nfe.append(float(solution.nfe))
            if any(score in NEED_FEATURES for score in config.scores):
                tally.features.append(features[:wanted][finite])
            if "inception_score" in config.scores:
                tally.logits.append(logits[:wanted][finite])
            if experiment.conditioning.low_resolution is not None:
                originals = items_of_batch(experiment, len(images), batch)["x"]
                pairs = pair_scores(experiment.conditioning, to_host(images), originals)
                tally.pairs.append(pairs[:wanted][finite])
            bar.update(wanted)
            stop = notice.reached(len(tally.nfe))
            if partial is not None and (stop or time.monotonic() - saved_at > SAVE_EVERY):
                if jax.process_index() == 0:
                    tally.save(*partial)
                saved_at = time.monotonic()
            if stop:
                kept = f"which are kept in {partial[0]}" if partial else "which are not kept"
                raise RunStopped(
                    f"{notice.signal}: stopped after {tally.drawn} of {count} samples, {kept}; the "
                    "same command goes on"
                )
    return tally


def _inception_score(tally: Tally, reference: Reference, name: str) -> dict[str, float]:
    score = inception_score(np.concatenate(tally.logits))
    return {score_name("is", name): score.mean, f"{score_name('is', name)}_std": score.std}


def _kernel_distance(tally: Tally, reference: Reference, name: str) -> dict[str, float]:
    features = np.concatenate(tally.features)
    size = min(1000, len(features) // 2, len(reference.features) // 2)
    distance = kernel_distance(features, reference.features, subset_size=size)
    key = score_name("kd", name)
    return {key: distance.mean, f"{key}_standard_error": distance.standard_error}


def _precision_recall(tally: Tally, reference: Reference, name: str) -> dict[str, float]:
    found = precision_recall(np.concatenate(tally.features), reference.features)
    return {
        score_name("precision", name): found.precision,
        score_name("recall", name): found.recall,
    }


_SCORES = {
    "inception_score": _inception_score,
    "kernel_distance": _kernel_distance,
    "precision_recall": _precision_recall,
}


def _npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
