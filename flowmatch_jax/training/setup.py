"""The parts of a training run, made of its config: what the loop and the profile are built on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import jax
import optax

from flowmatch_jax.arrays import Batch
from flowmatch_jax.data.pipeline import train_batches
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.runtime.errors import fraction, section
from flowmatch_jax.runtime.mesh import check_batch, put_whole, with_shardings
from flowmatch_jax.runtime.messages import compiling
from flowmatch_jax.training.cost import estimate as cost
from flowmatch_jax.training.optimizer import adam, learning_rate_schedule
from flowmatch_jax.training.state import TrainState, data_seed, init_state
from flowmatch_jax.training.step import TrainStep, experiment_gradient, make_train_step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
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
    schedule: optax.Schedule
    init: Callable[[], TrainState]
    layout: TrainState
    train_step: TrainStep
    images: jax.Array | None
    flops: float | None
    programs: dict[int, jax.stages.Compiled] = field(default_factory=dict)

    @classmethod
    def of(cls, experiment: Experiment) -> Run:
        """Raises UserError for a field that does not fit the devices."""
        config, source, mesh = experiment.config, experiment.train_data, experiment.mesh
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
        gradient = experiment_gradient(experiment)
        return cls(
            experiment=experiment,
            schedule=schedule,
            init=jax.jit(init, out_shardings=jax.tree.map(lambda array: array.sharding, layout)),
            layout=layout,
            train_step=make_train_step(layout, mesh, gradient, optimizer, ema_decay),
            images=put_whole(source.x, mesh) if config.data.storage == "device" else None,
            flops=cost.model_flops(experiment),
        )

    def compile(self, n: int, state: TrainState, batch: Batch) -> None:
        """Compile n steps; of the first program, tell what it costs."""
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

    def batches(self, start: int = 0, rollbacks: int = 0) -> Iterator[Batch]:
        """The batches of the steps from start on, after so many roll-backs."""
        config = self.experiment.config
        return train_batches(
            self.experiment.train_data,
            config.train.batch_size,
            data_seed(config.seed, rollbacks),
            threads=config.data.threads,
            workers=config.data.workers,
            max_corrupt=config.data.max_corrupt,
            indices_only=self.images is not None,
            start=start,
        )
