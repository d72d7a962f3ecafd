"""What training costs on accelerators, before there is one: the tables of docs/scaling.md.

    python -m benchmarks.scaling

Training steps are compiled for four chips of TPU v5p, and the compiler says what memory they
take, how many operations they make and bytes they move, and how long that should take. Nothing is
run. All else follows from these, the shapes of the state and the datasheets of
flowmatch_jax.training.cost.hardware.

What benchmarks/results/scaling.json has is not compiled again. What it lacks takes minutes a
program, and the compiler, which needs no TPU: pip install "jax[tpu]".
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from configs import cifar10_ot, imagenet64_ot, imagenet128_ot
from flowmatch_jax import objectives, paths
from flowmatch_jax.arrays import Apply, Params
from flowmatch_jax.experiment import DTYPES
from flowmatch_jax.networks import pure_apply
from flowmatch_jax.networks.unet import UNet
from flowmatch_jax.runtime.mesh import BATCH_AXES, with_shardings
from flowmatch_jax.training.cost import hardware
from flowmatch_jax.training.cost.estimate import (
    bytes_a_device,
    step_memory,
    time_left,
    traced_flops,
)
from flowmatch_jax.training.cost.hardware import Hardware
from flowmatch_jax.training.optimizer import adam
from flowmatch_jax.training.state import TrainState, init_state
from flowmatch_jax.training.step import Gradient, make_gradient, make_train_step

RESULTS = Path(__file__).parent / "results" / "scaling.json"
GIB = 2**30
DEVICES = tuple(2**i for i in range(9))
KINDS = (hardware.TPU_V5E, hardware.TPU_V5P, hardware.H100, hardware.H200)
FSDP = 8  # at most: a node of GPUs
FEW = 8  # images on a device; no program of fewer bears the estimates out
USABLE = 0.9  # of a device's memory
UTILISATION = 0.4  # of the peak, assumed where no compiler was asked
OBJECTIVE = objectives.flow_matching(paths.optimal_transport())


@dataclass(frozen=True)
class Net:
    """A network as it is trained.

    Attributes:
        side: of its images.
        batch_size: over all devices.
        dtype: that it computes in.
        remat: whether its config rematerialises.
        steps: of the whole training.
        compiled: images on each device in the programs that are compiled.
    """

    name: str
    unet: UNet
    side: int
    batch_size: int
    dtype: str
    remat: bool
    steps: int
    compiled: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.side, self.side, 3)

    def init(self, key: jax.Array) -> Params:
        x = jnp.zeros((1, *self.shape))
        return self.unet.init(key, jnp.zeros(1), x, condition=self.condition(x))["params"]

    def condition(self, x: jax.Array) -> jax.Array | None:
        """An image of x's size where the network takes one; its values do not matter here."""
        return x if self.unet.condition_channels else None

    def apply(self, remat: bool) -> Apply:
        apply = pure_apply(self.unet.clone(remat=remat, dtype=DTYPES[self.dtype]))

        def conditioned(params: Params, t: jax.Array, x: jax.Array, **inputs: Any) -> jax.Array:
            return apply(params, t, x, **inputs | {"condition": self.condition(x)})

        return conditioned

    def gradient(self, remat: bool) -> Gradient:
        return make_gradient(OBJECTIVE, self.apply(remat), levels=256)

    @cached_property
    def state(self) -> TrainState:
        """Its shapes."""
        return jax.eval_shape(lambda: init_state(self.init, adam(1e-4), 0))

    @cached_property
    def parameters(self) -> int:
        return sum(p.size for p in jax.tree.leaves(self.state.params))


def _of_config(name: str, config: ConfigDict, side: int, compiled: int) -> Net:
    fields = config.network.unet
    return Net(
        name,
        UNet(out_channels=3, **fields),
        side,
        config.train.batch_size,
        config.network.dtype,
        fields.remat,
        config.train.steps,
        compiled,
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
    _of_config("CIFAR-10", cifar10_ot.get_config(), 32, 64),
    _of_config("ImageNet-64", imagenet64_ot.get_config(), 64, 128),
    _of_config("ImageNet-128", imagenet128_ot.get_config(), 128, 48),
    Net("upsampler 64 -> 256", UPSAMPLER, 256, 256, "bfloat16", True, 1_000_000, 16),
)


# ---- What is asked of the compilers


@dataclass(frozen=True)
class Program:
    """A training step to compile.

    Attributes:
        batch: images on each of the chips.
        fsdp: devices over which the state is split.
        effort: of the compiler, -1 to 1: at 0, its default, it takes four times as long.
    """

    net: Net
    remat: bool
    batch: int
    fsdp: int = 1
    topology: str = "v5p:2x2x1"
    effort: float = -1.0


def programs() -> Iterator[tuple[str, Program]]:
    """By name: each network without and with rematerialisation, and what checks the estimates."""
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
    """The training step on TPUs, by their compiler; figures of one device."""
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
    """What needs no compiling: operations of an image, and bytes that reverse mode asks to keep."""
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
    """Bytes of what jax.vjp keeps for the backward pass, if the compiler left all as it is."""

    def residuals(params: Params, x: jax.Array, key: jax.Array) -> Callable:
        return jax.vjp(lambda params: OBJECTIVE(net.apply(remat), params, {"x": x}, key)[0], params)

    x = jax.ShapeDtypeStruct((batch, *net.shape), np.float32)
    kept = jax.eval_shape(residuals, net.state.params, x, net.state.key)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def measure(record: dict[str, Any]) -> None:
    """Complete the record, written after each program."""
    for net in NETS:
        if net.name not in record["nets"]:
            record["nets"][net.name] = count(net) | {"programs": {}}
    for name, program in programs():
        known = record["nets"][program.net.name]["programs"]
        if name not in known:
            print(f"compiling {program.net.name}: {name}", flush=True)
            known[name] = compile_step(program)
            RESULTS.write_text(json.dumps(record, indent=2) + "\n")


# ---- What follows from it


@dataclass(frozen=True)
class Plan:
    """A way of training a network on n devices of a kind.

    Attributes:
        known: the network's record.
    """

    net: Net
    known: dict[str, Any]
    devices: int
    fsdp: int
    remat: bool

    @property
    def program(self) -> dict[str, Any]:
        return self.known["programs"]["remat" if self.remat else "plain"]

    @property
    def images(self) -> float:
        """On a device."""
        return self.net.batch_size / self.devices

    def an_image(self, name: str) -> float:
        """A figure of the compiled program for each of its images."""
        return self.program[name] / self.program["batch"]

    @property
    def memory(self) -> float:
        """Bytes on a device: the state by its shardings, and activations."""
        shape = (self.devices // self.fsdp, self.fsdp)
        mesh = AbstractMesh(shape, BATCH_AXES, axis_types=(AxisType.Auto,) * 2)
        return bytes_a_device(with_shardings(self.net.state, mesh)) + self.activations(self.images)

    def activations(self, images: float) -> float:
        """Bytes besides the state: once the gradients, whole, and the rest by the image."""
        gradients = 4 * self.net.parameters
        return (
            gradients + images * (self.program["activations"] - gradients) / self.program["batch"]
        )

    def fits(self, device: Hardware) -> bool:
        return self.memory <= USABLE * device.memory_bytes

    def seconds(self, device: Hardware) -> float:
        """Of a step without its communication: the longer of computing and moving bytes."""
        peak = device.peak_flops[self.net.dtype]
        computing = self.an_image("flops") / (UTILISATION * peak)
        moving = self.an_image("bytes_accessed") / device.memory_bandwidth
        return self.images * max(computing, moving)


def all_reduce_seconds(device: Hardware, size: float, devices: int) -> float:
    """A sum of `size` bytes over devices by rings: within the links' reach, then of parts beyond.

    A ring of n sends 2 (n - 1) / n of them from each device.
    """
    near = min(devices, device.linked)
    far = devices // near
    seconds = 2 * (near - 1) / near * size / device.link_bandwidth
    if far == 1:
        return seconds
    return seconds + 2 * (far - 1) / far * size / near / device.network_bandwidth


def plan(record: dict[str, Any], net: Net, devices: int, fsdp: int, remat: bool) -> Plan:
    return Plan(net, record["nets"][net.name], devices, min(fsdp, devices), remat)


def smallest(record: dict[str, Any], net: Net, fsdp: int, remat: bool, device: Hardware) -> str:
    """How many devices, doubled until it fits; a dash where it must not be estimated."""
    for devices in DEVICES:
        way = plan(record, net, devices, fsdp, remat)
        if way.images >= FEW and way.fits(device):
            return str(devices)
    return "-"


# ---- Tables


def table(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * (lines[0].count("|") - 1), *lines[1:]])


def network_table(record: dict[str, Any]) -> str:
    def row(net: Net) -> Iterator[Any]:
        known = record["nets"][net.name]
        flops = known["flops_an_image"]
        yield from (net.name, f"{net.parameters / 1e6:.1f}M", net.dtype, net.batch_size)
        yield from (f"{flops / 1e12:.3f}", f"{flops * net.batch_size / 1e15:.2f}")
        for remat in (False, True):
            way = plan(record, net, 1, 1, remat)
            yield f"{(way.activations(1) - way.activations(0)) / 2**20:.0f}"
        yield f"{known['residuals_an_image']['False'] / 2**20:.0f}"

    sizes = ("activations an image, MiB", "with remat", "kept by jax.vjp")
    header = ("", "parameters", "dtype", "batch", "TFLOP an image", "PFLOP a step", *sizes)
    return table(header, map(row, NETS))


def program_table(record: dict[str, Any]) -> str:
    def row(net: Net, name: str, program: dict[str, Any]) -> Iterator[Any]:
        way = plan(record, net, program["devices"], program["fsdp"], program["remat"])
        estimated = way.activations(program["batch"])
        sizes = (program["state"], program["activations"], estimated)
        yield from (f"{net.name}: {name}", program["batch"])
        yield from (f"{size / GIB:.1f}" for size in sizes)
        yield from (f"{program['flops'] / 1e12:.1f}", f"{program['bytes_accessed'] / 1e9:.0f}")
        yield from (f"{1000 * program['optimal_seconds']:.0f}", f"{program['compile_seconds']:.0f}")

    sizes = ("state, GiB", "activations, GiB", "by the image, GiB")
    work = ("TFLOP", "GB moved", "step, ms", "compiled in, s")
    rows = (
        row(program.net, name, record["nets"][program.net.name]["programs"][name])
        for name, program in programs()
    )
    return table(("", "images", *sizes, *work), rows)


def memory_table(record: dict[str, Any], net: Net) -> str:
    def row(devices: int) -> Iterator[Any]:
        yield from (devices, net.batch_size // devices)
        for remat in (False, True):
            for fsdp in (1, FSDP):
                way = plan(record, net, devices, fsdp, remat)
                yield f"{'~' if way.images < FEW else ''}{way.memory / GIB:.1f}"

    header = ("devices", "images on each", "replicated", "fsdp", "remat", "remat, fsdp")
    return table(header, map(row, DEVICES))


def fitting_table(record: dict[str, Any]) -> str:
    def row(net: Net, remat: bool) -> Iterator[str]:
        yield net.name + (", remat" if remat else "")
        for kind in KINDS:
            yield " / ".join(smallest(record, net, fsdp, remat, kind) for fsdp in (1, FSDP))

    rows = (row(net, remat) for net in NETS for remat in (False, True))
    return table(("", *(kind.name for kind in KINDS)), rows)


def time_table(record: dict[str, Any], devices: int) -> str:
    def row(net: Net, kind: Hardware) -> Iterator[str]:
        way = plan(record, net, devices, 1, net.remat)
        seconds = way.seconds(kind)
        compilers = 1000 * way.an_image("optimal_seconds") * way.images
        yield from (net.name, kind.name, f"{1000 * seconds:.0f}")
        yield f"{compilers:.0f}" if kind is hardware.TPU_V5P else ""
        yield from (f"{net.batch_size / seconds:.0f}", time_left(net.steps, 1 / seconds))

    header = ("", "", "step, ms", "by the compiler", "images/s", "training")
    return table(header, (row(net, kind) for net in NETS for kind in KINDS))


def all_reduce_table() -> str:
    def row(net: Net) -> Iterator[str]:
        yield net.name
        for kind in KINDS:
            seconds = (all_reduce_seconds(kind, 4 * net.parameters, n) for n in (8, 32, 256))
            yield " / ".join(f"{1000 * each:.1f}" for each in seconds)

    return table(("ms", *(kind.name for kind in KINDS)), map(row, NETS))


def main() -> None:
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"nets": {}}
    measure(record)
    print(network_table(record), program_table(record), sep="\n\n", end="\n\n")
    for net in NETS:
        print(f"{net.name}, GiB on a device\n\n{memory_table(record, net)}\n")
    print(fitting_table(record), time_table(record, 32), all_reduce_table(), sep="\n\n")


if __name__ == "__main__":
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to ask
    jax.config.update("jax_platforms", "cpu")
    main()
