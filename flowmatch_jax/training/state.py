"""What training changes at each step."""

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
    """A pytree; every array of it goes into the checkpoint.

    Attributes:
        step: int32 [], batches taken.
        params: float32.
        ema: their exponential moving average, float32.
        opt_state: of the optimiser, float32.
        key: the run's random key; each step folds its number into it.
        skipped: int32 [], how many updates in a row, up to the last one, were not finite and so
            were not made.
        rollbacks: int32 [], how often the run went back to a checkpoint because of these.
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
    """The state before the first step, a pure function of the seed."""
    params_key, key = jax.random.split(jax.random.key(seed))
    params = init_params(params_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # The average starts from the parameters, in buffers of its own: the state is donated.
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        key=key,
        skipped=jnp.zeros((), jnp.int32),
        rollbacks=jnp.zeros((), jnp.int32),
    )


def roll_back(state: TrainState) -> TrainState:
    """A state to go on from along another way: with another key, and other data (`data_seed`)."""
    return state.replace(
        key=jax.random.fold_in(state.key, jnp.iinfo(jnp.uint32).max),  # no step has this number
        skipped=jnp.zeros((), jnp.int32),
        rollbacks=state.rollbacks + 1,
    )


def data_seed(seed: int, rollbacks: int) -> int:
    """The seed of the order of the data: the run's own, and another one after each roll-back."""
    if rollbacks == 0:
        return seed
    return int(np.random.SeedSequence((seed, rollbacks)).generate_state(1)[0])


def ema_update(ema: Params, params: Params, step: Array, decay: float) -> Params:
    """ema + (1 - d)(params - ema) with d = min(decay, (1 + step) / (10 + step)).

    The warm-up lets the average forget the initial parameters, whatever the decay.
    """
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda average, new: average + (1 - d) * (new - average), ema, params)
