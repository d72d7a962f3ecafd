"""Speed of the parts of an evaluation: samples, features and the Fréchet distance.

python -m benchmarks.evaluate

Samples are drawn with the digits experiment and random parameters. Features are those of
EfficientNet-Lite0, whose speed does not depend on its weights. The distance is compared with
SciPy's matrix square root, which pytorch-fid uses.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np
import scipy.linalg

from benchmarks.nets import NETS
from benchmarks.timing import Row, compared, interleaved, rates, spread, write_rows
from configs import digits_ot
from flowmatch_jax.evaluation.samples import make_sampler
from flowmatch_jax.experiment import build
from flowmatch_jax.metrics.features.efficientnet import load_efficientnet_lite0
from flowmatch_jax.metrics.frechet import Moments, frechet_distance


def sampling(batch: int, rounds: int) -> Row:
    """Measure images per second of an evaluation's sampler."""
    experiment = build(digits_ot.get_config())
    params = jax.jit(NETS["digits"].init)(jax.random.key(0))
    sampler = make_sampler(experiment, batch)
    nfe = int(sampler(params).nfe)
    seconds = interleaved({"ours": lambda: sampler(params).x}, rounds)["ours"]
    note = f"batch {batch}, NFE {nfe}"
    return Row(
        "digits net, dopri5 1e-3: samples", "images/s", spread(rates(batch, seconds)), note=note
    )


def features(batch: int, rounds: int) -> list[Row]:
    """Measure images per second of the feature extractor, by the side of the images."""
    net = load_efficientnet_lite0()
    images = {
        s: np.random.RandomState(0).randint(0, 256, (batch, s, s, 3), np.uint8) for s in (32, 64)
    }
    seconds = interleaved({side: lambda x=x: net.apply(x) for side, x in images.items()}, rounds)
    note = f"batch {batch}, resized to {net.side} px"
    return [
        Row(f"{net.name} features of {side} px", "images/s", spread(rates(batch, each)), note=note)
        for side, each in seconds.items()
    ]


def distance(dims: int, rounds: int) -> Row:
    """Seconds of a Fréchet distance against those with `scipy.linalg.sqrtm`."""
    rng = np.random.RandomState(0)
    a, b = (Moments.empty(dims).add(rng.standard_normal((2 * dims, dims))) for _ in range(2))

    def by_matrix_root() -> float:
        root = scipy.linalg.sqrtm(a.cov @ b.cov).real
        return float(((a.mean - b.mean) ** 2).sum() + np.trace(a.cov + b.cov - 2 * root))

    np.testing.assert_allclose(frechet_distance(a, b), by_matrix_root(), rtol=1e-6)
    seconds = interleaved({"ours": lambda: frechet_distance(a, b), "scipy": by_matrix_root}, rounds)
    name = f"Fréchet distance of {dims} features: scipy.linalg.sqrtm"
    return compared(name, "1/s", rates(1, seconds["ours"]), rates(1, seconds["scipy"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dims", type=int, default=1280)
    parser.add_argument("--rounds", type=int, default=7)
    flags = parser.parse_args()
    rows = [
        sampling(flags.batch, flags.rounds),
        *features(flags.batch, flags.rounds),
        distance(flags.dims, flags.rounds),
    ]
    write_rows("evaluate", "python -m benchmarks.evaluate", flags.rounds, rows)


if __name__ == "__main__":
    main()
