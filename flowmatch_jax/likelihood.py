"""Log-likelihood by the instantaneous change of variables, and bits/dim of images.

Along the flow, d/dt log p_t(x_t) = -div v_t(x_t), so

    log p_1(x_1) = log p_0(x_0) - int_0^1 div v_t(x_t) dt          (Appendix C)

where x_t is the solution that ends at x_1. Log-densities are in nats, float32 or the input's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optimistix

from flowmatch_jax.arrays import Array, Field, sum_dims
from flowmatch_jax.dequantisation import uniform_noise
from flowmatch_jax.divergence import DIVERGENCES, PROBES, divergence_estimates, validate_orthogonal
from flowmatch_jax.runtime.errors import UserError, at_least, one_of
from flowmatch_jax.solvers import NO_DENSITIES, Solution, Solver, integrate

# (key, image) -> (x in model space, log q(x | image) [B])
Draw = Callable[[Array, Array], tuple[Array, Array]]


class LogProb(NamedTuple):
    """The result of a solve from data to noise.

    Attributes:
        log_prob: [B], log p_1(x_1) in nats; the mean of the estimates.
        estimates: [P, B], log p_1(x_1) by each of P Hutchinson probes, independent and unbiased;
            P = 1 if the divergence is exact.
        x0: [B, ...], the noise to which the flow maps x_1.
        nfe: int32 [], number of evaluations of the field with its divergence.
        converged: bool [], see `solvers.Solution`.
    """

    log_prob: Array
    estimates: Array
    x0: Array
    nfe: Array
    converged: Array


def gaussian_log_prob(x: Array, std: float = 1.0) -> Array:
    """Compute log N(x | 0, std^2 I) of each sample, [B, ...] -> [B], in nats."""
    dims = math.prod(x.shape[1:])
    return -0.5 * sum_dims((x / std) ** 2) - dims * math.log(std * math.sqrt(2 * math.pi))


def log_prob(
    field: Field,
    x1: Array,
    key: Array | None = None,
    solver: Solver = Solver(),
    *,
    source_std: float = 1.0,
    t0: float = 0.0,
    t1: float = 1.0,
    divergence: str = "hutchinson",
    probes: int = 1,
    probe_kind: str = "rademacher",
    block: int = 1,
) -> LogProb:
    """Compute log p_1(x_1) of a vector field's flow with the source N(0, source_std^2 I).

    Args:
        field: v(t, x).
        x1: [B, ...], data in model space.
        key: key of the probes, drawn once per solve; unused by "exact".
        solver: the method and its steps; a grid goes from t0 to t1. The tolerances of adaptive
            steps apply to both x and the log-density in nats/dim, because the divergence of a
            narrow density can change fast where x hardly moves.
        source_std: standard deviation of p_0 (the path's `source_std`).
        t0, t1: the ends of the solve; t1 should be the path's `t_end`.
        divergence: "hutchinson" (unbiased) or "exact" (as many derivatives as dimensions).
        probes: number of Hutchinson probes.
        probe_kind: "rademacher", "gaussian" or "orthogonal" (see `divergence.PROBES`).
        block: number of derivatives of an exact divergence that are computed at once; memory
            grows with it.

    Raises:
        UserError: the divergence is unknown, there is less than one probe, the probes need a key,
            the solver is for samples alone, or `solvers.integrate` raises it.
    """
    how = (divergence, probes, probe_kind, block)
    back = solver if solver.grid is None else replace(solver, grid=solver.grid[::-1])
    solution, integrals = _with_divergence(field, x1, key, (t1, t0), back, *how)
    estimates = gaussian_log_prob(solution.x, source_std) + integrals
    mean = estimates.mean(axis=0)
    return LogProb(mean, estimates, solution.x, solution.nfe, solution.converged)


def sample_with_log_prob(
    field: Field,
    x0: Array,
    key: Array | None = None,
    solver: Solver = Solver(),
    *,
    source_std: float = 1.0,
    t0: float = 0.0,
    t1: float = 1.0,
    **how: Any,
) -> tuple[Array, LogProb]:
    """Draw samples with their log-densities in one solve, from noise to data.

    Args:
        field: v(t, x).
        x0: noise from the source N(0, source_std^2 I), [B, ...].
        key, solver, t0, t1: as in `log_prob`.
        **how: divergence, probes, probe_kind and block, as in `log_prob`.

    Returns:
        The samples x_1 [B, ...], and the result as `log_prob` returns it.
    """
    solution, integrals = _with_divergence(field, x0, key, (t0, t1), solver, **how)
    estimates = gaussian_log_prob(x0, source_std) - integrals
    mean = estimates.mean(axis=0)
    return solution.x, LogProb(mean, estimates, x0, solution.nfe, solution.converged)


def _with_divergence(
    field: Field,
    x: Array,
    key: Array | None,
    times: tuple[float, float],
    solver: Solver,
    divergence: str = "hutchinson",
    probes: int = 1,
    probe_kind: str = "rademacher",
    block: int = 1,
) -> tuple[Solution, Array]:
    """Solve for x between two times, with the integral of the divergence in nats, [P, B]."""
    validate_solver(solver)
    one_of("divergence", divergence, DIVERGENCES)
    one_of("probe_kind", probe_kind, PROBES)
    at_least("probes", probes, 1)
    at_least("block", block, 1)
    z, dims = None, math.prod(x.shape[1:])
    if divergence == "hutchinson":
        if key is None:
            raise UserError("key", key, "hutchinson draws its probes with it; or choose 'exact'")
        z = PROBES[probe_kind](key, probes, x)

    def augmented(t: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        v, estimates = divergence_estimates(field, t, state[0], z, block)
        return v, estimates / dims

    start = (x, jnp.zeros((1 if z is None else probes, x.shape[0]), x.dtype))
    larger = lambda error: jnp.maximum(*map(optimistix.rms_norm, error))  # noqa: E731
    solution = integrate(augmented, start, *times, solver, error_norm=larger)
    end, integral = solution.x  # the integral is in nats/dim
    return solution._replace(x=end), dims * integral


def bits_per_dim(log_prob: Array, dims: int, levels: int = 256) -> Array:
    """Convert log-densities in model space [-1, 1] to bits/dim of pixels in [0, levels).

    -log p / (d log 2) + log2(levels / 2); for 256 levels the last term is the paper's "+ 7".

    Args:
        log_prob: log-densities in nats, any shape.
        dims: dimensions of an image, height x width x channels.
        levels: grey levels of the dataset.
    """
    return bits_of(log_prob, dims) + math.log2(levels / 2)


def bits_of(log_probability: Array, dims: int) -> Array:
    """Convert log-probabilities of images in nats to bits/dim."""
    return -log_probability / (dims * math.log(2))


def importance_bound(estimates: Array) -> Array:
    """Bound log (1/K) sum_k p_1(x + u_k) of K dequantisations, from estimates [K, P, B] to [B].

    The result is, in expectation, a lower bound on the log-probability of the integer image that
    tightens with K (Appendix E). For any weights w_k that sum to 1, Gibbs' inequality is

        log (1/K) sum_k p_k >= sum_k w_k (log p_k - log w_k) - log K,

    with equality for w_k = p_k / sum_j p_j. Exact log-densities (P = 1) determine their own
    weights. A Hutchinson estimate is weighted by the mean of the other probes' estimates, which is
    independent of its noise, so the bound also holds in expectation over the probes. In contrast,
    log (1/K) sum_k exp of the estimates exceeds log (1/K) sum_k p_k in expectation, because exp is
    convex, if their noise depends on u_k.

    Args:
        estimates: log p_1(x + u_k) in nats, independent and unbiased along P; exact if P = 1.
    """
    samples, probes = estimates.shape[:2]
    others = estimates
    if probes > 1:
        others = (estimates.sum(axis=1, keepdims=True) - estimates) / (probes - 1)
    log_weights = jax.nn.log_softmax(others, axis=0)
    bounds = (jnp.exp(log_weights) * (estimates - log_weights)).sum(axis=0)
    return bounds.mean(axis=0) - math.log(samples)


def validate_solver(solver: Solver) -> None:
    """Raise UserError if the solver does not solve for log-densities."""
    if solver.is_for_samples:
        raise UserError("method", solver.method, NO_DENSITIES)


def validate_probes(
    samples: int, divergence: str, probes: int, probe_kind: str = "rademacher"
) -> None:
    """Raise UserError if a bound would weight dequantisations by probes that score them.

    Args:
        samples, divergence, probes, probe_kind: as in `image_bits_per_dim`.
    """
    if divergence == "exact":
        return
    if samples > 1 and probes < 2:
        allowed = f"a bound of K = {samples} dequantisations takes 2 probes or more, or 'exact'"
        raise UserError("probes", probes, allowed)
    if samples > 1 and probe_kind == "orthogonal":
        allowed = f"a bound of K = {samples} takes independent probes: rademacher or gaussian"
        raise UserError("probe_kind", probe_kind, allowed)
    if probe_kind == "orthogonal":
        validate_orthogonal(probes)


class ImageLikelihood(NamedTuple):
    """The result of K solves for images.

    Attributes:
        bits_per_dim: [B], from all K dequantisations.
        estimates: [K, P, B], log p(x) - log q(x | image) in nats of each dequantisation by each
            probe, in expectation a bound on the log-probability of the image; the first k give the
            bound for K = k.
        nfe: float32 [], mean NFE over the solves.
        converged: bool [], whether all solves converged.
    """

    bits_per_dim: Array
    estimates: Array
    nfe: Array
    converged: Array


def image_bits_per_dim(
    field: Field,
    image: Array,
    key: Array,
    solver: Solver = Solver(),
    *,
    levels: int = 256,
    samples: int = 1,
    divergence: str = "hutchinson",
    probes: int = 2,
    probe_kind: str = "rademacher",
    block: int = 1,
    source_std: float = 1.0,
    t1: float = 1.0,
    draw: Draw | None = None,
) -> ImageLikelihood:
    """Compute bits/dim of integer images from K dequantisations; see `importance_bound`.

    Hutchinson's probes are shared by all K solves, so that most of their noise is common to them.

    Args:
        field: v(t, x) in model space [-1, 1].
        image: integers in [0, levels), [B, H, W, C].
        key: key of the dequantisations and the probes.
        samples: K, the number of dequantisations.
        probes: number of Hutchinson probes; at least two if K > 1.
        draw: a `Dequantisation`'s likelihood, whose path ends at t1; None: uniform noise.

    Raises:
        UserError: ``samples`` is below one, K > 1 has one probe or dependent ones, or `log_prob`
            raises it.
    """
    at_least("samples", samples, 1)
    validate_probes(samples, divergence, probes, probe_kind)
    key, probe_key = jax.random.split(key)
    how = dict(divergence=divergence, probes=probes, probe_kind=probe_kind, block=block)
    ends = dict(source_std=source_std, t1=t1)

    def once(noise_key: Array) -> LogProb:
        x, log_q = draw(noise_key, image)
        result = log_prob(field, x, probe_key, solver, **ends, **how)
        return result._replace(x0=None, estimates=result.estimates - log_q)

    draw = draw or partial(uniform_noise, levels=levels)
    results = jax.lax.map(once, jax.random.split(key, samples))
    bits = bits_of(importance_bound(results.estimates), math.prod(image.shape[1:]))
    return ImageLikelihood(bits, results.estimates, results.nfe.mean(), results.converged.all())
