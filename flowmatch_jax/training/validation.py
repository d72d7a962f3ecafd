"""The loss on the test split during training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count, islice

import jax
import numpy as np

from flowmatch_jax.arrays import Apply, Array, Batch, Params
from flowmatch_jax.data.pairing import Pairing
from flowmatch_jax.data.pipeline import items_at, split_batches
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.parts.data import make_pairing
from flowmatch_jax.runtime.errors import section
from flowmatch_jax.runtime.mesh import put_batches, replicated
from flowmatch_jax.runtime.messages import compiling
from flowmatch_jax.training.state import TrainState
from flowmatch_jax.training.step import make_loss

# state -> {"validation_loss_<kind of weights>": loss, or None if it is not finite}
Validate = Callable[[TrainState], dict[str, float | None]]


def make_validation(experiment: Experiment) -> Validate:
    """Create a function of the training state for the objective's loss on the test split.

    It is the mean over config.train.validation_batches batches of the training's batch size, with
    each of config.evaluate.weights. The items, their order, and all noise and times are the same
    at every step and in every run with equal config.evaluate.seed, so that losses differ by the
    weights only. As in evaluation, the network computes in float32, and there are no flips,
    dropout, dropped labels or noise on the condition. Batches are sharded as in training, and stay
    on the devices.

    Without validation batches the function returns no losses.
    """
    config, mesh = experiment.config, experiment.mesh
    if not config.train.validation_batches:
        return lambda state: {}
    batches = [put_batches([batch], mesh) for batch in held_out_batches(experiment)]
    loss = jax.jit(_first_batch_loss(experiment), out_shardings=replicated(mesh))
    key = validation_key(config.evaluate.seed)
    keys = [jax.random.fold_in(key, i) for i in range(len(batches))]

    def validate(state: TrainState) -> dict[str, float | None]:
        weights = {"ema": state.ema, "raw": state.params}
        with compiling("the validation loss"):
            losses = {
                kind: [loss(weights[kind], *each) for each in zip(batches, keys, strict=True)]
                for kind in config.evaluate.weights
            }
        means = {kind: float(np.mean(found)) for kind, found in jax.device_get(losses).items()}
        return {
            f"validation_loss_{kind}": mean if math.isfinite(mean) else None
            for kind, mean in means.items()
        }

    return validate


def validation_key(seed: int) -> Array:
    """Return the key of the validation losses; an evaluation's keys are folded from 0 and 1."""
    return jax.random.fold_in(jax.random.key(seed), 2)


def held_out_batches(experiment: Experiment) -> Iterator[Batch]:
    """Read this process's part of the validation batches, as `train_batches` makes them.

    The items are those of the test split in a fixed random order, and again from the first if the
    split has fewer.
    """
    config, data, source = experiment.config, experiment.trained_on.test, experiment.source
    pairing = make_pairing(config, data.levels, config.evaluate.seed, source and source.test)
    part = config.train.batch_size // jax.process_count()
    batches = split_batches(_paired_together(experiment, pairing), part)
    return islice(batches, config.train.validation_batches)


def _paired_together(experiment: Experiment, pairing: Pairing | None) -> Iterator[Batch]:
    """Read without end this process's part of the batches that are paired at once, joined."""
    config, data = experiment.config, experiment.trained_on.test
    order = np.random.RandomState(0).permutation(len(data))
    size, at_once = config.train.batch_size, pairing.batches if pairing else 1
    part = size // jax.process_count()
    begin = part * jax.process_index()
    numbers = np.arange(at_once * size).reshape(at_once, size)[:, begin : begin + part].ravel()
    for group in count():
        with section("config.data"):
            indices = order[(group * at_once * size + numbers) % len(order)]
            items = items_at(data, indices, config.data.max_corrupt)
        if pairing:
            items["x0"] = pairing.draw(group, items["x"], items.get("label"))
        yield items


def _first_batch_loss(experiment: Experiment) -> Callable[[Params, Batch, Array], Array]:
    """Create the loss of the first of the batches {name: [1, B, ...]} that `put_batches` makes."""
    conditioning = experiment.conditioning
    loss = make_loss(
        experiment.objective,
        _without_dropout(experiment.apply),
        experiment.trained_on.test.levels,
        training_inputs=lambda batch, key: conditioning.inputs(batch),
        dequantise=experiment.dequantisation.training,
        source_levels=experiment.source_levels,
    )
    return lambda params, batches, key: loss(params, jax.tree.map(lambda x: x[0], batches), key)[0]


def _without_dropout(apply: Apply) -> Apply:
    return lambda params, t, x, key=None, **inputs: apply(params, t, x, **inputs)
