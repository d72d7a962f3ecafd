"""Training steps beside torchcfm's: loss, gradient, Adam and the average of the parameters.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --dtype=bfloat16 --nets=large     # on a GPU

Both sides train the same layers by flow matching with the OT path on the same batch of uint8
images. Ratios are the peer's seconds over ours, round by round: above 1, ours is faster.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.nets import NETS
from benchmarks.timing import (
    interleaved,
    is_gpu,
    peers_installed,
    ratios,
    summary,
    take_turns,
    write,
)
from flowmatch_jax import objectives, paths
from flowmatch_jax.experiment import DTYPES
from flowmatch_jax.mesh import make_mesh, put_batches, state_shardings
from flowmatch_jax.networks import pure_apply
from flowmatch_jax.training.cost import traced_flops
from flowmatch_jax.training.optimizer import adam
from flowmatch_jax.training.state import init_state
from flowmatch_jax.training.step import Gradient, make_gradient, make_train_step

LEARNING_RATE, DECAY = 2e-4, 0.9999
GROUPS = {
    "small": ("28 px, 1.1M", "CIFAR-10, 35.7M"),
    "large": ("CIFAR-10, 35.7M", "ImageNet-64, 295M"),
    "all": tuple(NETS),
}


def images(name: str) -> np.ndarray:
    net = NETS[name]
    batch = net.gpu_batch if is_gpu() else net.batch
    return np.random.default_rng(1).integers(0, 256, (batch, *net.shape), np.uint8)


def our_gradient(name: str, dtype: str) -> Gradient:
    objective = objectives.flow_matching(paths.optimal_transport())
    return make_gradient(objective, pure_apply(NETS[name].unet.clone(dtype=DTYPES[dtype])), 256)


def ours(name: str, dtype: str) -> Callable[[], Any]:
    mesh = make_mesh()
    optimizer = adam(LEARNING_RATE)
    state = init_state(lambda key: NETS[name].init(), optimizer, 0)
    state = jax.device_put(state, state_shardings(state, mesh))
    batches = put_batches([{"x": images(name)}], mesh)
    step = make_train_step(state, mesh, our_gradient(name, dtype), optimizer, DECAY)
    program = step.lower(state, batches).compile()

    def call() -> Any:
        nonlocal state
        state, metrics = program(state, batches)
        return metrics["loss"]

    return call


def torchs(name: str, dtype: str, compiled: bool) -> Callable[[], None]:
    import torch
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = NETS[name].torch_module()
    average = copy.deepcopy(module)
    optimizer = torch.optim.Adam(module.parameters(), LEARNING_RATE)
    matcher = ConditionalFlowMatcher(sigma=0.0)
    field = torch.compile(module) if compiled else module
    batch = torch.from_numpy(images(name)).to(device)

    def call() -> None:
        optimizer.zero_grad()
        pixels = batch.permute(0, 3, 1, 2).float()
        x1 = (pixels + torch.rand_like(pixels)) / 128 - 1
        t, xt, ut = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            vt = field(t, xt)
        ((vt - ut) ** 2).mean().backward()
        optimizer.step()
        with torch.no_grad():
            for mean, parameter in zip(average.parameters(), module.parameters(), strict=True):
                mean.lerp_(parameter, 1 - DECAY)
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def matrix_product_flops(dtype: str) -> float:
    """Operations a second of a large square matrix product: the ceiling of utilisation."""
    side = 8192 if is_gpu() else 2048
    x = jnp.ones((side, side), DTYPES[dtype] or jnp.float32)
    product = jax.jit(lambda x: x @ x).lower(x).compile()
    return 2 * side**3 / min(interleaved({"product": lambda: product(x)})["product"])


def measure(name: str, dtype: str, rounds: int) -> dict[str, Any]:
    makers: dict[str, Any] = {"flowmatch_jax": partial(ours, name, dtype)}
    if peers_installed():
        makers["torch eager"] = partial(torchs, name, dtype, compiled=False)
        makers["torch.compile"] = partial(torchs, name, dtype, compiled=True)
    seconds = take_turns(makers, rounds)
    batch = len(images(name))
    params = jax.eval_shape(NETS[name].init)
    shape = jax.ShapeDtypeStruct((batch, *NETS[name].shape), np.uint8)
    flops = traced_flops(
        our_gradient(name, dtype), params, {"x": shape}, jax.eval_shape(lambda: jax.random.key(0))
    )
    summaries = {alternative: summary(times) for alternative, times in seconds.items()}
    own = seconds.pop("flowmatch_jax")
    return {
        "batch": batch,
        "ratio_to": {peer: ratios(times, own) for peer, times in seconds.items()},
        "seconds": summaries,
        "images_per_second": {name: batch / times["median"] for name, times in summaries.items()},
        "flops_a_step": flops,
        "flops_per_second": flops / summaries["flowmatch_jax"]["median"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nets", choices=GROUPS, default="large" if is_gpu() else "small")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    record = {name: measure(name, options.dtype, options.rounds) for name in GROUPS[options.nets]}
    suffix = "" if options.dtype == "float32" else "_bfloat16"
    ceiling = matrix_product_flops(options.dtype)
    write(
        f"train_step{suffix}",
        {"dtype": options.dtype, "matrix_product_flops_per_second": ceiling, "nets": record},
    )


if __name__ == "__main__":
    main()
