"""Learning-rate schedules and the optimiser, built from Optax."""

from __future__ import annotations

import optax

from flowmatch_jax.runtime.errors import UserError, at_least, fraction, one_of, positive

FLOOR = 1e-8  # the learning rate at both ends of the paper's schedule


def polynomial(peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
    """Create the paper's "polynomial decay": linear from 1e-8 to the peak, then linear to 1e-8."""
    return _with_warmup(
        optax.linear_schedule(peak, FLOOR, steps - warmup_steps), peak, warmup_steps
    )


def cosine(peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
    """Create a schedule that is linear from 1e-8 to the peak, then half a cosine to 1e-8."""
    decay = optax.cosine_decay_schedule(peak, steps - warmup_steps, alpha=FLOOR / peak)
    return _with_warmup(decay, peak, warmup_steps)


def constant(peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
    """Create a schedule that is linear from 1e-8 to the peak, then constant."""
    return _with_warmup(optax.constant_schedule(peak), peak, warmup_steps)


def _with_warmup(decay: optax.Schedule, peak: float, warmup_steps: int) -> optax.Schedule:
    if warmup_steps == 0:
        return decay
    warmup = optax.linear_schedule(FLOOR, peak, warmup_steps)
    return optax.join_schedules([warmup, decay], [warmup_steps])


SCHEDULES = {"polynomial": polynomial, "cosine": cosine, "constant": constant}


def learning_rate_schedule(
    schedule: str, learning_rate: float, steps: int, warmup_steps: int
) -> optax.Schedule:
    """Create the learning rate as a function of the step, 0 .. steps.

    Args:
        schedule: polynomial, cosine or constant, each after a linear warm-up.
        learning_rate: the peak learning rate.
        steps: total number of training steps.
        warmup_steps: number of warm-up steps among them; 0 starts at the peak.

    Raises:
        UserError: the schedule is unknown, or the warm-up does not end before the training.
    """
    one_of("schedule", schedule, SCHEDULES)
    at_least("warmup_steps", warmup_steps, 0)
    if not warmup_steps < steps:
        raise UserError("warmup_steps", warmup_steps, f"it must be below train.steps = {steps}")
    positive("learning_rate", learning_rate)
    return SCHEDULES[schedule](learning_rate, steps, warmup_steps)


def adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Create Adam with clipping by global norm if ``clip_norm`` is set; AdamW with weight decay."""
    if clip_norm is not None:
        positive("clip_norm", clip_norm)
    at_least("weight_decay", weight_decay, 0.0)
    fraction("b1", b1)
    fraction("b2", b2)
    at_least("eps", eps, 0.0)
    return optax.chain(
        optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm),
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.scale_by_learning_rate(learning_rate),
    )
