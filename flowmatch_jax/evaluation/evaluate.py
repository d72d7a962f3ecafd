"""Evaluate trained weights, and record the results with the settings they depend on."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import platform
from pathlib import Path
from typing import Any

import jax

from flowmatch_jax.arrays import Params
from flowmatch_jax.config.field import Of, select
from flowmatch_jax.config.fields import FIELDS
from flowmatch_jax.data.dataset import Dataset
from flowmatch_jax.evaluation.baselines import judge_baselines
from flowmatch_jax.evaluation.likelihoods import (
    batch_size,
    make_scorer,
    number_scored,
    score_split,
)
from flowmatch_jax.evaluation.quality import judge_samples, number_judged
from flowmatch_jax.evaluation.reference import make_reference, moments_hash
from flowmatch_jax.evaluation.samples import Sampler, draw, number_generated
from flowmatch_jax.evaluation.summary import summarise
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.metrics.scores import FeatureSet
from flowmatch_jax.parts.solver import likelihood_method, solver_settings
from flowmatch_jax.runtime.files import read_json
from flowmatch_jax.runtime.own import is_own
from flowmatch_jax.runtime.workdir import write_json

logger = logging.getLogger(__name__)

MEASURED = ("results", "baselines")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "diffrax", "orbax-checkpoint", "numpy")


def evaluate(
    experiment: Experiment,
    sampler: Sampler,
    weights: dict[str, Params],
    step: int,
    workdir: Path,
) -> dict[str, Any]:
    """Compute likelihoods, if the model has any, and draw samples for each kind of weights.

    Samples use the config's guidance and path; likelihoods ignore them. Writes
    samples/<step>_<weights>.png, and adds a record to evaluation/<step>.json in the workdir.

    Args:
        sampler: result of `make_sampler`.
        weights: {"ema" or "raw": parameters}.
        step: step at which the weights were saved.
        workdir: folder of the run.

    Returns:
        The added record: the settings, "results" by kind of weights, and for super-resolution the
        "baselines".
    """
    is_scored = experiment.has_density and number_scored(experiment) > 0
    scorer = make_scorer(experiment) if is_scored else None
    _tell_of_likelihoods(experiment, is_scored)
    reference = make_reference(experiment) if experiment.extractor else None
    conditions = settings(experiment, step, reference)
    results: dict[str, dict[str, Any]] = {}
    for name, params in weights.items():
        samples = draw(experiment, sampler, workdir, name, params, step)
        likelihood = score_split(experiment, scorer, params) if scorer else {}
        results[name] = likelihood | {
            "sample_nfe": float(samples.nfe),
            "samples_converged": bool(samples.converged),
        }
        if reference is not None:
            count = number_generated(experiment)
            partial = workdir / "evaluation" / f"{step}_{name}.partial.npz", json.dumps(conditions)
            results[name] |= judge_samples(
                experiment, sampler, params, count, reference, partial=partial
            )
        _warn_of_solvers(results[name])
    record = conditions | {"results": results}
    if reference is not None and experiment.conditioning.low_resolution is not None:
        record["baselines"] = judge_baselines(experiment, reference)
    path = workdir / "evaluation" / f"{step}.json"
    if jax.process_index() == 0:
        add_record(path, record)
    logger.info("%s", summarise(record, path))
    return record


def _tell_of_likelihoods(experiment: Experiment, is_scored: bool) -> None:
    solver = experiment.config.solver
    if experiment.source is not None:
        name = experiment.source.test.name
        logger.info("The density of %s, the source, is not known: likelihoods are left out.", name)
    if not is_scored:
        return
    if likelihood_method(solver.method) != solver.method:
        logger.info("The solver %s is for samples; likelihoods use dopri5.", solver.method)
    if experiment.guidance:
        logger.info("Samples use guidance; likelihoods ignore it.")
    if solver.path is not None:
        logger.info("Samples follow the path %s; likelihoods the path of training.", solver.path)


def _warn_of_solvers(results: dict[str, Any]) -> None:
    for what, flag in (("likelihood", "converged"), ("samples", "samples_converged")):
        if not results.get(flag, True):
            logger.warning("The solver of the %s failed: its results are invalid.", what)


def is_evaluated(experiment: Experiment, workdir: Path) -> bool:
    """Test whether the run's last step has been evaluated with these settings."""
    step = experiment.config.train.steps
    path = workdir / "evaluation" / f"{step}.json"
    if not path.exists():
        return False
    reference = make_reference(experiment) if experiment.extractor else None
    wanted = settings(experiment, step, reference)
    for name in _machine():
        del wanted[name]
    return any(
        set(experiment.config.evaluate.weights) <= record["results"].keys()
        and all(record.get(name) == wanted[name] for name in wanted)
        for record in read_records(path)
    )


def numbers(record: dict[str, Any]) -> dict[str, float | None]:
    """Return the numbers of a record by name, evaluation/<weights>/<name>; None if not finite."""
    return {
        f"evaluation/{weights}/{name}": float(value) if math.isfinite(value) else None
        for weights, results in record["results"].items()
        for name, value in results.items()
        if isinstance(value, bool | int | float)
    }


def add_record(path: Path, record: dict[str, Any]) -> None:
    """Add an evaluation to the file of its step, merging it with one of the same settings."""
    records = read_records(path)
    results = {}
    for other in list(records):
        if all(other.get(name) == record[name] for name in record if name not in MEASURED):
            records.remove(other)
            results = other["results"]
    records.append(record | {"results": results | record["results"]})
    write_json(path, {"step": record["step"], "evaluations": records})


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the evaluations of evaluation/<step>.json, oldest first; none if the file is missing.

    An unreadable file is renamed to <step>.json.unreadable, so that the new evaluation can still be
    recorded.
    """
    try:
        return list(read_json(path)["evaluations"])
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        kept = path.with_name(f"{path.name}.unreadable")
        logger.warning("%s cannot be read, and is kept as %s: %s", path, kept.name, error)
        if jax.process_index() == 0:
            path.replace(kept)
        return []


def settings(experiment: Experiment, step: int, reference: FeatureSet | None) -> dict[str, Any]:
    """Return the settings that the results of an evaluation depend on, besides the weights.

    They include the fields that are declared to identify scores (`config.field.Of`).

    Args:
        experiment: the experiment.
        step: step of the evaluated weights.
        reference: reference of sample quality metrics, if any.
    """
    config, data = select(FIELDS, experiment.config, Of.SCORES), experiment.test_data
    path, scored = config["path"]["name"], config["evaluate"]
    conditional = {}
    if experiment.conditioning:
        conditional["condition"] = config["condition"]
    if experiment.conditioning.labels or experiment.guidance:
        conditional["guidance"] = config["guidance"]
    if experiment.source is not None:
        conditional["source"] = _identity(experiment.source.test) | config["source"]
    if config["objective"]["name"] == "sr3":
        conditional["sr3"] = config["sr3"]
    return (
        conditional
        | {
            "step": step,
            "seed": config["seed"],
            "evaluation_seed": scored["seed"],
            "data": _identity(data) | {"levels": data.levels, "entropy": data.entropy},
            "path": {"name": path, **config["path"].get("options" if is_own(path) else path, {})},
            "objective": config["objective"],
            "solver": solver_settings(experiment.config, experiment.fitted),
            "likelihood": {
                "batch_size": batch_size(experiment),
                "images": number_scored(experiment),
                "dequantisations": scored["dequantisations"] if data.is_image else None,
                "divergence": scored["divergence"],
                "probes": scored["probes"],
            }
            | _later_settings(config),
            "samples": {"batch_size": scored["samples"]},
            "frechet": reference and _frechet_settings(experiment, scored, reference),
            "dtype": "float32",
        }
        | _machine()
    )


def _identity(data: Dataset) -> dict[str, Any]:
    names = {"name": data.name, "version": data.version, "split": data.split}
    return names | {"sha256": data.content_hash}


def _later_settings(config: dict[str, Any]) -> dict[str, str]:
    """Return settings of likelihoods that differ from those before they were recorded."""
    method = config["solver"]["method"]
    before = {"dequantisation": "uniform", "probe_kind": "rademacher", "method": method}
    values = config["data"] | config["evaluate"] | {"method": likelihood_method(method)}
    return {name: values[name] for name in before if values[name] != before[name]}


def _frechet_settings(
    experiment: Experiment, scored: dict[str, Any], reference: FeatureSet
) -> dict[str, Any]:
    return {
        "extractor": experiment.extractor.name,
        "side": experiment.extractor.side,
        "weights_sha256": experiment.extractor.sha256,
        "generated": number_judged(experiment, number_generated(experiment)),
        "scores": scored["scores"],
        "reference": {
            "split": experiment.train_data.split,
            "file": scored["reference"],
            "images": reference.moments.count,
            "sha256": moments_hash(reference.moments),
        },
    }


def _machine() -> dict[str, Any]:
    """Describe the machine and packages; they do not identify an evaluation."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
