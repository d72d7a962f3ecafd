"""Images a second that EfficientNet-Lite0 turns into features, at the side it is used at.

python -m benchmarks.extractor_speed
"""

from __future__ import annotations

import statistics

import numpy as np

from benchmarks.timing import interleaved, write
from flowmatch_jax.metrics.efficientnet import load_efficientnet_lite0

BATCH = 256


def main() -> None:
    rng = np.random.RandomState(0)
    net = load_efficientnet_lite0()
    images = {side: rng.randint(0, 256, (BATCH, side, side, 3), np.uint8) for side in (32, 64, 96)}
    calls = {f"{side} px": lambda x=x: net.apply(x) for side, x in images.items()}
    seconds = interleaved(calls)
    rates = {name: round(BATCH / statistics.median(times)) for name, times in seconds.items()}
    write(
        "extractor_speed", {"net": net.name, "side": net.side, "images_per_second_of_images": rates}
    )


if __name__ == "__main__":
    main()
