"""Speed of training steps (loss, gradient, Adam, EMA) compared with torchcfm's U-Net in PyTorch.

    pip install -r requirements-bench.txt  # and the command in it
    python -m benchmarks.train_step [--nets=cifar10,small,imagenet64] [--dtypes=float32,bfloat16]

Both receive a batch of uint8 images on the device and draw t and noise. On CPUs imagenet64 is
excluded by default, because a step takes minutes.
"""

from __future__ import annotations

import argparse
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks import timing
from benchmarks.nets import NETS, Net, has_torch, torch_device, torch_net
from benchmarks.timing import Call, Row, compared, rates, take_turns, write_rows
from flowmatch_jax import objectives, paths
from flowmatch_jax.runtime.mesh import make_mesh, put_batches, state_shardings
from flowmatch_jax.training.cost.estimate import traced_flops
from flowmatch_jax.training.optimizer import adam
from flowmatch_jax.training.state import TrainState, init_state
from flowmatch_jax.training.step import Gradient, make_gradient, make_train_step

LEARNING_RATE, EMA_DECAY, LEVELS = 2e-4, 0.9999, 256
PEERS = {"torch eager": False, "torch.compile": True}  # name -> whether the module is compiled


def gradient(net: Net, dtype: str) -> Gradient:
    """Create the gradient of flow matching on the OT path."""
    objective = objectives.matching("flow_matching", paths.optimal_transport())
    return make_gradient(objective, net.apply(dtype), LEVELS)


def model_flops(net: Net, dtype: str, batch: int) -> float | None:
    """Count the operations of the gradient of a batch."""
    params = jax.eval_shape(net.init, jax.random.key(0))
    images = {"x": jax.ShapeDtypeStruct((batch, *net.shape), jnp.uint8)}
    return traced_flops(gradient(net, dtype), params, images, jax.random.key(0))


def ours(net: Net, dtype: str, batch: int, steps: int) -> Call:
    """Create a call of ``steps`` training steps of this package, sharded over all devices."""
    mesh, optimizer = make_mesh(), adam(LEARNING_RATE)

    def init() -> TrainState:
        return init_state(net.init, optimizer, 0)

    layout = jax.eval_shape(init)
    step = make_train_step(layout, mesh, gradient(net, dtype), optimizer, EMA_DECAY)
    images = put_batches([{"x": net.images(batch)}], mesh)
    # Sharded as the step returns it; otherwise the second call would compile again.
    state = jax.jit(init, out_shardings=state_shardings(layout, mesh))()

    def call() -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, images)
        jax.block_until_ready((state, metrics))

    return call


def torch_steps(net: Net, dtype: str, batch: int, steps: int, compiled: bool) -> Call:
    """Create a call of ``steps`` steps with torchcfm's module and matcher, as in its examples."""
    import torch
    from torchcfm.conditional_flow_matching import TargetConditionalFlowMatcher

    device = torch_device()
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as JAX by default
    module = torch_net(net)
    average = [p.detach().clone() for p in module.parameters()]
    apply = torch.compile(module) if compiled else module
    optimizer = torch.optim.Adam(module.parameters(), LEARNING_RATE)
    matcher = TargetConditionalFlowMatcher(sigma=0.0)
    images = torch.from_numpy(net.images(batch)).permute(0, 3, 1, 2).contiguous().to(device)

    def step() -> None:
        optimizer.zero_grad()
        x1 = (images + torch.rand(images.shape, device=device)) * (2 / LEVELS) - 1
        t, x_t, u_t = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            v_t = apply(t, x_t)
        torch.mean((v_t.float() - u_t) ** 2).backward()
        optimizer.step()
        with torch.no_grad():
            for mean, p in zip(average, module.parameters(), strict=True):
                mean.lerp_(p, 1 - EMA_DECAY)

    def call() -> None:
        for _ in range(steps):
            step()
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def measure(net: Net, dtype: str, peers: list[str], rounds: int) -> list[Row]:
    """Measure images per second of each alternative, and FLOP/s relative to matrix products."""
    batch, steps = (net.gpu_batch, 10) if timing.on_gpu() else (net.batch, 1)
    ceiling = timing.ceiling()
    alternatives = {
        "ours": partial(ours, net, dtype, batch, steps),
        "products": ceiling.alternative(dtype),
    }
    for peer in peers if has_torch() else ():
        alternatives[peer] = partial(torch_steps, net, dtype, batch, steps, PEERS[peer])
    seconds = take_turns(alternatives, rounds).seconds
    images = {name: rates(batch * steps, times) for name, times in seconds.items()}
    label, note = f"{net.name}, {dtype}", f"batch {batch}"
    rows = [
        compared(f"{label}: {peer}", "images/s", images["ours"], images[peer], note)
        for peer in peers
        if peer in images
    ] or [Row(label, "images/s", timing.spread(images["ours"]), note=note)]
    flops = model_flops(net, dtype, batch)
    if flops is not None:
        achieved = rates(flops * steps / 1e9, seconds["ours"])
        possible = rates(ceiling.flops / 1e9, seconds["products"])
        rows.append(compared(f"{label}: model FLOP/s", "GFLOP/s", achieved, possible, note))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    on_gpu = timing.on_gpu()
    parser.add_argument("--nets", default="cifar10,small" + ",imagenet64" * on_gpu)
    parser.add_argument("--dtypes", default="float32" + ",bfloat16" * on_gpu)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--rounds", type=int, default=7)
    flags = parser.parse_args()
    command = f"python -m benchmarks.train_step --nets={flags.nets} --dtypes={flags.dtypes}"
    if flags.peers != parser.get_default("peers"):
        command += f" --peers='{flags.peers}'"
    rows: list[Row] = []
    for name in flags.nets.split(","):
        for dtype in flags.dtypes.split(","):
            rows += measure(NETS[name], dtype, flags.peers.split(","), flags.rounds)
            write_rows("train_step", command, flags.rounds, rows)  # a later case may fail


if __name__ == "__main__":
    main()
