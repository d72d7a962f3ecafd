"""The source p_0, and couplings of noise x_0 with the data x_1 of a batch.

A coupling is a function (key, x_1) -> x_0, both [B, ...], which draws unit Gaussian noise for each
data point. Two couplings come with the batch instead, as its "x0": the pairs that a model has made
(reflow, `data.pairs`), and minibatch optimal transport, which is computed on the host while the
devices train (`data.pairing` draws the noise of a batch and permutes it by `MinibatchOT`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import jax
import numpy as np

from flowmatch_jax.arrays import Array, Batch
from flowmatch_jax.runtime.errors import at_least, one_of, positive

Coupling = Callable[[Array, Array], Array]

# Costs are computed from multiples of 2^-16. In float64 their sums have no rounding errors up to
# 2^21, so that an assignment does not depend on the number of threads, the processor or the BLAS.
UNITS = 2.0**16
LARGEST, FALL = 0.1, 4.0  # of the regularisation: see `entropic_plan`
MOST_ROUNDS = 100  # of Sinkhorn's iterations, for each regularisation
ITERATIONS = 20  # in a round; between rounds the plan is computed anew
TOLERANCE = 1e-3


def draw_source(key: Array, shape: tuple[int, ...], source_std: float = 1.0) -> Array:
    """Draw starting points of samples from p_0 = N(0, source_std^2 I); float32 [B, ...]."""
    return source_std * jax.random.normal(key, shape)


def independent(key: Array, x1: Array) -> Array:
    """Draw x_0 ~ N(0, I) independently of x_1: the paper's q(x_0, x_1) = p_0(x_0) q(x_1)."""
    return jax.random.normal(key, x1.shape, x1.dtype)


def of_the_batch(key: Array, x1: Array) -> NoReturn:
    """Raise ValueError: x_0 comes with the batch, and this batch has none."""
    raise ValueError('this coupling takes x_0 from the batch, which has no "x0"')


def noise_of(coupling: Coupling, key: Array, batch: Batch) -> Array:
    """Return x_0 of a batch: its own "x0" if it has one, otherwise what the coupling draws."""
    return batch["x0"] if "x0" in batch else coupling(key, batch["x"])


PAIRED, MINIBATCH_OT = OF_THE_BATCH = ("paired", "minibatch_ot")
COUPLINGS: dict[str, Coupling] = {
    "independent": independent,
    PAIRED: of_the_batch,
    MINIBATCH_OT: of_the_batch,
}


@dataclass(frozen=True)
class MinibatchOT:
    """Minibatch optimal transport (Pooladian et al. 2023; Tong et al. 2023).

    It pairs the noise and the data of a batch by the plan with the smallest mean squared distance,
    and thus draws from a coupling q(x_0, x_1) whose conditional paths cross less often.

    Attributes:
        method: "exact" (an assignment: each noise sample is used once) or "sinkhorn" (the entropic
            plan, from whose columns the noise of each data point is drawn).
        regularisation: weight of the entropy for "sinkhorn", in units of the standard deviation of
            x_0 . x_1 over all pairs of the batch. For 0 the plan tends to the exact one, and for
            infinity to independent noise.
        batches: training batches whose noise and data are paired at once.
    """

    method: str = "exact"
    regularisation: float = 0.1
    batches: int = 1

    def validate(self) -> None:
        """Raise UserError unless all values are in their ranges."""
        one_of("method", self.method, ("exact", "sinkhorn"))
        positive("regularisation", self.regularisation)
        at_least("batches", self.batches, 1)

    def pair(
        self, rng: np.random.Generator, x0: np.ndarray, x1: np.ndarray, label: np.ndarray | None
    ) -> np.ndarray:
        """Choose the noise of each data point; returns indices [B] of x_0.

        Args:
            rng: draws from the entropic plan.
            x0, x1: noise and data [B, ...].
            label: int [B]. The first n noise samples belong to the n data points in this order,
                and with labels noise is only paired with data of its own label. Without this, the
                distribution of the noise would differ between labels.
        """
        chosen = np.empty(len(x1), np.intp)
        for members in _groups(label, len(x1)):
            cost = transport_cost(x0[members], x1[members])
            if self.method == "exact":
                noise = assign(cost)
            else:
                noise = draw_columns(rng, entropic_plan(cost, self.regularisation * cost.std()))
            chosen[members] = members[noise]
        return chosen


def _groups(label: np.ndarray | None, n: int) -> list[np.ndarray]:
    """Return the indices of the items of each label; without labels, of all n items."""
    if label is None:
        return [np.arange(n)]
    return [np.flatnonzero(label == value) for value in np.unique(label)]


def transport_cost(x0: np.ndarray, x1: np.ndarray) -> np.ndarray:
    """Compute -x_0 . x_1 for all pairs, float64 [N, M].

    It is half of ||x_0 - x_1||^2 without the squared norms, whose sum is that of all assignments.
    """
    a, b = (np.round(UNITS * x.reshape(len(x), -1).astype(np.float64)) for x in (x0, x1))
    return -(a @ b.T) / UNITS**2


def assign(cost: np.ndarray) -> np.ndarray:
    """Find the assignment with the smallest total cost [N, N]; returns a row for each column.

    SciPy augments row by row. With noise in the rows this is three to five times as fast as with
    digits, many of which have the same nearest noise.
    """
    # Imported here: scipy.optimize takes a second to load, and few runs assign anything.
    from scipy.optimize import linear_sum_assignment

    column_of_row = linear_sum_assignment(cost)[1]
    return np.argsort(column_of_row)


def entropic_plan(cost: np.ndarray, regularisation: float) -> np.ndarray:
    """Compute the plan P [N, N] that minimises <P, cost> + regularisation <P, log P> (Cuturi 2013).

    Rows and columns sum to 1. P_ij = exp(f_i + g_j - cost_ij / regularisation) with potentials f, g
    by Sinkhorn's iterations. From an arbitrary start these are slow for a small regularisation. It
    is approached from LARGEST standard deviations of the cost, divided by FALL again and again.
    """
    g = np.zeros(len(cost))
    for eps in _falling(LARGEST * cost.std(), regularisation):
        eps = eps or 1.0  # all costs are equal
        plan, g = _sinkhorn(cost / eps, g / eps)
        g = eps * g
    return plan


def _falling(first: float, last: float) -> Iterator[float]:
    """Yield first, first / FALL, ... as long as they are above the last one, and that."""
    while first > last:
        yield first
        first /= FALL
    yield last


def _sinkhorn(scaled: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the plan exp(f_i + g_j - scaled_ij) and g, from a first g.

    A round starts with one iteration in logarithms, which cannot overflow, and goes on by scaling
    rows and columns. Columns sum to 1 up to rounding, and rows to within TOLERANCE in the mean, or
    what MOST_ROUNDS rounds reach. No sum is by BLAS, whose order depends on threads.
    """
    for _ in range(MOST_ROUNDS):
        f = -_log_sum_exp(g[None, :] - scaled, axis=1)
        g = -_log_sum_exp(f[:, None] - scaled, axis=0)
        plan = np.exp(f[:, None] + g - scaled)
        if np.abs(plan.sum(axis=1) - 1).mean() < TOLERANCE:
            break
        v = np.ones(len(scaled))
        for _ in range(ITERATIONS):
            u = 1 / np.einsum("ij,j->i", plan, v)
            v = 1 / np.einsum("ij,i->j", plan, u)
        g = g + np.log(v)
    return plan, g


def draw_columns(rng: np.random.Generator, plan: np.ndarray) -> np.ndarray:
    """Draw a row for each column of a plan [N, M], whose columns sum to 1: int [M]."""
    below = np.cumsum(plan, axis=0)
    u = rng.random(plan.shape[1]) * below[-1]
    return np.minimum((below <= u).sum(axis=0), len(plan) - 1)


def _log_sum_exp(x: np.ndarray, axis: int) -> np.ndarray:
    top = x.max(axis=axis, keepdims=True)
    return np.log(np.exp(x - top).sum(axis=axis)) + top.squeeze(axis)
