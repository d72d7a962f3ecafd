"""A network that torchcfm trains on digits, converted: the same noises give the same samples.

    pip install -r requirements-bench.txt
    python -m benchmarks.converted

torchcfm trains the network of benchmarks/outside_row.py for --steps steps. Its checkpoint is
converted by flowmatch_jax.networks.convert, and both networks are solved from the same noises by
the same method, in float32: by torchdiffeq with torchcfm's code, and here. Prints the Fréchet
distance to the training images of both sets of samples, and writes them to --output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from ml_collections import FrozenConfigDict
from torchdiffeq import odeint

import flowmatch_jax
from benchmarks.outside_row import Training
from flowmatch_jax.config.command_line import load_config
from flowmatch_jax.data.pipeline import train_batches
from flowmatch_jax.evaluation.reference import make_reference
from flowmatch_jax.experiment import build
from flowmatch_jax.metrics.features.extractors import features_of
from flowmatch_jax.metrics.frechet import Moments, frechet_distance
from flowmatch_jax.networks.convert.__main__ import main as convert
from flowmatch_jax.pixels import centres, quantise
from flowmatch_jax.runtime.workdir import write_json
from flowmatch_jax.solvers import Solver, integrate

CONFIG = "configs/digits_ot.py"
SAMPLES, SOLVER_STEPS = 512, 10


def train(config: FrozenConfigDict, steps: int, file: Path) -> torch.nn.Module:
    """Train from the checkpoint on, if there is one, write it, and return the averaged network."""
    data = build(config).train_data
    training = Training(config, data.shape)
    if file.exists():
        training.restore(file)
    batches = train_batches(data, config.train.batch_size, config.seed, start=training.step)
    for _ in range(training.step, steps):
        x1 = np.array(centres(jnp.asarray(next(batches)["x"]), data.levels))
        training.update(torch.from_numpy(x1).permute(0, 3, 1, 2))
    training.save(file)
    return training.average.eval()


@torch.no_grad()
def torch_samples(network: torch.nn.Module, x0: np.ndarray) -> np.ndarray:
    """Solve by torchdiffeq's midpoint method from noises [N, H, W, C]."""
    start = torch.from_numpy(x0).permute(0, 3, 1, 2)
    times, step = torch.tensor([0.0, 1.0]), {"step_size": 1 / SOLVER_STEPS}
    end = odeint(network, start, times, method="midpoint", options=step)[-1]
    return end.permute(0, 2, 3, 1).numpy()


def our_samples(model: flowmatch_jax.model.Model, x0: np.ndarray) -> np.ndarray:
    """Solve by this package's midpoint method from noises [N, H, W, C]."""
    solver = Solver("midpoint", steps=SOLVER_STEPS)

    @jax.jit
    def solve(params: flowmatch_jax.arrays.Params, x0: jax.Array) -> jax.Array:
        return integrate(model.experiment.field(params), x0, 0.0, 1.0, solver).x

    return np.asarray(solve(model.params, x0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--workdir", type=Path, default=Path("runs/torchcfm_digits"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/converted.json"))
    given = parser.parse_args()
    given.workdir.mkdir(parents=True, exist_ok=True)
    file, run = given.workdir / "checkpoint.pt", given.workdir / "converted"
    config = load_config(CONFIG, [f"--config.train.steps={given.steps}"])
    network = train(config, given.steps, file)
    flags = ["--from=torchcfm", f"--config={CONFIG}", "--heads=4", f"--to={run}"]
    if not run.exists() and convert([str(file), *flags]):
        raise SystemExit(2)
    model = flowmatch_jax.load(run)
    x0 = np.random.RandomState(0).randn(SAMPLES, *model.shape).astype(np.float32)
    experiment = build(config)
    reference, net = make_reference(experiment), experiment.extractor
    samples = {"torchcfm": torch_samples(network, x0), "flowmatch_jax": our_samples(model, x0)}
    record = {
        "steps": given.steps,
        "samples": SAMPLES,
        "largest_difference": float(np.abs(samples["torchcfm"] - samples["flowmatch_jax"]).max()),
    }
    for name, x in samples.items():
        images = np.asarray(quantise(jnp.asarray(x), model.levels), np.uint8)
        moments = Moments.empty(net.dims).add(features_of(net, images)[0])
        record[name] = {"fd_pixels": float(frechet_distance(moments, reference.moments))}
        print(f"{name}: fd_pixels {record[name]['fd_pixels']:.6f}")
    distances = [record[name]["fd_pixels"] for name in samples]
    record["relative_difference"] = abs(distances[1] / distances[0] - 1)
    print(f"they differ by {record['relative_difference']:.1e} of it")
    write_json(given.output, record)


if __name__ == "__main__":
    main()
