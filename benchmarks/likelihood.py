"""Speed of one evaluation of the field's divergence, relative to a network call and to PyTorch.

    pip install -r requirements-bench.txt  # and the command in it
    python -m benchmarks.likelihood

Our evaluation is timed in a loop, as in a solve. PyTorch computes the same estimate for torchcfm's
module by autograd.grad, because torch.func.jvp fails in its group norm (torch 2.13).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.nets import NETS, has_torch, torch_device, torch_net
from benchmarks.timing import Call, Row, compared, interleaved, rates, take_turns, write_rows
from flowmatch_jax.arrays import Array, Params
from flowmatch_jax.divergence import divergence

TIME = 0.3


@dataclass(frozen=True)
class Case:
    """A divergence: its network, number of probes (None: exact), and batch size."""

    net: str
    probes: int | None
    batch: int

    @property
    def name(self) -> str:
        kind = "exact" if self.probes is None else f"Hutchinson, {self.probes} probe(s)"
        return f"{NETS[self.net].name}, {kind}"


CASES = (
    Case("small", 1, 64),
    Case("small", 4, 16),
    Case("digits", 1, 128),
    Case("digits", 4, 128),
    Case("digits", None, 16),
)


def points(case: Case) -> tuple[np.ndarray, np.ndarray | None]:
    """Draw x [B, H, W, C] and probes [P, B, H, W, C], float32."""
    rng, shape = np.random.RandomState(0), (case.batch, *NETS[case.net].shape)
    x = rng.standard_normal(shape).astype(np.float32)
    if case.probes is None:
        return x, None
    return x, rng.choice(np.float32([-1, 1]), (case.probes, *shape))


def looped(step: Callable[[Array, Array], Array], count: int) -> jax.stages.Wrapped:
    """Create a jitted function that applies ``count`` steps (t, x) -> x."""
    times = jnp.linspace(0.0, 1.0, count)
    return jax.jit(lambda x: jax.lax.scan(lambda x, t: (step(t, x), None), x, times)[0])


def over_a_call(case: Case, rounds: int) -> Row:
    """Measure the seconds of a divergence relative to a network call."""
    net, (x, probes) = NETS[case.net], jax.tree.map(jnp.asarray, points(case))
    params, apply = jax.jit(net.init)(jax.random.key(0)), net.apply()
    count = 1 if case.probes is None else 4
    field = lambda t, x: apply(params, t, x)  # noqa: E731

    def with_divergence(t: Array, x: Array) -> Array:
        v, div = divergence(field, t, x, probes)
        return x + 1e-3 * v + 1e-6 * div[:, None, None, None]

    call = looped(lambda t, x: x + 1e-3 * field(t, x), count)
    evaluate = looped(with_divergence, count)
    seconds = interleaved({"divergence": lambda: evaluate(x), "call": lambda: call(x)}, rounds)
    each = {name: [s / count for s in times] for name, times in seconds.items()}
    name = f"{case.name}: over one network call"
    return compared(name, "s", each["divergence"], each["call"], f"batch {case.batch}")


def ours(case: Case, params: Params) -> Call:
    """Create a call of one evaluation; it returns the mean, which all alternatives share."""
    (x, probes), apply = jax.tree.map(jnp.asarray, points(case)), NETS[case.net].apply()
    params = jax.device_put(params)

    @jax.jit
    def evaluate(params: Params, x: Array) -> tuple[Array, Array]:
        return divergence(lambda t, x: apply(params, t, x), TIME, x, probes)

    return lambda: float(evaluate(params, x)[1].mean())


def torch_divergence(case: Case, params: Params) -> Call:
    """Create a call of Hutchinson's estimate for torchcfm's module, one probe at a time."""
    import torch

    net, device, (x, probes) = NETS[case.net], torch_device(), points(case)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as JAX by default
    module = torch_net(net, params).requires_grad_(False)
    x = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().to(device)
    probes = torch.from_numpy(probes).permute(0, 1, 4, 2, 3).contiguous().to(device)
    t = torch.full((case.batch,), TIME, device=device)

    def call() -> float:
        point = x.clone().requires_grad_()
        v = module(t, point)
        terms = [
            (torch.autograd.grad(v, point, z, retain_graph=True)[0] * z).flatten(1).sum(1)
            for z in probes
        ]
        return torch.stack(terms).mean().item()

    return call


def against_torch(case: Case, rounds: int) -> Row:
    """Measure images per second of both."""
    params = jax.tree.map(np.asarray, jax.jit(NETS[case.net].init)(jax.random.key(0)))
    alternatives = {
        "ours": partial(ours, case, params),
        "torch": partial(torch_divergence, case, params),
    }
    turns = take_turns(alternatives, rounds)
    np.testing.assert_allclose(turns.told["torch"], turns.told["ours"], rtol=1e-2)
    images = [rates(case.batch, turns.seconds[name]) for name in alternatives]
    return compared(f"{case.name}: torch", "images/s", *images, f"batch {case.batch}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", default="small,digits")
    parser.add_argument("--rounds", type=int, default=7)
    flags = parser.parse_args()
    rows: list[Row] = []
    for case in CASES:
        if case.net in flags.nets.split(","):
            rows.append(over_a_call(case, flags.rounds))
            if has_torch() and case.probes is not None:
                rows.append(against_torch(case, flags.rounds))
    command = f"python -m benchmarks.likelihood --nets={flags.nets}"
    write_rows("likelihood", command, flags.rounds, rows)


if __name__ == "__main__":
    main()
