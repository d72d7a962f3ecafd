"""One training step: batch in, new state and metrics out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import optax
from jax.sharding import Mesh

from flowmatch_jax.arrays import Apply, Array
from flowmatch_jax.mesh import batch_sharding, replicated, state_shardings
from flowmatch_jax.objectives import Batch, Objective
from flowmatch_jax.pixels import dequantise, random_flip
from flowmatch_jax.training.state import TrainState, ema_update

Metrics = dict[str, Array]


def make_train_step(
    state: TrainState,
    mesh: Mesh,
    objective: Objective,
    apply: Apply,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    levels: int | None,
    flip: bool = False,
    images: Array | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compile (state, batch) -> (state, metrics) over a mesh; the state given is donated.

    Args:
        state: its shapes; the values are not used.
        objective: (apply, params, batch, key) -> (loss, metrics).
        apply: the network.
        ema_decay: of the average of the parameters.
        levels: grey levels of the batch's images, which are dequantised; None for points.
        flip: half of the images from left to right.
        images: the whole data set on each device, [N, ...]; batch["index"] then picks from it
            in place of batch["x"].

    Returns:
        A jitted function. Metrics are float32 scalars: the objective's, and "gradient_norm".
    """

    def train_step(
        images: Array | None, state: TrainState, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        data_key, objective_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        x = batch["x"] if images is None else images[batch["index"]]
        if flip:
            x = random_flip(jax.random.fold_in(data_key, 1), x)
        if levels is not None:
            x = dequantise(data_key, x, levels)
        loss = lambda params: objective(apply, params, {"x": x}, objective_key)  # noqa: E731
        gradients, metrics = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            ema=ema_update(state.ema, params, state.step, ema_decay),
            opt_state=opt_state,
            key=state.key,
        )
        return new_state, metrics | {"gradient_norm": optax.global_norm(gradients)}

    shardings = state_shardings(state, mesh)
    compiled = jax.jit(
        train_step,
        donate_argnums=1,
        in_shardings=(replicated(mesh), shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )
    return partial(compiled, images)
