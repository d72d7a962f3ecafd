"""What couplings do to a flow: straightness, NFE and the error of few calls.

    pip install torchcfm  # optional: its row is left out without it
    python -m benchmarks.straightness
    python -m benchmarks.straightness --data=two_moons_to_gaussians
    python -m benchmarks.straightness --workdirs runs/digits_ot runs/digits_minibatch_ot

In the plane all rows train the same program from the same start and on the same data in the same
order. They differ in x_0, which is drawn and paired on the host. torchcfm's row has the plan of its
`OTPlanSampler`. Each has, as mean and standard error over the seeds: the straightness of the
trajectories (docs/couplings.md), the NFE of dopri5 at 1e-5, and the mean squared error per
dimension of Euler's method to that solution from the same x_0. With workdirs it measures trained
runs, which may be of images.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.timing import write
from flowmatch_jax.arrays import Params
from flowmatch_jax.config.command_line import load_config
from flowmatch_jax.couplings import MinibatchOT
from flowmatch_jax.data.pairing import Pairing
from flowmatch_jax.data.pipeline import train_batches
from flowmatch_jax.evaluation.samples import make_sampler
from flowmatch_jax.experiment import Experiment, build
from flowmatch_jax.model import load
from flowmatch_jax.report.curves import make_straightness
from flowmatch_jax.runtime.mesh import put_batches
from flowmatch_jax.solvers import Solver
from flowmatch_jax.training.setup import Run, check_training
from flowmatch_jax.training.state import init_state

SAMPLES, IMAGES, EULER = 1000, 256, (1, 4, 8)
ACCURATE = Solver("dopri5", rtol=1e-5, atol=1e-5)


class OfTorchCFM:
    """Pairs of the exact plan that torchcfm computes."""

    batches = 1

    def __init__(self) -> None:
        from torchcfm.optimal_transport import OTPlanSampler

        self._plans = OTPlanSampler(method="exact")

    def pair(
        self, rng: np.random.Generator, x0: np.ndarray, x1: np.ndarray, label: np.ndarray | None
    ) -> np.ndarray:
        import torch

        plan = self._plans.get_map(torch.from_numpy(x0), torch.from_numpy(x1))
        return plan.argmax(axis=0)


def transports() -> dict[str, Any]:
    found = {"independent": None, "minibatch OT": MinibatchOT()}
    try:
        return found | {"minibatch OT, torchcfm's plan": OfTorchCFM()}
    except ImportError:
        return found


class Cells:
    """Trains and measures one coupling and seed after another, with shared programs."""

    def __init__(self, data: str, steps: int) -> None:
        fields = ["network.mlp.width=128", f"train.steps={steps}", "train.batch_size=256"]
        fields += [f"evaluate.samples={SAMPLES}", f"figures.seeds={SAMPLES}"]
        flags = [f"--config.{field}" for field in fields]
        self.experiment = build(load_config(f"configs/{data}_minibatch_ot.py", flags))
        self.run = Run.of(self.experiment)
        _, optimizer = check_training(self.experiment)
        self._init = jax.jit(partial(init_state, self.experiment.init_params, optimizer))
        self.measure = make_measure(self.experiment)

    def train(self, transport: Any, seed: int) -> Params:
        experiment, config = self.experiment, self.experiment.config
        source = experiment.source and experiment.source.train
        pairing = Pairing(transport, None, by_label=False, seed=seed, source=source)
        batches = train_batches(
            experiment.train_data, config.train.batch_size, seed, pairing=pairing
        )
        state = self._init(seed)
        for _ in range(config.train.steps):
            batch = put_batches([next(batches)], experiment.mesh)
            state, _ = self.run.train_step(state, batch, None)
        return state.ema


def make_measure(experiment: Experiment) -> Callable[[Params], dict[str, float]]:
    """Create a function of the parameters for the numbers of a row."""
    size = experiment.config.evaluate.samples
    straightness = make_straightness(experiment)
    solve = make_sampler(experiment, size, ACCURATE)
    eulers = {n: make_sampler(experiment, size, Solver("euler", steps=n)) for n in EULER}

    def measure(params: Params) -> dict[str, float]:
        accurate = solve(params)
        errors = {
            f"error of {n} Euler calls": float(np.mean((euler(params).x - accurate.x) ** 2))
            for n, euler in eulers.items()
        }
        cost = {"straightness": straightness(params), "NFE at 1e-5": float(accurate.nfe)}
        return cost | errors

    return measure


def rows(data: str, steps: int, seeds: int) -> Iterator[dict[str, Any]]:
    cells = Cells(data, steps)
    for name, transport in transports().items():
        measured = [cells.measure(cells.train(transport, seed)) for seed in range(seeds)]
        row: dict[str, Any] = {"coupling": name, "seeds": seeds}
        for what in measured[0]:
            values = [each[what] for each in measured]
            error = statistics.stdev(values) / seeds**0.5 if seeds > 1 else None
            row[what] = {"mean": statistics.fmean(values), "standard_error": error}
        print(name, {k: v["mean"] for k, v in row.items() if isinstance(v, dict)}, flush=True)
        yield row


def of_runs(workdirs: list[str]) -> Iterator[dict[str, Any]]:
    for workdir in workdirs:
        fields = {"evaluate__samples": IMAGES, "figures__seeds": IMAGES}
        model = load(workdir, **fields)
        row = {"run": Path(workdir).name} | make_measure(model.experiment)(model.params)
        print(row, flush=True)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="checkerboard")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workdirs", nargs="+")
    args = parser.parse_args()
    if args.workdirs:
        write("straightness_runs", {"rows": list(of_runs(args.workdirs))})
        return
    table = list(rows(args.data, args.steps, args.seeds))
    write(f"straightness_{args.data}", {"steps": args.steps, "rows": table})


if __name__ == "__main__":
    main()
