"""Response of distances to noise, blur and dropped classes, with the test split as the floor.

    python -m benchmarks.distance_checks --data_dir=data

It needs the prepared Fashion-MNIST. Each row compares 10,000 images derived from the test split
with the moments of the 60,000 training images and, for kernel distance, precision and recall, with
10,000 of them. Features are those of EfficientNet-Lite0 and pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.timing import write
from flowmatch_jax.data.dataset import Dataset
from flowmatch_jax.data.sets import Options, open_dataset
from flowmatch_jax.metrics.features.extractor import Extractor
from flowmatch_jax.metrics.features.extractors import features_of, load_extractor
from flowmatch_jax.metrics.frechet import Moments, frechet_distance
from flowmatch_jax.metrics.kid import kernel_distance
from flowmatch_jax.metrics.precision_recall import precision_recall

COUNT, BATCH = 10_000, 500


def noise(std: float) -> Callable[[np.ndarray], np.ndarray]:
    """Create a function that adds Gaussian noise with a standard deviation of ``std`` levels."""
    rng = np.random.RandomState(0)
    return lambda x: np.clip(np.rint(x + std * rng.randn(*x.shape)), 0, 255).astype(np.uint8)


def blur(std: float) -> Callable[[np.ndarray], np.ndarray]:
    """Create a function that applies a Gaussian blur of ``std`` pixels."""
    return lambda x: np.rint(gaussian_filter(x.astype(float), (0, std, std, 0))).astype(np.uint8)


def dropped(source: Dataset, classes: int) -> np.ndarray:
    """Return COUNT images without the first classes, filled up with images of the others."""
    rest = np.flatnonzero(source.label >= classes)
    return source.x[np.resize(rest, COUNT)]


def features(net: Extractor, images: np.ndarray) -> np.ndarray:
    """Compute features [N, D] in batches."""
    parts = [features_of(net, images[i : i + BATCH])[0] for i in range(0, len(images), BATCH)]
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_dir", required=True)
    data_dir = parser.parse_args().data_dir
    train, test = (
        open_dataset(Options("fashion_mnist", data_dir=data_dir), s) for s in ("train", "test")
    )
    x = np.asarray(test.x)
    rows = {"test split": x}
    rows |= {f"noise of {std} levels": noise(std)(x) for std in (2, 8, 32)}
    rows |= {f"blur of {std} pixels": blur(std)(x) for std in (0.3, 0.6, 1.2)}
    rows |= {f"{n} of 10 classes dropped": dropped(test, n) for n in (1, 3, 5)}

    record = {name: {} for name in rows}
    for extractor in ("efficientnet_lite0", "pixels"):
        net = load_extractor(extractor, train.shape, 256)
        of_train = features(net, np.asarray(train.x))
        reference = Moments.empty(net.dims).add(of_train)
        some = of_train[np.random.RandomState(0).permutation(len(of_train))[:COUNT]]
        for name, images in rows.items():
            found = features(net, images)
            record[name][f"fd_{extractor}"] = frechet_distance(
                Moments.empty(net.dims).add(found), reference
            )
            if extractor != "pixels":
                distance = kernel_distance(found, some)
                near = precision_recall(found, some)
                record[name] |= {
                    f"kd_{extractor}": distance.mean,
                    "precision": near.precision,
                    "recall": near.recall,
                }
            print(name, record[name], flush=True)
    write("distance_checks", {"images": COUNT, "rows": record})


if __name__ == "__main__":
    main()
