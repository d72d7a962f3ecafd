"""The weaker model that guides the samples of a run (autoguidance; see `sampling.guidance`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flowmatch_jax.config.experiments import experiment_config
from flowmatch_jax.config.fields import for_weights
from flowmatch_jax.experiment import Experiment, build
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.workdir import check_run, recorded_data
from flowmatch_jax.sampling.guidance import Guidance


def with_weak_model(experiment: Experiment) -> Experiment:
    """Return the experiment with the weaker model that config.guidance names, if it names one.

    Its parameters are loaded by `training.weights.load_weights`.

    Raises:
        UserError: the weaker model's run does not exist, or it is a model of other data or of other
            conditioning inputs, or one without a vector field.
    """
    fields = experiment.config.guidance
    if fields.weak_step is None:
        return experiment
    if fields.weak_workdir is None:
        return replace(experiment, weak=replace(experiment, guidance=Guidance()))
    weak = _open(Path(fields.weak_workdir).expanduser())
    for what, of in {
        "images of shape": lambda e: e.train_data.shape,
        "grey levels": lambda e: e.train_data.levels,
        "classes": lambda e: e.train_data.num_classes if e.conditioning.labels else None,
        "low resolution": lambda e: e.conditioning.low_resolution,
        "source": lambda e: "noise" if e.source is None else e.source.train.name,
    }.items():
        if of(weak) != of(experiment):
            allowed = f"its model has {what} {of(weak)}, and the guided one {of(experiment)}"
            raise UserError("config.guidance.weak_workdir", fields.weak_workdir, allowed)
    if not weak.is_flow:
        allowed = f"its model has no vector field ({weak.config.objective.name})"
        raise UserError("config.guidance.weak_workdir", fields.weak_workdir, allowed)
    return replace(experiment, weak=replace(weak, mesh=experiment.mesh))


def _open(workdir: Path) -> Experiment:
    """Build the experiment of a run, without guidance of its own."""
    try:
        check_run(workdir)
        config = experiment_config(str(workdir / "config.json"))
        config.guidance.update(scale=1.0, weak_step=None, weak_workdir=None)
        return build(for_weights(config), recorded_data(workdir))
    except UserError as error:
        raise UserError("config.guidance.weak_workdir", str(workdir), str(error)) from error
