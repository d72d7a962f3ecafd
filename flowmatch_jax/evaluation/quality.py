"""Sample quality metrics: features of samples compared with those of the training images."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Params
from flowmatch_jax.evaluation.samples import Sampler, items_of_batch
from flowmatch_jax.evaluation.super_resolution import pair_scores, summary
from flowmatch_jax.evaluation.tally import Tally
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.metrics.features.extractors import features_of, score_name
from flowmatch_jax.metrics.frechet import Moments
from flowmatch_jax.metrics.scores import (
    SCORES,
    FeatureSet,
    compute_scores,
    few_images,
    need_features,
)
from flowmatch_jax.pixels import quantise
from flowmatch_jax.runtime.errors import RunStopped, UserError
from flowmatch_jax.runtime.mesh import to_host
from flowmatch_jax.runtime.overlap import overlapped
from flowmatch_jax.runtime.progress import progress_bar
from flowmatch_jax.runtime.stops import StopNotice
from flowmatch_jax.solvers import Solution

logger = logging.getLogger(__name__)

SAVE_EVERY = 60.0  # seconds between two saves of the tally


def judge_samples(
    experiment: Experiment,
    sampler: Sampler,
    params: Params,
    count: int,
    reference: FeatureSet,
    silent: bool = False,
    partial: tuple[Path, str] | None = None,
) -> dict[str, Any]:
    """Draw ``count`` samples, quantise them, and score them against the reference.

    They are at most `number_judged`. A super-resolution model is also scored against the originals.
    Samples that are not finite are left out and counted.

    Args:
        sampler: result of `make_sampler`; samples beyond ``count`` in its last batch are dropped.
        silent: show no progress bar.
        partial: (file, settings) of the tally, which is saved every minute and removed at the end,
            so that a killed evaluation resumes and ends with the same numbers.

    Returns:
        {"fd_<extractor>" or "fid": None if the solver failed, the metrics config.evaluate.scores,
        those of `super_resolution.summary` for super-resolution, "sample_nfe": mean over batches,
        "samples_converged": whether all batches converged, "samples_not_finite": their number,
        and "warnings" if there are any}.
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
        results |= compute_scores(tally.feature_set(), reference, name, config.scores)
        if tally.pairs:
            results |= summary(np.concatenate(tally.pairs))
    if warnings := few_images(tally.moments.count, experiment.extractor.dims):
        results["warnings"] = warnings
    if partial is not None:
        partial[0].unlink(missing_ok=True)
    return results


def number_judged(experiment: Experiment, count: int) -> int:
    """Return the number of samples to score: ``count``, or fewer if there are not so many starts.

    Super-resolution has one sample per test image, and a source one per item of its test split.

    Raises:
        UserError: a score of config.evaluate.scores takes more.
    """
    if experiment.conditioning.low_resolution is not None:
        count = min(count, len(experiment.test_data))
    if experiment.source is not None:
        count = min(count, len(experiment.source.test))
    for name in experiment.config.evaluate.scores:
        if count < SCORES[name].least:
            allowed = f"{name} takes {SCORES[name].least} samples or more, and there are {count}"
            raise UserError("config.evaluate.scores", name, allowed)
    return count


def _draw(
    experiment: Experiment,
    sampler: Sampler,
    params: Params,
    count: int,
    silent: bool,
    partial: tuple[Path, str] | None,
) -> Tally:
    tally = (partial and Tally.load(*partial)) or Tally(Moments.empty(experiment.extractor.dims))
    if tally.drawn:
        logger.info("Resuming with %d samples drawn before.", tally.drawn)
    elif not silent:
        logger.info("Drawing %d samples to score them (config.evaluate.generated).", count)
    saved_at = time.monotonic()
    with (
        progress_bar(total=count, initial=tally.drawn, desc="samples", hidden=silent) as bar,
        StopNotice() as notice,
        closing(overlapped(lambda n: sampler(params, n), _batches(tally, count))) as solutions,
    ):
        for solution in solutions:
            before = tally.drawn
            _add_batch(experiment, tally, solution, count)
            bar.update(tally.drawn - before)
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


def _batches(tally: Tally, count: int) -> Iterator[int]:
    """Number the batches that are left to draw; their size is known after the first one."""
    for n in itertools.count(len(tally.nfe)):
        if tally.nfe and n * tally.drawn >= count * len(tally.nfe):
            return
        yield n


def _add_batch(experiment: Experiment, tally: Tally, solution: Solution, count: int) -> None:
    """Add the next batch of samples to the tally, up to ``count`` samples in total."""
    scores, conditioning = experiment.config.evaluate.scores, experiment.conditioning
    batch, wanted = len(tally.nfe), min(len(solution.x), count - tally.drawn)
    finite = to_host(jnp.isfinite(solution.x).all(axis=(1, 2, 3)))[:wanted]
    images = quantise(solution.x, experiment.train_data.levels)
    features, logits = features_of(experiment.extractor, images)
    tally.moments = tally.moments.add(features[:wanted][finite])
    tally.drawn += wanted
    tally.not_finite += int((~finite).sum())
    tally.converged = tally.converged and bool(solution.converged)
    tally.nfe.append(float(solution.nfe))
    if need_features(scores):
        tally.features.append(features[:wanted][finite])
    if "inception_score" in scores:
        tally.logits.append(logits[:wanted][finite])
    if conditioning.low_resolution is not None:
        originals = items_of_batch(experiment, len(images), batch)["x"]
        pairs = pair_scores(conditioning, to_host(images), originals)
        tally.pairs.append(pairs[:wanted][finite])
