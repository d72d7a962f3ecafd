"""Evaluate trained weights and record the numbers with all that they depend on."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
from pathlib import Path
from typing import Any

import jax

from flowmatch_jax.arrays import Params
from flowmatch_jax.evaluation.samples import Sampler, draw
from flowmatch_jax.evaluation.scores import batch_size, make_scorer, score_split
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.workdir import write_json

logger = logging.getLogger(__name__)

PACKAGES = ("jax", "jaxlib", "flax", "optax", "diffrax", "orbax-checkpoint", "numpy")


def evaluate(
    experiment: Experiment,
    sampler: Sampler,
    weights: dict[str, Params],
    step: int,
    workdir: Path,
) -> dict[str, Any]:
    """Score the test split and draw samples, for each kind of weights.

    Writes samples/<step>_<weights>.png and adds to evaluation/<step>.json under the workdir.

    Args:
        sampler: of `make_sampler`.
        weights: {"ema" or "raw": parameters}.
        step: at which they were saved.

    Returns:
        What is added: the settings, and "results" by kind of weights.
    """
    scorer = make_scorer(experiment)
    results = {}
    for name, params in weights.items():
        samples = draw(experiment, sampler, workdir, name, params, step)
        results[name] = score_split(experiment, scorer, params) | {
            "sample_nfe": int(samples.nfe),
            "samples_converged": bool(samples.converged),
        }
        logger.info("%s weights at step %d: %s", name, step, json.dumps(results[name]))
    record = settings(experiment, step) | {"results": results}
    if jax.process_index() == 0:
        add_record(workdir / "evaluation" / f"{step}.json", record)
    return record


def add_record(path: Path, record: dict[str, Any]) -> None:
    """Add an evaluation to the file of its step, in place of one made with the same settings."""
    records = json.loads(path.read_text())["evaluations"] if path.exists() else []
    results = {}
    for other in list(records):
        if all(other.get(name) == record[name] for name in record if name != "results"):
            records.remove(other)
            results = other["results"]
    records.append(record | {"results": results | record["results"]})
    write_json(path, {"step": record["step"], "evaluations": records})


def settings(experiment: Experiment, step: int) -> dict[str, Any]:
    """All that the numbers of an evaluation depend on, besides the weights."""
    config, source = experiment.config, experiment.test_source
    return {
        "step": step,
        "seed": config.seed,
        "evaluation_seed": config.evaluate.seed,
        "data": {
            "name": source.name,
            "version": source.version,
            "split": source.split,
            "levels": source.levels,
            "entropy": source.entropy,
        },
        "path": {"name": config.path.name, **config.path[config.path.name]},
        "objective": dict(config.objective),
        "solver": experiment.solver(),
        "likelihood": {
            "batch_size": batch_size(experiment),
            "images": min(config.evaluate.images or len(source), len(source)),
            "dequantisations": config.evaluate.dequantisations if source.is_image else None,
            "divergence": config.evaluate.divergence,
            "probes": config.evaluate.probes,
        },
        "samples": {"batch_size": config.evaluate.samples},
        "dtype": "float32",
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
