"""Comparison of maximum likelihood through the solve with flow matching, on the checkerboard.

The same network is trained by both methods for the same wall time, alternating between them, and
each is scored on held-out points.

python -m benchmarks.cnf_cost --seconds=300
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import jax
from ml_collections import FrozenConfigDict

from benchmarks.timing import write
from configs import checkerboard_ot
from flowmatch_jax.config.experiments import experiment_config
from flowmatch_jax.data.pipeline import train_batches
from flowmatch_jax.evaluation.likelihoods import make_scorer, score_split
from flowmatch_jax.experiment import build
from flowmatch_jax.runtime.mesh import put_batches
from flowmatch_jax.training.optimizer import adam
from flowmatch_jax.training.state import init_state
from flowmatch_jax.training.step import make_gradient, make_train_step


class Trainer:
    """The training of one method; ``seconds`` is the time spent in its steps."""

    def __init__(self, config: Any) -> None:
        config.evaluate.images = 2000
        config = FrozenConfigDict(config)
        self.experiment, self.config = build(config), config
        optimizer = adam(config.optimizer.learning_rate)
        init = lambda: init_state(self.experiment.init_params, optimizer, config.seed)  # noqa: E731
        self.state = jax.jit(init)()
        self.batches = train_batches(self.experiment.train_data, config.train.batch_size, 0)
        objective, apply = self.experiment.objective, self.experiment.train_apply
        self.train_step = make_train_step(
            self.state,
            self.experiment.mesh,
            make_gradient(objective, apply, levels=None),
            optimizer,
            config.optimizer.ema_decay,
        )
        self.step()  # compiles
        self.times: list[float] = []
        self.nfe: list[float] = []

    @property
    def seconds(self) -> float:
        return sum(self.times)

    def step(self) -> tuple[float, dict[str, jax.Array]]:
        batch = put_batches([next(self.batches)], self.experiment.mesh)
        begin = time.perf_counter()
        self.state, metrics = jax.block_until_ready(self.train_step(self.state, batch))
        return time.perf_counter() - begin, metrics

    def train_until(self, seconds: float) -> None:
        while self.seconds < seconds:
            elapsed, metrics = self.step()
            self.times.append(elapsed)
            self.nfe.append(float(metrics["nfe"][0]) if "nfe" in metrics else 1.0)

    def result(self) -> dict[str, float]:
        scores = score_split(self.experiment, make_scorer(self.experiment), self.state.ema)
        return {
            "batch_size": self.config.train.batch_size,
            "milliseconds_a_step": 1000 * median(self.times),
            "points_per_second": self.config.train.batch_size * len(self.times) / self.seconds,
            "field_calls_a_step": sum(self.nfe) / len(self.nfe),
            "steps": len(self.times),
            "seconds": self.seconds,
            "nll": -scores["log_likelihood"],
            "nll_standard_error": scores["log_likelihood_standard_error"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="training time per method")
    seconds = parser.parse_args().seconds
    trainers = {
        "flow_matching": Trainer(checkerboard_ot.get_config()),
        "maximum_likelihood": Trainer(experiment_config("configs/checkerboard_cnf.py")),
    }
    turns = 30
    for turn in range(1, turns + 1):
        for trainer in trainers.values():
            trainer.train_until(seconds * turn / turns)
    results = {name: trainer.result() for name, trainer in trainers.items()}
    entropy = trainers["flow_matching"].experiment.test_data.entropy
    cost = [results[name]["points_per_second"] for name in ("flow_matching", "maximum_likelihood")]
    print(f"cost of a training point, maximum likelihood / flow matching: {cost[0] / cost[1]:.0f}")
    for name, result in results.items():
        print(
            f"{name}: {result['milliseconds_a_step']:.0f} ms per step of {result['batch_size']}, "
            f"{result['steps']} steps in {result['seconds']:.0f} s, NLL {result['nll']:.3f} +- "
            f"{result['nll_standard_error']:.3f} nats (entropy {entropy:.3f})"
        )
    write("cnf_cost", {"point_cost_ratio": cost[0] / cost[1], "entropy": entropy, **results})


if __name__ == "__main__":
    main()
