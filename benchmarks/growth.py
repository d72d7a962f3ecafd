"""Growth of the cost of a training step with batch size, resolution and channels.

    python -m benchmarks.growth

The network is a U-Net with two levels. The ratio is seconds per FLOP relative to the sweep's last
entry; it is 1 throughout if the cost grows linearly with the work.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from benchmarks.nets import Net
from benchmarks.timing import Row, interleaved, rates, ratios, spread, write_rows
from benchmarks.train_step import model_flops, ours

BATCH, SIDE, CHANNELS = 16, 32, 32
SWEEPS = {"batch": (1, 4, 16, 64), "side": (16, 32, 64), "channels": (16, 32, 64, 128)}


def small_net(side: int = SIDE, channels: int = CHANNELS) -> Net:
    """Create a small network with attention only in the middle block, at half the side."""
    unet = {"channels": channels, "multipliers": (1, 2), "depth": 1, "attention_sides": ()}
    return Net("small net", (side, side, 3), unet, {}, 0, BATCH, BATCH)


def sweep(name: str, values: Iterable[int], rounds: int) -> list[Row]:
    """Measure the rows of one quantity with the others fixed."""
    cases = {}
    for value in values:
        sizes = {"batch": BATCH, "side": SIDE, "channels": CHANNELS, name: value}
        batch = sizes.pop("batch")
        cases[value] = (small_net(**sizes), batch)
    calls = {v: ours(net, "float32", batch, 1) for v, (net, batch) in cases.items()}
    seconds = interleaved(calls, rounds)
    flops = {v: model_flops(net, "float32", batch) for v, (net, batch) in cases.items()}
    if None in flops.values():
        raise RuntimeError("operations are counted by JAX's CPU backend: JAX_PLATFORMS lacks it")
    each = {v: [s / flops[v] for s in times] for v, times in seconds.items()}
    last = list(cases)[-1]
    return [
        Row(
            f"{name} {value}",
            "images/s",
            spread(rates(batch, seconds[value])),
            ratios(each[value], each[last]),
            note=f"{flops[value] / batch / 1e9:.3g} GFLOP an image, "
            f"{1e-9 / spread(each[value])['median']:.3g} GFLOP/s",
        )
        for value, (_, batch) in cases.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    rows = [row for name, values in SWEEPS.items() for row in sweep(name, values, rounds)]
    write_rows("growth", "python -m benchmarks.growth", rounds, rows)


if __name__ == "__main__":
    main()
