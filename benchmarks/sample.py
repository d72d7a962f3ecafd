"""Cost of solves relative to their network calls and to torchdiffeq.

    pip install -r requirements-bench.txt  # and the command in it
    python -m benchmarks.sample

The field is that of the 1.1M 28-px net, with equal weights in JAX and, through torchcfm, in
PyTorch. Network calls are timed in a jitted loop of NFE calls, which excludes dispatch overhead.
"""

from __future__ import annotations

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.nets import NETS, Net, has_torch, torch_device, torch_net
from benchmarks.timing import (
    Call,
    Row,
    compared,
    interleaved,
    rates,
    spread,
    take_turns,
    write_rows,
)
from flowmatch_jax.arrays import Array, Params
from flowmatch_jax.sampling import linear
from flowmatch_jax.solvers import Solution, Solver, integrate

TOLERANCE = 1e-5
METHODS = {
    "dopri5": partial(integrate, solver=Solver("dopri5", rtol=TOLERANCE, atol=TOLERANCE)),
    "tsit5": partial(integrate, solver=Solver("tsit5", rtol=TOLERANCE, atol=TOLERANCE)),
    "midpoint": partial(integrate, solver=Solver("midpoint", steps=10)),
    "euler": partial(integrate, solver=Solver("euler", steps=20)),
    "ab3": partial(integrate, solver=Solver("ab3", steps=20)),
    "fitted": partial(linear.solve, coefficients=linear.of_method("ab3", np.linspace(0, 1, 21))),
}


def noise(net: Net, batch: int) -> np.ndarray:
    """Draw x_0, [B, H, W, C] float32."""
    return np.random.RandomState(2).standard_normal((batch, *net.shape)).astype(np.float32)


def solve_by(net: Net, method: str) -> jax.stages.Wrapped:
    """Create a jitted function (params, x) -> Solution."""
    apply, by = net.apply(), METHODS[method]

    @jax.jit
    def solve(params: Params, x: Array) -> Solution:
        return by(lambda t, x: apply(params, t, x), x)

    return solve


def overhead(net: Net, params: Params, batch: int, method: str, rounds: int) -> Row:
    """Measure the seconds of a solve relative to those of NFE network calls."""
    solve, apply, x = solve_by(net, method), net.apply(), jnp.asarray(noise(net, batch))
    nfe = int(solve(params, x).nfe)

    @jax.jit
    def calls(params: Params, x: Array) -> Array:
        step = lambda x, t: (x + 1e-3 * apply(params, t, x), None)  # noqa: E731
        return jax.lax.scan(step, x, jnp.linspace(0.0, 1.0, nfe))[0]

    seconds = interleaved(
        {"solve": lambda: solve(params, x), "calls": lambda: calls(params, x)}, rounds
    )
    name = f"{net.name}, {method}: over NFE x network call"
    note = f"batch {batch}, NFE {nfe}"
    return compared(name, "s", seconds["solve"], seconds["calls"], note)


def ours(net: Net, params: Params, batch: int) -> Call:
    """Create a call of a solve by dopri5; it returns the NFE."""
    solve, x = solve_by(net, "dopri5"), jnp.asarray(noise(net, batch))
    params = jax.device_put(params)
    return lambda: int(jax.block_until_ready(solve(params, x)).nfe)


def torchdiffeq_solve(net: Net, params: Params, batch: int, compiled: bool) -> Call:
    """Create a call of torchdiffeq's dopri5 on the same field; it returns the NFE."""
    import torch
    from torchdiffeq import odeint

    if torch_device() == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as JAX by default
    module = torch_net(net, params)
    apply = torch.compile(module) if compiled else module
    x = torch.from_numpy(noise(net, batch)).permute(0, 3, 1, 2).contiguous().to(torch_device())
    times = torch.tensor([0.0, 1.0], device=x.device)

    @torch.no_grad()
    def call() -> int:
        nfe = 0

        def field(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            nonlocal nfe
            nfe += 1
            return apply(t.expand(len(x)), x)

        odeint(field, x, times, rtol=TOLERANCE, atol=TOLERANCE, method="dopri5")[-1].cpu()
        return nfe

    return call


def against_torchdiffeq(net: Net, params: Params, batch: int, rounds: int) -> list[Row]:
    """Measure NFE and samples per second of both."""
    alternatives = {"ours": partial(ours, net, params, batch)}
    if has_torch():
        for peer, compiled in (("torch eager", False), ("torch.compile", True)):
            alternatives[peer] = partial(torchdiffeq_solve, net, params, batch, compiled)
    turns = take_turns(alternatives, rounds)
    images = {name: rates(batch, times) for name, times in turns.seconds.items()}
    label, note = f"{net.name}, dopri5", f"batch {batch}"
    if not has_torch():
        return [Row(f"{label}: samples", "images/s", spread(images["ours"]), note=note)]
    nfe = {name: [float(told)] for name, told in turns.told.items()}
    return [
        compared(f"{label}: NFE, torchdiffeq", "calls", nfe["ours"], nfe["torch eager"], note),
        *(
            compared(f"{label}: torchdiffeq, {peer}", "images/s", images["ours"], rate, note)
            for peer, rate in images.items()
            if peer != "ours"
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", default="small" + ",cifar10" * timing.on_gpu())
    parser.add_argument("--batch", type=int, help="default: the net's own")
    parser.add_argument("--rounds", type=int, default=7)
    flags = parser.parse_args()
    rows = []
    for name in flags.nets.split(","):
        net = NETS[name]
        batch = flags.batch or (net.gpu_batch if timing.on_gpu() else net.batch)
        params = jax.jit(net.init)(jax.random.key(0))
        rows += [overhead(net, params, batch, method, flags.rounds) for method in METHODS]
        on_host = jax.tree.map(np.asarray, params)
        rows += against_torchdiffeq(net, on_host, batch, flags.rounds)
    write_rows("sample", f"python -m benchmarks.sample --nets={flags.nets}", flags.rounds, rows)


if __name__ == "__main__":
    main()
