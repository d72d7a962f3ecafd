"""Gradients and compiled training steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from flowmatch_jax import pixels
from flowmatch_jax.arrays import Apply, Array, Batch, Inputs, Params
from flowmatch_jax.experiment import Experiment
from flowmatch_jax.objectives import Objective
from flowmatch_jax.pixels import random_flip
from flowmatch_jax.runtime.mesh import replicated, state_shardings
from flowmatch_jax.training.state import TrainState, ema_update

Metrics = dict[str, Array]
# (params, batch, key) -> (loss, metrics)
Loss = Callable[[Params, Batch, Array], tuple[Array, Metrics]]
# (params, batch, key) -> (gradients, metrics)
Gradient = Callable[[Params, Batch, Array], tuple[Params, Metrics]]
# (batch, key) -> inputs
TrainingInputs = Callable[[Batch, Array], Inputs]
# (key, image, levels) -> x_1
Dequantise = Callable[[Array, Array, int], Array]
# jitted (state, batches, images) -> (state, metrics)
TrainStep = jax.stages.Wrapped


def make_loss(
    objective: Objective,
    apply: Apply,
    levels: int | None,
    flip: bool = False,
    training_inputs: TrainingInputs | None = None,
    dequantise: Dequantise = pixels.dequantise,
    source_levels: int | None = None,
) -> Loss:
    """Create the loss of an objective over a batch of the stored data.

    Args:
        objective: (apply, params, batch, key) -> (loss, metrics).
        apply: the network.
        levels: grey levels of the batch's images, which are dequantised; None for points and pairs.
        flip: mirror each image, and the noise that it is paired with, with probability 1/2.
        training_inputs: (batch, key) -> conditioning inputs of the network, computed from the
            stored batch after flips; None: no conditioning.
        dequantise: (key, image, levels) -> x_1 in model space.
        source_levels: grey levels of the images that are the batch's "x0", which are dequantised
            uniformly; None: "x0" is in model space.
    """

    def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        flip_key, inputs_key, noise_key, objective_key = jax.random.split(key, 4)
        if flip:  # the same images, so that pairs stay pairs
            stored = {name: batch[name] for name in ("x", "x0") if name in batch}
            batch = batch | {name: random_flip(flip_key, x) for name, x in stored.items()}
        inputs = {} if training_inputs is None else training_inputs(batch, inputs_key)
        x = batch["x"]
        if source_levels is not None:
            noise_key, source_key = jax.random.split(noise_key)
        if levels is not None:
            x = dequantise(noise_key, x, levels)
        others = {name: batch[name] for name in ("x0", "step") if name in batch}
        if source_levels is not None:
            others["x0"] = pixels.dequantise(source_key, batch["x0"], source_levels)
        return objective(apply, params, {"x": x, **inputs, **others}, objective_key)

    return loss


def make_gradient(
    objective: Objective,
    apply: Apply,
    levels: int | None,
    flip: bool = False,
    microbatches: int = 1,
    training_inputs: TrainingInputs | None = None,
    dequantise: Dequantise = pixels.dequantise,
    source_levels: int | None = None,
) -> Gradient:
    """Create the gradient of the loss that `make_loss` creates.

    Args:
        objective, apply, levels, flip, training_inputs, dequantise, source_levels: as in
            `make_loss`.
        microbatches: number of gradient-accumulation micro-batches, which save memory; gradients
            and metrics are their means.
    """
    loss = make_loss(objective, apply, levels, flip, training_inputs, dequantise, source_levels)
    gradient = jax.grad(loss, has_aux=True)
    return gradient if microbatches == 1 else _accumulated(gradient, microbatches)


def experiment_gradient(
    experiment: Experiment, objective: Objective | None = None, apply: Apply | None = None
) -> Gradient:
    """Create an experiment's training gradient, optionally of another objective or network."""
    config = experiment.config
    return make_gradient(
        objective or experiment.objective,
        apply or experiment.train_apply,
        experiment.trained_on.train.levels,
        config.data.flip,
        config.train.accumulate,
        experiment.conditioning.training_inputs,
        experiment.dequantisation.training,
        experiment.source_levels,
    )


def numbered(batch: Batch, step: Array) -> Batch:
    """Add the number of its step to a batch, "step" [B], for objectives that change by it."""
    return batch | {"step": jnp.full(jax.tree.leaves(batch)[0].shape[:1], step)}


def _accumulated(gradient: Gradient, n: int) -> Gradient:
    def part(x: Array) -> Array:
        # Items are interleaved over the micro-batches, so that none moves to another device.
        return jnp.moveaxis(x.reshape(-1, n, *x.shape[1:]), 1, 0)

    def accumulated(params: Params, batch: Batch, key: Array) -> tuple[Params, Metrics]:
        def add(total: Params, inputs: tuple[Batch, Array]) -> tuple[Params, Metrics]:
            gradients, metrics = gradient(params, *inputs)
            return jax.tree.map(jnp.add, total, gradients), metrics

        zero = jax.tree.map(jnp.zeros_like, params)
        parts = (jax.tree.map(part, batch), jax.random.split(key, n))
        # On CPUs XLA is slow at gradients of convolutions inside a loop.
        unroll = n if jax.default_backend() == "cpu" else 1
        total, metrics = jax.lax.scan(add, zero, parts, unroll=unroll)
        return jax.tree.map(lambda g: g / n, total), jax.tree.map(jnp.mean, metrics)

    return accumulated


def make_train_step(
    state: TrainState,
    mesh: Mesh,
    gradient: Gradient,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
) -> TrainStep:
    """Create a jitted function (state, batches, images=None) -> (state, metrics) on a mesh.

    An update whose loss or gradient is not finite is skipped; state.skipped counts them.

    Args:
        state: the state's shapes; its values are not used.
        mesh: the device mesh.
        gradient: result of `make_gradient`.
        optimizer: the optimiser.
        ema_decay: decay of the moving average of the parameters.

    Returns:
        A jitted function that takes one step for each of the n batches {name: [n, B, ...]} and
        donates the given state. If ``images`` is given, the whole dataset on each device,
        batches["index"] selects from it and replaces batches["x"]. Metrics have shape [n]: the
        objective's, "gradient_norm", and "skipped" (consecutive skipped updates up to this one).
    """

    step = partial(_step, gradient, optimizer, ema_decay)

    def train_steps(
        state: TrainState, batches: Batch, images: Array | None = None
    ) -> tuple[TrainState, Metrics]:
        if len(jax.tree.leaves(batches)[0]) == 1:  # avoids a loop, which is slow on CPUs
            state, metrics = step(state, jax.tree.map(lambda x: x[0], batches), images)
            return state, jax.tree.map(lambda m: m[None], metrics)
        return jax.lax.scan(lambda state, batch: step(state, batch, images), state, batches)

    return jax.jit(
        train_steps,
        donate_argnums=0,
        out_shardings=(state_shardings(state, mesh), replicated(mesh)),
    )


def _step(
    gradient: Gradient,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    state: TrainState,
    batch: Batch,
    images: Array | None,
) -> tuple[TrainState, Metrics]:
    """Take one step of `make_train_step`."""
    if images is not None:
        batch = batch | {"x": images[batch["index"]]}
    batch = numbered(batch, state.step)
    key = jax.random.fold_in(state.key, state.step)
    gradients, metrics = gradient(state.params, batch, key)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = ema_update(state.ema, params, state.step, ema_decay)
    norm = optax.global_norm(gradients)

    made = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    skipped = jnp.where(made, 0, state.skipped + 1)
    changed, unchanged = (params, ema, opt_state), (state.params, state.ema, state.opt_state)
    params, ema, opt_state = jax.tree.map(
        lambda new, old: jnp.where(made, new, old), changed, unchanged
    )
    state = state.replace(
        step=state.step + 1, params=params, ema=ema, opt_state=opt_state, skipped=skipped
    )
    return state, metrics | {"gradient_norm": norm, "skipped": skipped}
