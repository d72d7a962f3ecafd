"""The training run: from a fresh state or the newest checkpoint to the last step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import jax
import optax
import orbax.checkpoint as ocp

from flowmatch_jax.arrays import Batch, Params
from flowmatch_jax.data.pipeline import train_batches
from flowmatch_jax.errors import RunStopped, fraction, section
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.mesh import check_batch, describe, put_batches, put_whole, with_shardings
from flowmatch_jax.processes import StopNotice
from flowmatch_jax.training import checkpoints as ckpt
from flowmatch_jax.training import cost
from flowmatch_jax.training.diagnosis import write_diagnosis
from flowmatch_jax.training.log import Meter, RunLog
from flowmatch_jax.training.optimizer import adam, learning_rate_schedule
from flowmatch_jax.training.state import TrainState, data_seed, init_state, roll_back
from flowmatch_jax.training.step import TrainStep, make_gradient, make_train_step
from flowmatch_jax.workdir import check_data, write_config, write_data

logger = logging.getLogger(__name__)

DrawSamples = Callable[[Params, int], None]


class NotFinite(Exception):
    """As many updates in a row as are allowed were not finite.

    Attributes:
        state, batch: after the last of these steps, and what it was made of.
    """

    def __init__(self, state: TrainState, batch: Batch) -> None:
        super().__init__()
        self.state, self.batch = state, batch


def train(experiment: Experiment, workdir: Path, draw_samples: DrawSamples) -> None:
    """Train to config.train.steps, going on from the newest checkpoint where there is one.

    A run that was stopped and started again ends with the same bits as one that was not.

    Args:
        workdir: open (see `flowmatch_jax.workdir`).
        draw_samples: called with the averaged parameters and the step, every
            config.train.sample_every steps.

    Raises:
        UserError: a field of the config that does not fit the devices or the checkpoint.
        RunStopped: by a signal, or updates that are not finite.
    """
    run = _Run.of(experiment, workdir)
    config = experiment.config.train
    with ckpt.open_checkpoints(workdir, config.keep_last, config.keep_every) as checkpoints:
        state = ckpt.restore_newest(checkpoints, run.layout)
        check_data(workdir, experiment.train_source)
        if jax.process_index() == 0:
            write_config(workdir, experiment.config)
            write_data(workdir, experiment.train_source)
        if state is None:
            state = run.init()
        else:
            logger.info("Resuming %s at step %d", workdir, int(state.step))
        if state.step >= config.steps:
            logger.info("Already trained to step %d", int(state.step))
            return
        logger.info("Training on %s", describe(experiment.mesh))
        with StopNotice() as notice:
            while state.step < config.steps:
                try:
                    state = _advance(run, state, checkpoints, notice, draw_samples)
                except NotFinite as failure:
                    state = _go_back(run, failure, checkpoints)


@dataclass(frozen=True)
class _Run:
    """What stays the same from the first step to the last.

    Attributes:
        schedule: step -> learning rate.
        init: makes the state before the first step, laid out over the mesh.
        layout: its shapes and shardings.
        train_step: see `make_train_step`.
        images: the whole data set on each device, for config.data.storage "device".
        flops: of a step, by `cost.model_flops`.
        programs: train_step compiled, by the number of steps that it makes.
    """

    experiment: Experiment
    workdir: Path
    schedule: optax.Schedule
    init: Callable[[], TrainState]
    layout: TrainState
    train_step: TrainStep
    images: jax.Array | None
    flops: float | None
    programs: dict[int, jax.stages.Compiled] = field(default_factory=dict)

    @classmethod
    def of(cls, experiment: Experiment, workdir: Path) -> _Run:
        """Raises UserError for a field that does not fit the devices."""
        config, source, mesh = experiment.config, experiment.train_source, experiment.mesh
        with section("config.train"):
            check_batch(config.train.batch_size, mesh, config.train.accumulate)
        with section("config.optimizer"):
            options = dict(config.optimizer)
            ema_decay = options.pop("ema_decay")
            fraction("ema_decay", ema_decay)
            schedule = learning_rate_schedule(
                options.pop("schedule"),
                options.pop("learning_rate"),
                config.train.steps,
                options.pop("warmup_steps"),
            )
            optimizer = adam(schedule, **options)

        def init() -> TrainState:
            return init_state(experiment.init_params, optimizer, config.seed)

        layout = with_shardings(jax.eval_shape(init), mesh)
        gradient = make_gradient(
            experiment.objective,
            experiment.train_apply,
            source.levels,
            config.data.flip,
            config.train.accumulate,
            experiment.conditioning.training_inputs,
        )
        return cls(
            experiment=experiment,
            workdir=workdir,
            schedule=schedule,
            init=jax.jit(init, out_shardings=jax.tree.map(lambda array: array.sharding, layout)),
            layout=layout,
            train_step=make_train_step(layout, mesh, gradient, optimizer, ema_decay),
            images=put_whole(source.x, mesh) if config.data.storage == "device" else None,
            flops=cost.model_flops(experiment),
        )

    def compile(self, n: int, state: TrainState, batch: Batch) -> None:
        """Compile n steps; of the first program, tell what it costs."""
        self.programs[n] = self.train_step.lower(state, batch, self.images).compile()
        if len(self.programs) == 1:
            self._tell_cost(self.programs[n])

    def _tell_cost(self, program: jax.stages.Compiled) -> None:
        memory = cost.step_memory(self.layout, program)
        limit = cost.memory_limit(jax.local_devices()[0])
        parameters = sum(p.size for p in jax.tree.leaves(self.layout.params))
        batch_size = self.experiment.config.train.batch_size
        for line in cost.describe(parameters, memory, limit, self.flops, batch_size):
            logger.info("%s", line)
        if self.experiment.mesh.size > 1:
            logger.info("What lies where:\n%s", cost.layout_table(self.layout))
        if warning := cost.shortage(memory, limit):
            logger.warning("%s", warning)

    def rates(self, step: int, images_per_second: float) -> dict[str, float]:
        """Learning rate of a step, and how well the devices are used where that is known."""
        config = self.experiment.config
        rates = {"learning_rate": float(self.schedule(step - 1))}
        steps_per_second = images_per_second / config.train.batch_size
        utilisation = self.flops and cost.utilisation(
            self.flops, steps_per_second, self.experiment.mesh, config.network.dtype
        )
        return rates | ({"flop_utilisation": utilisation} if utilisation else {})


def _advance(
    run: _Run,
    state: TrainState,
    checkpoints: ocp.CheckpointManager,
    notice: StopNotice,
    draw_samples: DrawSamples,
) -> TrainState:
    """Take the steps that are left; raises NotFinite, or RunStopped after a signal."""
    config, data = run.experiment.config.train, run.experiment.config.data
    start, at_once = int(state.step), config.steps_per_dispatch
    step = start
    batches = train_batches(
        run.experiment.train_source,
        config.batch_size,
        data_seed(run.experiment.config.seed, int(state.rollbacks)),
        threads=data.threads,
        workers=data.workers,
        max_corrupt=data.max_corrupt,
        indices_only=run.images is not None,
        start=start,
    )
    meter = Meter(config.batch_size)
    with closing(RunLog(run.workdir, start, config.steps)) as log:
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
            log.advance(n)

            last, stop = step == config.steps, notice.reached(step)
            due = step % config.checkpoint_every == 0
            if step % config.log_every == 0 or last:
                measured = meter.read()
                log.write(step, measured | run.rates(step, measured["images_per_second"]))
                if step <= start + config.log_every:
                    rate = measured["images_per_second"] / config.batch_size
                    logger.info("%s left", cost.time_left(config.steps - step, rate))
            skipped = meter.skipped(all_steps=due or last or stop)
            if skipped >= config.max_skipped:
                raise NotFinite(state, batch)
            if step % config.sample_every == 0 and not last:  # evaluation follows the last
                with meter.paused():
                    draw_samples(state.ema, step)
            # A state that gives no finite update may be one that no other follows from.
            if last or stop or (due and not skipped):
                ckpt.save(checkpoints, step, state)
            checkpoints.check_for_errors()
            if stop:
                checkpoints.wait_until_finished()
                raise RunStopped(
                    f"{notice.signal}: training stopped at step {step}, which is saved; the same "
                    "command goes on from there"
                )
    return state


def _go_back(run: _Run, failure: NotFinite, checkpoints: ocp.CheckpointManager) -> TrainState:
    """The newest checkpoint, to go on from with other data; only once in a run."""
    state, batch = failure.state, {name: x[-1] for name, x in failure.batch.items()}
    if run.images is not None:
        batch["x"] = run.images[batch.pop("index")]
    write_diagnosis(run.experiment, state, batch, run.workdir)
    in_a_row = f"{int(state.skipped)} updates in a row were not finite at step {int(state.step)}"
    if state.rollbacks:
        raise RunStopped(
            f"{in_a_row}, also after going back; {run.workdir / 'nonfinite.json'} says where. The "
            "newest checkpoint is from before; go on from it with a smaller "
            "config.optimizer.learning_rate, or config.optimizer.clip_norm set"
        )
    for array in jax.tree.leaves(state):  # there may not be room for two
        array.delete()
    checkpoints.wait_until_finished()
    state = roll_back(ckpt.restore_newest(checkpoints, run.layout) or run.init())
    logger.warning("%s; going back to step %d, on with other data", in_a_row, int(state.step))
    return state
