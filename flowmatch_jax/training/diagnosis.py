"""Diagnosis of a training step whose loss or gradient is not finite."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Array, Batch, Params
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.objectives import OBJECTIVES, Objective
from flowmatch_jax.parts import make_matching
from flowmatch_jax.runtime.own import is_own
from flowmatch_jax.runtime.workdir import write_json
from flowmatch_jax.training.state import TrainState
from flowmatch_jax.training.step import experiment_gradient, numbered

logger = logging.getLogger(__name__)

TIMES = 11  # number of times from 0 to the path's end at which the loss is computed
SHOWN = 5  # number of layers in the log


def diagnose(experiment: Experiment, state: TrainState, batch: Batch) -> dict[str, Any]:
    """Repeat the last step, whose update was skipped, and summarise its losses and gradients.

    Args:
        experiment: the experiment.
        state: state after that step.
        batch: batch of that step, {name: [B, ...]}; images, not their indices.

    Returns:
        {"step", "loss", "loss_by_t": [{"t", "loss"}], empty where the objective has no times,
        "gradients": [{"layer", "norm", "largest", "not_finite": number of such elements}]}. Layers
        are sorted by their non-finite elements, then by norm. Norms and maxima are over the finite
        elements. Numbers that are not finite are strings.
    """
    batch, key = numbered(batch, state.step - 1), jax.random.fold_in(state.key, state.step - 1)
    gradients, metrics = jax.jit(experiment_gradient(experiment))(state.params, batch, key)
    layers = [
        {"layer": jax.tree_util.keystr(path, simple=True, separator="/")} | summary
        for path, summary in jax.tree_util.tree_leaves_with_path(
            jax.device_get(jax.jit(_summaries)(gradients)), is_leaf=lambda x: "not_finite" in x
        )
    ]
    layers.sort(key=lambda layer: (-layer["not_finite"], -layer["norm"]))

    @jax.jit
    def loss(t: Array, params: Params, batch: Batch, key: Array) -> Array:
        gradient = experiment_gradient(experiment, _objective_at(experiment, t))
        return gradient(params, batch, key)[1]["loss"]

    has_times = _objective_at(experiment, jnp.zeros(())) is not None
    times = np.linspace(0, experiment.path.t_end, TIMES) if has_times else ()
    return {
        "step": int(state.step),
        "loss": _number(metrics["loss"]),
        "loss_by_t": [
            {"t": round(float(t), 6), "loss": _number(loss(t, state.params, batch, key))}
            for t in times
        ],
        "gradients": [
            {name: x if name == "layer" else _number(x) for name, x in layer.items()}
            for layer in layers
        ],
    }


def write_diagnosis(experiment: Experiment, state: TrainState, batch: Batch, workdir: Path) -> None:
    """Write the result of `diagnose` to nonfinite.json, and a summary to the log."""
    found = diagnose(experiment, state, batch)
    if jax.process_index() == 0:
        write_json(workdir / "nonfinite.json", found)
    lines = [f"At step {found['step']}, repeated, the loss is {found['loss']}."]
    lines += [f"  loss at t = {point['t']:.3f}: {point['loss']}" for point in found["loss_by_t"]]
    lines += [
        "  gradient of {layer}: norm {norm}, not finite {not_finite}".format(**layer)
        for layer in found["gradients"][:SHOWN]
    ]
    logger.error("\n".join([*lines, "All layers are in %s."]), workdir / "nonfinite.json")


def _objective_at(experiment: Experiment, t: Array) -> Objective | None:
    """Return the objective with all times equal to t []; None if it has no times."""
    config = experiment.config
    if config.objective.name not in OBJECTIVES and not is_own(config.objective.name):
        return None
    return make_matching(config, experiment.path, lambda key, n, path: jnp.full(n, t))


def _summaries(gradients: Params) -> Any:
    def summary(g: Array) -> dict[str, Array]:
        finite = jnp.isfinite(g)
        return {
            "norm": jnp.linalg.norm(jnp.where(finite, g, 0).ravel()),
            "largest": jnp.abs(jnp.where(finite, g, 0)).max(),
            "not_finite": (~finite).sum(),
        }

    return jax.tree.map(summary, gradients)


def _number(value: Any) -> float | int | str:
    """Convert a number to JSON; one that is not finite becomes a string."""
    value = np.asarray(value).item()
    return value if math.isfinite(value) else str(value)
