"""Parts of training and scoring beside the plain way to compute them: docs/performance.md.

    python -m benchmarks.parts

Taking turns in one process; a ratio is plain / ours, round by round, so that more is better.
Shapes are of the 1.1M network for 28-pixel images (batch 64) and of the 35.7M network for
CIFAR-10 (batch 16).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks.nets import NETS
from benchmarks.timing import interleaved, ratios, write
from flowmatch_jax.arrays import Array, Params
from flowmatch_jax.likelihood import divergence
from flowmatch_jax.networks.attention import attend
from flowmatch_jax.networks.convolutions import LAYOUT, convolve, convolve_doubled, repeat
from flowmatch_jax.networks.layers import GroupNorm
from flowmatch_jax.training.state import ema_update

SAME = ((1, 1), (1, 1))
SMALL = NETS["small"]


def normal(seed: int, *shape: int) -> Array:
    return jax.random.normal(jax.random.key(seed), shape)


def gradient(function: Callable[..., Array]) -> Callable[..., Any]:
    """Of the function's arguments but the last, which is the gradient of its result."""

    def pull(*arguments: Array) -> Any:
        *inputs, g = arguments
        return jax.vjp(function, *inputs)[1](g)

    return pull


# A case: name, ours, the plain way, their arguments.
Case = tuple[str, Callable[..., Any], Callable[..., Any], tuple[Any, ...]]


def attention_cases() -> Iterator[Case]:
    for shape in ((64, 784, 1, 32), (16, 256, 4, 64), (64, 49, 1, 64)):
        qkv = [normal(i, *shape) for i in range(3)]
        plain = jax.nn.dot_product_attention
        size = " x ".join(map(str, shape))
        yield f"attention, {size}", attend, plain, (*qkv,)
        yield f"attention and gradient, {size}", gradient(attend), gradient(plain), (*qkv, qkv[0])


def plain_convolution(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), SAME, dimension_numbers=LAYOUT)


def convolution_cases() -> Iterator[Case]:
    for b, side, inputs, outputs in (
        (64, 28, 32, 32),
        (64, 28, 96, 32),
        (64, 14, 64, 64),
        (16, 32, 128, 128),
        (16, 32, 384, 128),
        (16, 16, 512, 256),
        (16, 8, 512, 256),
    ):
        x, kernel = normal(0, b, side, side, inputs), normal(1, 3, 3, inputs, outputs)
        g = normal(2, b, side, side, outputs)

        def ours(kernel: Array, g: Array, x: Array = x) -> Any:
            return gradient(lambda kernel: convolve(x, kernel, 1, SAME))(kernel, g)

        def plain(kernel: Array, g: Array, x: Array = x) -> Any:
            return gradient(lambda kernel: plain_convolution(x, kernel))(kernel, g)

        name = f"gradient of a 3 x 3 kernel, {b} x {side} x {side} x {inputs} -> {outputs}"
        yield name, ours, plain, (kernel, g)


def doubling_cases() -> Iterator[Case]:
    for b, side, channels in ((16, 16, 256), (16, 8, 256), (64, 14, 64)):
        x, kernel = normal(0, b, side, side, channels), normal(1, 3, 3, channels, channels)
        g = normal(2, b, 2 * side, 2 * side, channels)
        plain = lambda x, kernel: plain_convolution(repeat(x), kernel)  # noqa: E731
        size = f"{b} x {side} x {side} x {channels}"
        yield f"doubled convolution, {size}", convolve_doubled, plain, (x, kernel)
        both = gradient(convolve_doubled), gradient(plain)
        yield f"doubled convolution, gradients, {size}", *both, (x, kernel, g)


def normalisation_cases() -> Iterator[Case]:
    for shape in ((16, 32, 32, 128), (64, 28, 28, 32)):
        x = normal(0, *shape)
        variables = GroupNorm().init(jax.random.key(0), x)

        def ours(x: Array, variables: Params = variables) -> Array:
            return nn.silu(GroupNorm().apply(variables, x))

        def plain(x: Array, variables: Params = variables) -> Array:
            return nn.silu(nn.GroupNorm(32).apply(variables, x))

        size = " x ".join(map(str, shape))
        yield f"group norm and SiLU, {size}", ours, plain, (x,)
        yield f"group norm and SiLU, gradient, {size}", gradient(ours), gradient(plain), (x, x)


def update_cases() -> Iterator[Case]:
    """Adam and the average: leaf by leaf as in training, against all parameters in one vector."""
    params = SMALL.init(jax.random.key(0))
    optimizer = optax.adam(1e-3)

    def update(params: Params, ema: Params, moments: Any, gradients: Params) -> Any:
        updates, moments = optimizer.update(gradients, moments)
        params = optax.apply_updates(params, updates)
        return params, ema_update(ema, params, jnp.int32(0), 0.9999), moments

    def state(params: Params) -> tuple[Any, ...]:
        return params, params, optimizer.init(params), params

    vector = state(jnp.concatenate([p.ravel() for p in jax.tree.leaves(params)]))
    leaves = state(params)
    yield (
        "Adam and EMA, leaf by leaf, against one vector",
        lambda leaves, vector: update(*leaves),
        lambda leaves, vector: update(*vector),
        (leaves, vector),
    )


def divergence_cases() -> Iterator[Case]:
    x, probes = normal(0, 16, 28, 28, 1), normal(1, 4, 16, 28, 28, 1)
    field = partial(SMALL.apply(), SMALL.init(jax.random.key(0)))

    def forward(x: Array, probes: Array) -> Any:
        return divergence(field, 0.3, x, probes)

    def one_after_another(x: Array, probes: Array) -> Any:
        return jax.lax.map(lambda z: divergence(field, 0.3, x, z[None]), probes)

    def reverse(x: Array, probes: Array) -> Any:
        v, pull = jax.vjp(lambda x: field(0.3, x), x)
        return v, jax.vmap(lambda z: (z * pull(z)[0]).sum(axis=(1, 2, 3)))(probes)

    yield "divergence, 1 probe, forward against reverse", forward, reverse, (x, probes[:1])
    yield "divergence, 4 probes, forward against reverse", forward, reverse, (x, probes)
    yield (
        "divergence, 4 probes, together against one by one",
        forward,
        one_after_another,
        (x, probes),
    )


def main() -> None:
    record = {}
    for cases in (
        attention_cases,
        convolution_cases,
        doubling_cases,
        normalisation_cases,
        update_cases,
        divergence_cases,
    ):
        for name, ours, plain, arguments in cases():
            compiled = {
                "ours": jax.jit(ours).lower(*arguments).compile(),
                "plain": jax.jit(plain).lower(*arguments).compile(),
            }
            calls = {name: partial(program, *arguments) for name, program in compiled.items()}
            seconds = interleaved(calls)
            record[name] = {
                "plain_over_ours": ratios(seconds["plain"], seconds["ours"]),
                "ours_ms": 1e3 * statistics.median(seconds["ours"]),
                "plain_ms": 1e3 * statistics.median(seconds["plain"]),
            }
    write("parts", {"cases": record})


if __name__ == "__main__":
    main()
