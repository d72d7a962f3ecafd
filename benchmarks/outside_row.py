"""Flow matching with OT by torchcfm, with its network, loss and recipe on the same budget.

    pip install -r requirements-bench.txt
    python -m benchmarks.outside_row --config.data.data_dir=data

The data and their order, the batch size, number of steps, learning-rate schedule, weight averaging,
solver tolerances and number of samples are those of configs/fashion_mnist16_ot.py (or --config; any
field can be overridden), because torchcfm's own are meant for 400,000 steps. Network, loss,
clipping, dropout and pixel scaling are those of torchcfm's CIFAR-10 example. Its group
normalisation needs multiples of 32 channels, so the network is the closest in size that it allows.
Samples are scored as in this package. The record is written to --output, with a picture of the
first samples beside it. A killed run resumes from its last checkpoint and keeps existing samples.
"""

from __future__ import annotations

import argparse
import copy
import io
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from ml_collections import FrozenConfigDict
from torchcfm.conditional_flow_matching import TargetConditionalFlowMatcher
from torchcfm.models.unet.unet import UNetModelWrapper
from torchdiffeq import odeint

from benchmarks.timing import machine
from flowmatch_jax.config.command_line import load_config, split_overrides
from flowmatch_jax.data.dataset import Dataset
from flowmatch_jax.data.pipeline import train_batches
from flowmatch_jax.evaluation.pictures import save_images
from flowmatch_jax.evaluation.reference import make_reference
from flowmatch_jax.experiment import build
from flowmatch_jax.metrics.features.extractor import Extractor
from flowmatch_jax.metrics.features.extractors import features_of, score_name
from flowmatch_jax.metrics.frechet import Moments, frechet_distance
from flowmatch_jax.metrics.scores import FeatureSet
from flowmatch_jax.runtime.files import write_atomically
from flowmatch_jax.runtime.progress import progress_bar
from flowmatch_jax.runtime.workdir import write_json
from flowmatch_jax.training.optimizer import learning_rate_schedule

SIGMA_MIN = 1e-5
CLIP_NORM = 1.0
SAVE_EVERY = 250  # steps


def make_network(shape: tuple[int, int, int]) -> torch.nn.Module:
    """Create a network v(t [B] or [], x [B, C, H, W]) for images [H, W, C]."""
    height, width, channels = shape
    return UNetModelWrapper(
        dim=(channels, height, width),
        num_channels=32,
        num_res_blocks=1,
        channel_mult=(1, 1, 2),
        attention_resolutions=str(width // 4),
        num_heads=4,
        dropout=0.1,
    )


class Training:
    """The training state, which checkpoints save."""

    def __init__(self, config: FrozenConfigDict, shape: tuple[int, int, int]) -> None:
        torch.manual_seed(config.seed)
        fields = config.optimizer
        rate = learning_rate_schedule(
            fields.schedule, fields.learning_rate, config.train.steps, fields.warmup_steps
        )
        self.network = make_network(shape)
        self.average = copy.deepcopy(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: float(rate(n)))
        self.decay = fields.ema_decay
        self.step, self.seconds = 0, 0.0

    def update(self, x1: torch.Tensor) -> None:
        """Take one Adam step on the flow-matching loss, and update the average."""
        matcher = TargetConditionalFlowMatcher(sigma=SIGMA_MIN)
        t, x_t, u_t = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        loss = torch.mean((self.network(t, x_t) - u_t) ** 2)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.schedule.step()
        decay = min(self.decay, (1 + self.step) / (10 + self.step))  # as `state.ema_update`
        with torch.no_grad():
            parameters = zip(self.average.parameters(), self.network.parameters(), strict=True)
            for average, new in parameters:
                average.lerp_(new, 1 - decay)
        self.step += 1

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically."""
        parts = {name: getattr(self, name).state_dict() for name in self._parts}
        counts = {"step": self.step, "seconds": self.seconds}
        buffer = io.BytesIO()
        torch.save(parts | counts | {"random": torch.get_rng_state()}, buffer)
        write_atomically(path, buffer.getvalue())

    def restore(self, path: Path) -> None:
        """Restore a checkpoint."""
        saved = torch.load(path)
        for name in self._parts:
            getattr(self, name).load_state_dict(saved[name])
        self.step, self.seconds = saved["step"], saved["seconds"]
        torch.set_rng_state(saved["random"])

    _parts = ("network", "average", "optimizer", "schedule")


def train(config: FrozenConfigDict, source: Dataset, workdir: Path) -> Training:
    """Train to the last step, resuming from the workdir's checkpoint if there is one."""
    training, path = Training(config, source.shape), workdir / "checkpoint.pt"
    if path.exists():
        training.restore(path)
    size, steps = config.train.batch_size, config.train.steps
    batches = train_batches(source, size, config.seed, start=training.step)
    for _ in progress_bar(range(steps - training.step), desc="training"):
        begin = time.perf_counter()
        training.update(to_model_space(next(batches)["x"]))
        training.seconds += time.perf_counter() - begin
        if training.step % SAVE_EVERY == 0 or training.step == steps:
            training.save(path)
    return training


def to_model_space(images: np.ndarray) -> torch.Tensor:
    """Convert uint8 [B, H, W, C] to float32 [B, C, H, W], levels 0 and 255 to -1 and 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(x: torch.Tensor) -> np.ndarray:
    """Invert `to_model_space`, rounding to the nearest level."""
    return (x * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def sample(
    network: torch.nn.Module, config: FrozenConfigDict, shape: tuple[int, int, int]
) -> dict[str, np.ndarray]:
    """Draw {"images": uint8 [N, H, W, C], "nfe": per batch} by torchdiffeq's dopri5."""
    network.eval()
    calls = 0

    def field(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return network(t, x)

    generator = torch.Generator().manual_seed(config.evaluate.seed)
    size, count = config.evaluate.samples, config.evaluate.generated
    solver = dict(method="dopri5", rtol=config.solver.rtol, atol=config.solver.atol)
    height, width, channels = shape
    images, nfe = [], []
    for _ in progress_bar(range(-(-count // size)), desc="samples"):
        calls = 0
        x0 = torch.randn(size, channels, height, width, generator=generator)
        images.append(to_images(odeint(field, x0, torch.tensor([0.0, 1.0]), **solver)[-1]))
        nfe.append(calls)
    return {"images": np.concatenate(images)[:count], "nfe": np.array(nfe)}


def judge(
    net: Extractor, reference: FeatureSet, samples: dict[str, np.ndarray]
) -> dict[str, float]:
    """Compute the Fréchet distance to the reference, and the mean NFE over batches."""
    moments, images = Moments.empty(net.dims), samples["images"]
    for start in range(0, len(images), 512):
        moments = moments.add(features_of(net, images[start : start + 512])[0])
    distance = float(frechet_distance(moments, reference.moments))
    return {score_name("fd", net.name): distance, "sample_nfe": float(samples["nfe"].mean())}


def results_of(
    training: Training, config: FrozenConfigDict, workdir: Path
) -> dict[str, dict[str, Any]]:
    """Return {"ema", "raw": result of `judge`}; samples are stored in the workdir by kind."""
    experiment, results = build(config), {}
    reference = make_reference(experiment)
    for kind, network in {"ema": training.average, "raw": training.network}.items():
        path = workdir / f"samples_{training.step}_{kind}.npz"
        if not path.exists():
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **sample(network, config, experiment.train_data.shape))
            write_atomically(path, buffer.getvalue())
        with np.load(path) as samples:
            results[kind] = judge(experiment.extractor, reference, dict(samples))
    return results


def main() -> None:
    overrides, others = split_overrides(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/fashion_mnist16_ot.py")
    parser.add_argument("--workdir", type=Path, default=Path("runs/outside_row"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/outside_row.json"))
    flags = parser.parse_args(others)
    config = load_config(flags.config, overrides)
    flags.workdir.mkdir(parents=True, exist_ok=True)
    training = train(config, build(config).train_data, flags.workdir)
    images = training.step * config.train.batch_size
    record = {
        "machine": machine(),
        "packages": {name: version(name) for name in ("torch", "torchcfm", "torchdiffeq")},
        "data": {"name": config.data.name, "size": config.data.size},
        "parameters": sum(p.numel() for p in training.network.parameters()),
        "steps": training.step,
        "batch_size": config.train.batch_size,
        "seconds": training.seconds,
        "images_per_second": images / training.seconds,
        "solver": {"rtol": config.solver.rtol, "atol": config.solver.atol},
        "samples": {
            "batch_size": config.evaluate.samples,
            "generated": config.evaluate.generated,
        },
        "results": results_of(training, config, flags.workdir),
    }
    write_json(flags.output, record)
    with np.load(flags.workdir / f"samples_{training.step}_ema.npz") as samples:
        x = samples["images"][: config.evaluate.samples] / 127.5 - 1
    save_images(flags.output.with_suffix(".png"), x, levels=256)
    for kind, values in record["results"].items():
        print(f"{kind}: {values}")
    print(f"{1000 * training.seconds / training.step:.0f} ms per step on {jax.default_backend()}")


if __name__ == "__main__":
    main()
