"""The training steps that are compiled for their cost, and the compiler's reports."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from configs import cifar10_ot, imagenet64_ot, imagenet128_ot
from flowmatch_jax import objectives, paths
from flowmatch_jax.arrays import Apply, Params
from flowmatch_jax.config.rules import map_options
from flowmatch_jax.map_objectives import MAP_OBJECTIVES
from flowmatch_jax.networks import pure_apply
from flowmatch_jax.networks.unet import UNet
from flowmatch_jax.objectives import Objective
from flowmatch_jax.parts.network import COMPUTING_DTYPES
from flowmatch_jax.runtime.mesh import BATCH_AXES, with_shardings
from flowmatch_jax.training.cost.estimate import (
    bytes_a_device,
    step_memory,
    traced_flops,
)
from flowmatch_jax.training.optimizer import adam
from flowmatch_jax.training.state import TrainState, init_state
from flowmatch_jax.training.step import Gradient, make_gradient, make_train_step

RESULTS = Path(__file__).parent / "results" / "scaling.json"
OBJECTIVE = objectives.matching("flow_matching", paths.optimal_transport())


@dataclass(frozen=True)
class Net:
    """A network with its training recipe.

    Attributes:
        name: name in tables.
        unet: the network.
        side: side of its images.
        batch_size: batch size over all devices.
        dtype: computing dtype.
        remat: whether its config rematerialises activations.
        steps: total number of training steps.
        compiled: images per device in the compiled programs.
        objective: the objective; a flow map's takes a network with two times.
    """

    name: str
    unet: UNet
    side: int
    batch_size: int
    dtype: str
    remat: bool
    steps: int
    compiled: int
    objective: Objective = OBJECTIVE

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.side, self.side, 3)

    def init(self, key: jax.Array) -> Params:
        x = jnp.zeros((1, *self.shape))
        return self.unet.init(key, jnp.zeros(1), x, condition=self.condition(x))["params"]

    def condition(self, x: jax.Array) -> jax.Array | None:
        """Return a condition of x's size if the network needs one; its values do not matter."""
        return x if self.unet.condition_channels else None

    def apply(self, remat: bool) -> Apply:
        apply = pure_apply(self.unet.clone(remat=remat, dtype=COMPUTING_DTYPES[self.dtype]))

        def conditioned(params: Params, t: jax.Array, x: jax.Array, **inputs: Any) -> jax.Array:
            return apply(params, t, x, **inputs | {"condition": self.condition(x)})

        return conditioned

    def gradient(self, remat: bool) -> Gradient:
        return make_gradient(self.objective, self.apply(remat), levels=256)

    @cached_property
    def state(self) -> TrainState:
        """The shapes of the training state."""
        return jax.eval_shape(lambda: init_state(self.init, adam(1e-4), 0))

    @cached_property
    def parameters(self) -> int:
        return sum(p.size for p in jax.tree.leaves(self.state.params))


def of_config(name: str, config: ConfigDict, side: int, compiled: int = 0) -> Net:
    """Return the network of a config, with flow matching or the objective of a flow map."""
    fields, objective = config.network.unet, OBJECTIVE
    if config.objective.name in MAP_OBJECTIVES:
        options = map_options(config.flow_map)
        objective = MAP_OBJECTIVES[config.objective.name](paths.optimal_transport(), options)
    return Net(
        name,
        UNet(out_channels=3, two_times=config.network.two_times, **fields),
        side,
        config.train.batch_size,
        config.network.dtype,
        fields.remat,
        config.train.steps,
        compiled,
        objective,
    )


UPSAMPLER = UNet(
    out_channels=3,
    channels=192,
    multipliers=(1, 1, 2, 2, 4, 4),
    depth=2,
    attention_sides=(32, 16, 8),
    head_channels=64,
    residual_resampling=True,
    condition_channels=3,
)
NETS = (
    of_config("CIFAR-10", cifar10_ot.get_config(), 32, 64),
    of_config("ImageNet-64", imagenet64_ot.get_config(), 64, 128),
    of_config("ImageNet-128", imagenet128_ot.get_config(), 128, 48),
    Net("upsampler 64 -> 256", UPSAMPLER, 256, 256, "bfloat16", True, 1_000_000, 16),
)


# The compiled programs


@dataclass(frozen=True)
class Program:
    """A training step to compile.

    Attributes:
        net: the network.
        remat: whether activations are rematerialised.
        batch: images per chip.
        fsdp: number of devices over which the state is sharded.
        topology: the TPU topology.
        effort: optimisation effort of the compiler, -1 to 1; the default 0 takes four times as long
            as -1.
    """

    net: Net
    remat: bool
    batch: int
    fsdp: int = 1
    topology: str = "v5p:2x2x1"
    effort: float = -1.0


def programs() -> Iterator[tuple[str, Program]]:
    """Iterate over (name, program): each network without and with remat, and further checks."""
    for net in NETS:
        yield "plain", Program(net, False, net.compiled)
        yield "remat", Program(net, True, net.compiled)
    cifar10, imagenet64, imagenet128, upsampler = NETS
    yield "plain, fewer images", Program(cifar10, False, 16)
    yield "plain, fewer images", Program(imagenet64, False, 32)
    yield "plain, fewer images", Program(imagenet128, False, 16)
    yield "remat, fewer images", Program(imagenet128, True, 12)
    yield "plain, fewer images", Program(upsampler, False, 4)
    yield "remat, fewer images", Program(upsampler, True, 8)
    yield "plain, default effort", Program(cifar10, False, 64, effort=0.0)
    yield "remat, fsdp 4 on v5e", Program(imagenet64, True, 32, fsdp=4, topology="v5e:2x2")
    yield "remat, fsdp 4", Program(imagenet128, True, 48, fsdp=4)


def compile_step(program: Program) -> dict[str, Any]:
    """Compile the training step for TPUs, and return the compiler's report per device."""
    net, fsdp = program.net, program.fsdp
    devices = np.array(topologies.get_topology_desc(program.topology, "tpu").devices)
    mesh = Mesh(devices.reshape(-1, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)
    layout = with_shardings(net.state, mesh)
    gradient = net.gradient(program.remat)
    step = make_train_step(layout, mesh, gradient, adam(1e-4), ema_decay=0.9999)
    images = jax.ShapeDtypeStruct(
        (1, mesh.size * program.batch, *net.shape),
        np.uint8,
        sharding=NamedSharding(mesh, PartitionSpec(None, BATCH_AXES)),
    )
    begin = time.perf_counter()
    jax.config.update("jax_exec_time_optimization_effort", program.effort)
    compiled = step.lower(layout, {"x": images}).compile()
    analysis = compiled.cost_analysis()
    settings = {name: value for name, value in vars(program).items() if name != "net"}
    return settings | {
        "devices": mesh.size,
        "state": bytes_a_device(layout),
        "activations": step_memory(layout, compiled).activations,
        "flops": analysis["flops"],
        "bytes_accessed": analysis["bytes accessed"],
        "optimal_seconds": analysis["optimal_seconds"],
        "compile_seconds": time.perf_counter() - begin,
        "jax": jax.__version__,
        "libtpu": version("libtpu"),
    }


def count(net: Net) -> dict[str, Any]:
    """Count operations per image, and bytes that reverse mode stores; nothing is compiled."""
    batch = {"x": jax.ShapeDtypeStruct((net.batch_size, *net.shape), np.uint8)}
    flops = traced_flops(net.gradient(remat=False), net.state.params, batch, net.state.key)
    return {
        "parameters": net.parameters,
        "dtype": net.dtype,
        "batch_size": net.batch_size,
        "flops_an_image": flops / net.batch_size,
        "residuals_an_image": {
            str(remat): residual_bytes(net, remat, 2) - residual_bytes(net, remat, 1)
            for remat in (False, True)
        },
    }


def residual_bytes(net: Net, remat: bool, batch: int) -> int:
    """Count the bytes that jax.vjp stores for the backward pass, before compiler optimisations."""

    def residuals(params: Params, x: jax.Array, key: jax.Array) -> Callable:
        return jax.vjp(lambda params: OBJECTIVE(net.apply(remat), params, {"x": x}, key)[0], params)

    x = jax.ShapeDtypeStruct((batch, *net.shape), np.float32)
    kept = jax.eval_shape(residuals, net.state.params, x, net.state.key)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def measure(record: dict[str, Any]) -> None:
    """Complete the record; it is written after each program."""
    for net in NETS:
        if net.name not in record["nets"]:
            record["nets"][net.name] = count(net) | {"programs": {}}
    for name, program in programs():
        known = record["nets"][program.net.name]["programs"]
        if name not in known:
            print(f"compiling {program.net.name}: {name}", flush=True)
            known[name] = compile_step(program)
            RESULTS.write_text(json.dumps(record, indent=2) + "\n")
