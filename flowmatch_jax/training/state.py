"""The training state and its updates."""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flowmatch_jax.arrays import Array, Params


@flax.struct.dataclass
class TrainState:
    """The training state, a pytree whose arrays are all saved in checkpoints.

    Attributes:
        step: int32 [], number of steps taken.
        params: parameters, float32.
        ema: exponential moving average of the parameters, float32.
        opt_state: optimiser state, float32.
        key: random key of the run; each step folds its number into it.
        skipped: int32 [], number of consecutive updates up to the last step that were skipped
            because they were not finite.
        rollbacks: int32 [], number of times that the run went back to a checkpoint because of them.
    """

    step: Array
    params: Params
    ema: Params
    opt_state: optax.OptState
    key: Array
    skipped: Array
    rollbacks: Array


def init_state(
    init_params: Callable[[Array], Params], optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """Create the state before the first step, a pure function of the seed."""
    params_key, key = jax.random.split(jax.random.key(seed))
    params = init_params(params_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # The average starts from copies of the parameters, because the state's buffers are donated.
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        key=key,
        skipped=jnp.zeros((), jnp.int32),
        rollbacks=jnp.zeros((), jnp.int32),
    )


def roll_back(state: TrainState) -> TrainState:
    """Return the state with another key and another order of the data (see `data_seed`)."""
    return state.replace(
        key=jax.random.fold_in(state.key, jnp.iinfo(jnp.uint32).max),  # not the number of any step
        skipped=jnp.zeros((), jnp.int32),
        rollbacks=state.rollbacks + 1,
    )


def data_seed(seed: int, rollbacks: int) -> int:
    """Return the seed of the data order: the run's seed, or another one after each roll-back."""
    if rollbacks == 0:
        return seed
    return int(np.random.SeedSequence((seed, rollbacks)).generate_state(1)[0])


def ema_update(ema: Params, params: Params, step: Array, decay: float) -> Params:
    """Compute ema + (1 - d)(params - ema) with d = min(decay, (1 + step) / (10 + step)).

    The warm-up of d makes the average forget the initial parameters for any decay.
    """
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda average, new: average + (1 - d) * (new - average), ema, params)
