"""The training run: from a fresh state or the newest checkpoint to the last step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import jax

from flowmatch_jax.arrays import Params
from flowmatch_jax.data.pipeline import train_batches
from flowmatch_jax.errors import fraction, section
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.mesh import (
    check_batch,
    describe,
    make_mesh,
    put_batch,
    put_whole,
    state_shardings,
)
from flowmatch_jax.training import checkpoints as ckpt
from flowmatch_jax.training.log import Meter, RunLog
from flowmatch_jax.training.optimizer import adam, learning_rate_schedule
from flowmatch_jax.training.state import TrainState, init_state
from flowmatch_jax.training.step import make_train_step
from flowmatch_jax.workdir import check_data, write_config, write_data

logger = logging.getLogger(__name__)


def train(
    experiment: Experiment, workdir: Path, draw_samples: Callable[[Params, int], None]
) -> None:
    """Train to config.train.steps, going on from the newest checkpoint where there is one.

    A run that was stopped and started again ends with the same bits as one that was not.

    Args:
        workdir: open (see `flowmatch_jax.workdir`).
        draw_samples: called with the averaged parameters and the step, every
            config.train.sample_every steps.

    Raises:
        UserError: a field of the config that does not fit the devices or the checkpoint.
    """
    config = experiment.config
    with section("config.mesh"):
        mesh = make_mesh(config.mesh.fsdp)
    with section("config.train"):
        check_batch(config.train.batch_size, mesh)
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

    shapes = jax.eval_shape(init)
    source, on_device = experiment.train_source, config.data.storage == "device"
    keep = (config.train.keep_last, config.train.keep_every)
    with ckpt.open_checkpoints(workdir, *keep) as checkpoints:
        ckpt.check_network(checkpoints, shapes.params)
        check_data(workdir, source)
        if jax.process_index() == 0:
            write_config(workdir, config)
            write_data(workdir, source)
        state = jax.jit(init, out_shardings=state_shardings(shapes, mesh))()
        start = checkpoints.latest_step() or 0
        if start:
            state = ckpt.restore(checkpoints, start, state)
            logger.info("Resuming %s at step %d", workdir, start)
        if start >= config.train.steps:
            logger.info("Already trained to step %d", start)
            return
        size = sum(p.size for p in jax.tree.leaves(state.params))
        logger.info("Training %s parameters on %s", f"{size:,}", describe(mesh))

        train_step = make_train_step(
            shapes,
            mesh,
            experiment.objective,
            experiment.train_apply,
            optimizer,
            ema_decay,
            source.levels,
            flip=config.data.flip,
            images=put_whole(source.x, mesh) if on_device else None,
        )
        batches = train_batches(
            source,
            config.train.batch_size,
            config.seed,
            threads=config.data.threads,
            workers=config.data.workers,
            max_corrupt=config.data.max_corrupt,
            indices_only=on_device,
            start=start,
        )
        with closing(RunLog(workdir, start, config.train.steps)) as log:
            meter = Meter(config.train.batch_size)
            for step in range(start + 1, config.train.steps + 1):
                with meter.waiting(), section("config.data"):
                    batch = put_batch(next(batches), mesh)
                state, metrics = train_step(state, batch)
                meter.add(metrics)
                log.advance()
                last = step == config.train.steps
                if step % config.train.log_every == 0 or last:
                    rates = {"learning_rate": float(schedule(step - 1))}
                    log.write(step, meter.read() | rates)
                if step % config.train.sample_every == 0 and not last:  # evaluation follows
                    with meter.paused():
                        draw_samples(state.ema, step)
                if step % config.train.checkpoint_every == 0 or last:
                    ckpt.save(checkpoints, step, state)
