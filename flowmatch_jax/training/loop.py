"""The training loop, from a new state or the newest checkpoint to the last step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import jax

from flowmatch_jax.arrays import Batch, Params
from flowmatch_jax.config.identity import changes, record
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.runtime.errors import RunStopped, section
from flowmatch_jax.runtime.mesh import describe, put_batches
from flowmatch_jax.runtime.stops import StopNotice
from flowmatch_jax.runtime.workdir import (
    add_changes,
    check_data,
    trained_by_this_run,
    write_config,
    write_data,
)
from flowmatch_jax.tracking.log import RunLog
from flowmatch_jax.training.checkpoints import Checkpoints
from flowmatch_jax.training.cost import estimate as cost
from flowmatch_jax.training.diagnosis import write_diagnosis
from flowmatch_jax.training.log import Meter, Progress
from flowmatch_jax.training.setup import Run, facts_of
from flowmatch_jax.training.state import TrainState, roll_back

logger = logging.getLogger(__name__)

DrawSamples = Callable[[Params, int], None]


class NotFinite(Exception):
    """Raised when config.train.max_skipped consecutive updates were not finite.

    Attributes:
        state: state after the last of these steps.
        batch: batch of the last of these steps.
    """

    def __init__(self, state: TrainState, batch: Batch) -> None:
        super().__init__()
        self.state, self.batch = state, batch


def train(experiment: Experiment, workdir: Path, draw_samples: DrawSamples, log: RunLog) -> bool:
    """Train to config.train.steps, resuming from the newest checkpoint if there is one.

    A run that was interrupted and resumed ends with the same bits as an uninterrupted one.

    Args:
        experiment: the experiment.
        workdir: folder of the run, opened by `flowmatch_jax.runtime.workdir`.
        draw_samples: called with the averaged parameters and the step, every
            config.train.sample_every steps.
        log: the run's log.

    Returns:
        Whether there were steps left to train.

    Raises:
        UserError: a field of the config is incompatible with the devices or the checkpoint, or
            another run is training in the workdir.
        RunStopped: a signal arrived, or updates were not finite.
    """
    run = Run.of(experiment)
    config = experiment.config.train
    with (
        trained_by_this_run(workdir),
        Checkpoints(workdir, config.keep_last, config.keep_every) as checkpoints,
    ):
        state = checkpoints.restore_newest(run.layout)
        pairs, source = experiment.pairs, experiment.source
        others = pairs and pairs.train.facts(), source and source.train.facts()
        check_data(workdir, experiment.train_data.facts(), *others)
        if state is None:
            state = run.init()
        else:
            logger.info("Resuming %s at step %d.", workdir, int(state.step))
        if state.step >= config.steps:
            logger.info("It is already trained to step %d.", int(state.step))
            return False
        _record(experiment, workdir, int(state.step))
        logger.info("Training on %s.", describe(experiment.mesh))
        with StopNotice() as notice:
            while state.step < config.steps:
                try:
                    state = _advance(run, log, state, checkpoints, notice, draw_samples)
                except NotFinite as failure:
                    state = _go_back(run, workdir, failure, checkpoints)
    return True


def _record(experiment: Experiment, workdir: Path, step: int) -> None:
    """Record the config and the data when training starts at a step, and the changed fields."""
    changed = changes(workdir, experiment.config) if step else {}
    for field, (before, after) in changed.items():
        logger.info("%s %s -> %s from step %d.", field, before, after, step)
    if jax.process_index() == 0:
        write_config(workdir, record(experiment.config))
        write_data(workdir, **facts_of(experiment))
        if changed:
            add_changes(workdir, step, changed)


def _advance(
    run: Run,
    log: RunLog,
    state: TrainState,
    checkpoints: Checkpoints,
    notice: StopNotice,
    draw_samples: DrawSamples,
) -> TrainState:
    """Run the remaining steps; raises NotFinite, or RunStopped after a signal."""
    config = run.experiment.config.train
    start, at_once = int(state.step), config.steps_per_dispatch
    step = start
    batches = run.batches(start, int(state.rollbacks))
    meter = Meter(config.batch_size)
    log.begin(start)
    with closing(Progress(start, config.steps)) as progress:
        while step < config.steps:
            n = min(at_once - step % at_once, config.steps - step)
            with meter.waiting(), section("config.data"):
                batch = put_batches([next(batches) for _ in range(n)], run.experiment.mesh)
            if n not in run.programs:
                with meter.paused():
                    run.compile(n, state, batch)
            state, metrics = run.programs[n](state, batch, run.images)
            step += n
            meter.add(metrics)
            progress.advance(n)

            last, stop = step == config.steps, notice.reached(step)
            due = step % config.checkpoint_every == 0
            if step % config.log_every == 0 or last:
                measured = _measure(run, state, meter, log)
                progress.show(measured)
                if step <= start + config.log_every and not last:
                    rate = measured["images_per_second"] / config.batch_size
                    logger.info("About %s left.", cost.time_left(config.steps - step, rate))
            skipped = meter.skipped(all_steps=due or last or stop)
            if skipped >= config.max_skipped:
                raise NotFinite(state, batch)
            # A state whose updates are not finite may never recover: it is not saved.
            if last or stop or (due and not skipped):
                checkpoints.save(step, state)
            if step % config.sample_every == 0 and not last:  # the last step is evaluated
                with meter.paused():
                    draw_samples(state.ema, step)
            checkpoints.check()
            if stop:
                checkpoints.finish()
                raise _stopped(notice, step)
    return state


def _measure(run: Run, state: TrainState, meter: Meter, log: RunLog) -> dict[str, float | None]:
    """Log the means and rates since the last measurement and the validation loss; returns them."""
    step, measured = int(state.step), meter.read()
    with meter.paused():
        measured |= run.validate(state)
    measured |= run.rates(step, measured["images_per_second"])
    log.write(step, measured)
    return measured


def _stopped(notice: StopNotice, step: int) -> RunStopped:
    return RunStopped(
        f"{notice.signal}: training stopped at step {step}, which is saved; the same command goes "
        "on from there"
    )


def _go_back(run: Run, workdir: Path, failure: NotFinite, checkpoints: Checkpoints) -> TrainState:
    """Restore the newest checkpoint to continue with other data; happens once in a run."""
    state, batch = failure.state, {name: x[-1] for name, x in failure.batch.items()}
    if run.images is not None:
        batch["x"] = run.images[batch.pop("index")]
    write_diagnosis(run.experiment, state, batch, workdir)
    in_a_row = f"{int(state.skipped)} updates in a row were not finite at step {int(state.step)}"
    if state.rollbacks:
        raise RunStopped(
            f"{in_a_row}, also after going back; {workdir / 'nonfinite.json'} says where. The "
            "newest checkpoint is from before; go on from it with a smaller "
            "config.optimizer.learning_rate, or config.optimizer.clip_norm set"
        )
    for array in jax.tree.leaves(state):  # memory may not suffice for two states
        array.delete()
    checkpoints.finish()
    state = roll_back(checkpoints.restore_newest(run.layout) or run.init())
    logger.warning("%s; going back to step %d, on with other data.", in_a_row, int(state.step))
    return state
