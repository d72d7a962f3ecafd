"""The components of a training run, built from its config for the loop and the profile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import optax

from flowmatch_jax.arrays import Batch
from flowmatch_jax.data.pipeline import train_batches
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.parts.data import make_pairing
from flowmatch_jax.runtime.errors import UserError, fraction, section
from flowmatch_jax.runtime.mesh import check_batch, put_whole, with_shardings
from flowmatch_jax.runtime.messages import compiling
from flowmatch_jax.tracking.tracker import find_tracker
from flowmatch_jax.training.cost import estimate as cost
from flowmatch_jax.training.optimizer import adam, learning_rate_schedule
from flowmatch_jax.training.state import TrainState, data_seed, init_state
from flowmatch_jax.training.step import TrainStep, experiment_gradient, make_train_step
from flowmatch_jax.training.validation import Validate, make_validation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """The components that do not change during a run.

    Attributes:
        experiment: the experiment.
        schedule: maps a step to its learning rate.
        init: creates the state before the first step, sharded over the mesh.
        layout: shapes and shardings of the state.
        train_step: see `make_train_step`.
        images: the whole dataset on each device, for config.data.storage "device".
        programs: compiled versions of ``train_step`` by their number of steps.
    """

    experiment: Experiment
    schedule: optax.Schedule
    init: Callable[[], TrainState]
    layout: TrainState
    train_step: TrainStep
    images: jax.Array | None
    programs: dict[int, jax.stages.Compiled] = field(default_factory=dict)

    @classmethod
    def of(cls, experiment: Experiment) -> Run:
        """Build the components; raises UserError for fields incompatible with the devices."""
        config, source, mesh = experiment.config, experiment.train_data, experiment.mesh
        schedule, optimizer = check_training(experiment)

        def init() -> TrainState:
            return init_state(experiment.init_params, optimizer, config.seed)

        layout = with_shardings(jax.eval_shape(init), mesh)
        gradient = experiment_gradient(experiment)
        return cls(
            experiment=experiment,
            schedule=schedule,
            init=jax.jit(init, out_shardings=jax.tree.map(lambda array: array.sharding, layout)),
            layout=layout,
            train_step=make_train_step(
                layout, mesh, gradient, optimizer, config.optimizer.ema_decay
            ),
            images=put_whole(source.x, mesh) if config.data.storage == "device" else None,
        )

    @cached_property
    def validate(self) -> Validate:
        """The function of `make_validation`; its batches are read when it is first asked for."""
        return make_validation(self.experiment)

    @cached_property
    def flops(self) -> float | None:
        """Floating-point operations of a step, which take a trace of the gradient to count."""
        return cost.model_flops(self.experiment)

    def compile(self, n: int, state: TrainState, batch: Batch) -> None:
        """Compile n steps; logs the cost of the first program."""
        with compiling("the training step"):
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
            logger.info("Sharding of the state:\n%s", cost.layout_table(self.layout))
        if warning := cost.shortage(memory, limit):
            logger.warning("%s", warning)

    def rates(self, step: int, images_per_second: float) -> dict[str, float]:
        """Return the learning rate of a step and, where it is known, the FLOP utilisation."""
        config = self.experiment.config
        rates = {"learning_rate": float(self.schedule(step - 1))}
        steps_per_second = images_per_second / config.train.batch_size
        utilisation = self.flops and cost.utilisation(
            self.flops, steps_per_second, self.experiment.mesh, config.network.dtype
        )
        return rates | ({"flop_utilisation": utilisation} if utilisation else {})

    def batches(self, start: int = 0, rollbacks: int = 0) -> Iterator[Batch]:
        """Iterate over the batches from step ``start`` on, after this many roll-backs."""
        config, data = self.experiment.config, self.experiment.trained_on.train
        source = self.experiment.source
        seed = data_seed(config.seed, rollbacks)
        return train_batches(
            data,
            config.train.batch_size,
            seed,
            threads=config.data.threads,
            workers=config.data.workers,
            max_corrupt=config.data.max_corrupt,
            indices_only=self.images is not None,
            start=start,
            pairing=make_pairing(config, data.levels, seed, source and source.train),
        )


def check_training(experiment: Experiment) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Return the learning-rate schedule and the optimiser.

    Raises:
        UserError: a field of training is invalid, incompatible with the devices, or needs a
            package that is not installed.
    """
    config = experiment.config
    find_tracker(config.train.tracker)
    if config.guidance.weak_step is not None:
        allowed = "a weaker model guides the samples of a trained one: give it with another --mode"
        raise UserError("config.guidance.weak_step", config.guidance.weak_step, allowed)
    with section("config.train"):
        check_batch(config.train.batch_size, experiment.mesh, config.train.accumulate)
    with section("config.optimizer"):
        options = dict(config.optimizer)
        fraction("ema_decay", options.pop("ema_decay"))
        schedule = learning_rate_schedule(
            options.pop("schedule"),
            options.pop("learning_rate"),
            config.train.steps,
            options.pop("warmup_steps"),
        )
        return schedule, adam(schedule, **options)


def facts_of(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Return the facts of a run's data, pairs and source, as `write_data` takes them."""
    facts = {"train": experiment.train_data.facts(), "test": experiment.test_data.facts()}
    if experiment.pairs is not None:
        facts["pairs"] = experiment.pairs.train.facts()
    if experiment.source is not None:
        facts["source"] = {n: split.facts() for n, split in experiment.source._asdict().items()}
    return facts
