"""The cost of training flow maps on GPUs, from counted operations: a table of docs/scaling.md.

    python -m benchmarks.scaling_maps

The operations of a step are those that XLA counts in the traced gradient; nothing is compiled or
executed. The time is theirs at 40% of the datasheet's peak, as in `benchmarks.scaling`.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from benchmarks.scaling import UTILISATION, table
from benchmarks.scaling_programs import Net, of_config
from configs import cifar10_mean_flow, imagenet64_mean_flow
from flowmatch_jax.training.cost import hardware
from flowmatch_jax.training.cost.estimate import time_left, traced_flops

DEVICES = 8
RECIPES = {
    "CIFAR-10": (cifar10_mean_flow.get_config, 32),
    "ImageNet-64": (imagenet64_mean_flow.get_config, 64),
}


def networks() -> Iterator[Net]:
    """Iterate over each recipe by flow matching and by the objectives of flow maps."""
    for name, (get_config, side) in RECIPES.items():
        yield of_config(f"{name}, flow matching", _flow_matching(get_config()), side)
        yield of_config(f"{name}, MeanFlow", get_config(), side)
        config = get_config()
        config.flow_map.tangent = "predicted"
        yield of_config(f"{name}, improved MeanFlow", config, side)
        config = get_config()
        config.objective.name = "alpha_flow"
        yield of_config(f"{name}, alpha-Flow", config, side)


def _flow_matching(config: ConfigDict) -> ConfigDict:
    config.objective.name = "flow_matching"
    config.network.two_times = False
    return config


def flops(net: Net) -> float:
    """Count the operations of a step."""
    x = jax.ShapeDtypeStruct((net.batch_size, *net.shape), "uint8")
    batch = {"x": x, "step": jax.ShapeDtypeStruct((), "int32")}
    return traced_flops(net.gradient(remat=False), net.state.params, batch, net.state.key)


def rows() -> Iterator[Iterator[str]]:
    plain = 0.0
    for net in networks():
        count = flops(net)
        plain = count if "flow matching" in net.name else plain
        # H200 has the peak of H100.
        rate = DEVICES * UTILISATION * hardware.H100.peak_flops[net.dtype] / count
        an_image = f"{count / net.batch_size / 1e12:.3f}"
        sizes = (f"{net.parameters / 1e6:.1f}M", net.dtype, f"{net.steps} x {net.batch_size}")
        yield iter((net.name, *sizes, an_image, f"{count / plain:.2f}", time_left(net.steps, rate)))


def main() -> None:
    header = ("", "parameters", "dtype", "steps x batch", "TFLOP an image", "ratio")
    print(table((*header, f"{DEVICES} H100 or H200"), rows()))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
