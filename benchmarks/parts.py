"""Parts of training and scoring compared with alternative implementations (docs/performance.md).

    python -m benchmarks.parts

Alternatives take turns in one process; the ratio, per round, is other / ours, so that higher is
better. Shapes are those of the 1.1M network for 28-pixel images (batch size 64) and of the 35.7M
network for CIFAR-10 (batch size 16). The record also has compilation times, and the operations and
bytes of whole training steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks.nets import NETS
from benchmarks.timing import interleaved, ratios, write
from benchmarks.train_step import gradient as step_gradient
from flowmatch_jax.arrays import Array, Params
from flowmatch_jax.divergence import divergence
from flowmatch_jax.networks.attention import attend
from flowmatch_jax.networks.convolutions import LAYOUT, convolve, convolve_doubled, repeat
from flowmatch_jax.networks.layers import GroupNorm
from flowmatch_jax.networks.unet import ResidualBlock
from flowmatch_jax.training.state import ema_update

SAME = ((1, 1), (1, 1))
SMALL = NETS["small"]
BLOCKS = 3


def normal(seed: int, *shape: int) -> Array:
    return jax.random.normal(jax.random.key(seed), shape)


def gradient(function: Callable[..., Array]) -> Callable[..., Any]:
    """Create the gradient of a function; its last argument is the gradient of the result."""

    def pull(*arguments: Array) -> Any:
        *inputs, g = arguments
        return jax.vjp(function, *inputs)[1](g)

    return pull


# A case: name, our implementation, the alternative, and their arguments.
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
    """Compare Adam and EMA leaf by leaf, as in training, with all parameters in one vector."""
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


def concatenation_cases() -> Iterator[Case]:
    """Compare skip connections by concatenation with separate kernels whose results are added."""
    for b, side, ours, skip, outputs in ((16, 32, 128, 128, 128), (64, 28, 64, 32, 32)):
        h, skips = normal(0, b, side, side, ours), normal(1, b, side, side, skip)
        kernel = normal(2, 3, 3, ours + skip, outputs)
        g = normal(3, b, side, side, outputs)

        def together(h: Array, skips: Array, kernel: Array) -> Array:
            return convolve(jnp.concatenate([h, skips], axis=-1), kernel, 1, SAME)

        def apart(h: Array, skips: Array, kernel: Array) -> Array:
            of_h, of_skips = jnp.split(kernel, [h.shape[-1]], axis=2)
            return convolve(h, of_h, 1, SAME) + convolve(skips, of_skips, 1, SAME)

        size = f"{b} x {side} x {side} x ({ours} + {skip})"
        yield f"skips concatenated, against added, {size}", together, apart, (h, skips, kernel)
        both, arguments = (gradient(together), gradient(apart)), (h, skips, kernel, g)
        yield f"skips concatenated, against added, gradients, {size}", *both, arguments


def equal_blocks_cases() -> Iterator[Case]:
    """Compare residual blocks of one shape in sequence, as in the U-Net, with a scan."""
    block, x, embedding = ResidualBlock(128), normal(0, 16, 16, 16, 128), normal(1, 16, 512)
    keys = jax.random.split(jax.random.key(0), BLOCKS)
    params = [block.init(key, x, embedding)["params"] for key in keys]

    def apply(x: Array, params: Params) -> Array:
        return block.apply({"params": params}, x, embedding)

    def one_by_one(x: Array, params: list[Params]) -> Array:
        for each in params:
            x = apply(x, each)
        return x

    def scanned(x: Array, params: list[Params]) -> Array:
        stacked = jax.tree.map(lambda *p: jnp.stack(p), *params)
        return jax.lax.scan(lambda x, p: (apply(x, p), None), x, stacked)[0]

    name = f"{BLOCKS} equal blocks, one by one, against a scan"
    yield name, one_by_one, scanned, (x, params)
    yield f"{name}, gradients", gradient(one_by_one), gradient(scanned), (x, params, x)


def whole_steps() -> dict[str, dict[str, float]]:
    """Count operations, bytes moved (without and with fusion) and temporaries of the gradient."""
    programs = {}
    for net in (NETS["small"], NETS["cifar10"]):
        params = jax.eval_shape(net.init, jax.random.key(0))
        images = {"x": jax.ShapeDtypeStruct((net.batch, *net.shape), jnp.uint8)}
        traced = jax.jit(step_gradient(net, "float32")).trace(params, images, jax.random.key(0))
        plain = traced.lower(lowering_platforms=("tpu",)).cost_analysis()
        compiled = traced.lower().compile()
        programs[net.name] = {
            "gflop": plain["flops"] / 1e9,
            "unfused_gb": plain["bytes accessed"] / 1e9,
            "compiled_gb": compiled.cost_analysis()["bytes accessed"] / 1e9,
            "temporary_gb": compiled.memory_analysis().temp_size_in_bytes / 1e9,
        }
    return programs


def compiled(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, float]:
    """Return the compiled program and the seconds of its compilation."""
    lowered = jax.jit(function).lower(*arguments)
    begin = time.perf_counter()
    return lowered.compile(), time.perf_counter() - begin


def measure(ours: Callable[..., Any], other: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Measure a case and return its record."""
    made = {"ours": compiled(ours, arguments), "other": compiled(other, arguments)}
    seconds = interleaved({n: partial(program, *arguments) for n, (program, _) in made.items()})
    return {
        "other_over_ours": ratios(seconds["other"], seconds["ours"]),
        **{f"{n}_ms": 1e3 * statistics.median(times) for n, times in seconds.items()},
        **{f"{n}_compile_s": taken for n, (_, taken) in made.items()},
    }


CASES = {
    "attention": attention_cases,
    "convolution": convolution_cases,
    "doubling": doubling_cases,
    "normalisation": normalisation_cases,
    "concatenation": concatenation_cases,
    "equal_blocks": equal_blocks_cases,
    "update": update_cases,
    "divergence": divergence_cases,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", default=",".join(CASES), help="kinds of cases, which are printed but not saved"
    )
    only = parser.parse_args().only.split(",")
    record = {name: measure(*case) for kind in only for name, *case in CASES[kind]()}
    if len(only) < len(CASES):
        print(json.dumps(record, indent=2))
        return
    write("parts", {"cases": record, "steps": whole_steps()})


if __name__ == "__main__":
    main()
