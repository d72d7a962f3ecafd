"""Loading of a trained run's weights from its workdir."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import jax

from flowmatch_jax.arrays import Params
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.runtime.errors import UserError, renamed
from flowmatch_jax.runtime.mesh import with_shardings
from flowmatch_jax.runtime.workdir import has_checkpoint
from flowmatch_jax.sampling.guidance import GuidedParams
from flowmatch_jax.training.checkpoints import Checkpoints, DamagedCheckpoint

logger = logging.getLogger(__name__)


def load_weights(
    experiment: Experiment,
    workdir: Path,
    kinds: Sequence[str],
    every_step: bool = False,
    step: int | None = None,
) -> dict[int, dict[str, Params]]:
    """Load the weights of the newest checkpoint, or of all: step -> kind -> parameters.

    Damaged checkpoints are skipped with a warning. If a weaker model guides the samples, its
    weights of the same kind are loaded too, and the parameters are `GuidedParams`.

    Args:
        experiment: the experiment.
        workdir: folder of the run.
        kinds: any of "ema" and "raw".
        every_step: load all checkpoints instead of the newest.
        step: load the checkpoint at this step instead.

    Raises:
        UserError: there is no checkpoint, or all are damaged.
    """
    if experiment.weak is None:
        return _load(experiment, workdir, kinds, every_step, step)
    guidance = experiment.config.guidance
    folder = workdir if guidance.weak_workdir is None else Path(guidance.weak_workdir).expanduser()
    with renamed("config.guidance.weak_step"):
        ((_, weak),) = _load(experiment.weak, folder, kinds, False, guidance.weak_step).items()
    return {
        kept: {kind: GuidedParams(params, weak[kind]) for kind, params in weights.items()}
        for kept, weights in _load(experiment, workdir, kinds, every_step, step).items()
    }


def _load(
    experiment: Experiment, workdir: Path, kinds: Sequence[str], every_step: bool, step: int | None
) -> dict[int, dict[str, Params]]:
    if not has_checkpoint(workdir):
        raise UserError("--workdir", str(workdir), "no checkpoint there yet; train first")
    shapes = jax.eval_shape(experiment.init_params, jax.random.key(0))
    layout = with_shardings(shapes, experiment.mesh)
    found: dict[int, dict[str, Params]] = {}
    with Checkpoints(workdir, read_only=True) as checkpoints:
        for kept in _wanted(checkpoints.steps(), step):
            try:
                found[kept] = {k: checkpoints.restore_weights(kept, k, layout) for k in kinds}
            except DamagedCheckpoint as damage:
                logger.warning("Checkpoint %d cannot be used: %s", kept, damage)
            if found and not every_step:
                return found
    if not found:
        raise UserError("--workdir", str(workdir), "none of its checkpoints is whole")
    return dict(sorted(found.items()))


def _wanted(steps: list[int], step: int | None) -> list[int]:
    if step is None:
        return steps
    if step not in steps:
        kept = ", ".join(map(str, sorted(steps)))
        raise UserError("--step", step, f"the workdir has checkpoints of the steps {kept}")
    return [step]
