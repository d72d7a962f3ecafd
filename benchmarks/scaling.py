"""Estimates of the cost of training on accelerators: the tables of docs/scaling.md.

    python -m benchmarks.scaling

Training steps are compiled for four TPU v5p chips, and the compiler reports their memory,
operations, bytes moved and estimated time. Nothing is executed. All other numbers follow from
these, the shapes of the state and the datasheets in flowmatch_jax.training.cost.hardware.

Programs in benchmarks/results/scaling.json are not compiled again. Others take minutes each and
need the compiler, but no TPU: pip install "jax[tpu]".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from benchmarks.scaling_programs import NETS, RESULTS, Net, measure, programs
from flowmatch_jax.runtime.mesh import BATCH_AXES, with_shardings
from flowmatch_jax.training.cost import hardware
from flowmatch_jax.training.cost.estimate import (
    bytes_a_device,
    time_left,
)
from flowmatch_jax.training.cost.hardware import Hardware

GIB = 2**30
DEVICES = tuple(2**i for i in range(9))
KINDS = (hardware.TPU_V5E, hardware.TPU_V5P, hardware.H100, hardware.H200)
FSDP = 8  # largest fsdp axis: a node of GPUs
FEW = 8  # images per device below which no compiled program confirms the estimates
USABLE = 0.9  # usable fraction of a device's memory
UTILISATION = 0.4  # assumed FLOP utilisation, where there is no compiler's estimate


@dataclass(frozen=True)
class Plan:
    """A configuration for training a network on a number of devices.

    Attributes:
        net: the network.
        known: the network's record.
        devices: number of devices.
        fsdp: size of the mesh axis "fsdp".
        remat: whether activations are rematerialised.
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
        """Images per device."""
        return self.net.batch_size / self.devices

    def an_image(self, name: str) -> float:
        """Return a number of the compiled program divided by its images."""
        return self.program[name] / self.program["batch"]

    @property
    def memory(self) -> float:
        """Bytes per device: the sharded state and the activations."""
        shape = (self.devices // self.fsdp, self.fsdp)
        mesh = AbstractMesh(shape, BATCH_AXES, axis_types=(AxisType.Auto,) * 2)
        return bytes_a_device(with_shardings(self.net.state, mesh)) + self.activations(self.images)

    def activations(self, images: float) -> float:
        """Estimate the bytes besides the state: replicated gradients, and the rest per image."""
        gradients = 4 * self.net.parameters
        return (
            gradients + images * (self.program["activations"] - gradients) / self.program["batch"]
        )

    def fits(self, device: Hardware) -> bool:
        return self.memory <= USABLE * device.memory_bytes

    def seconds(self, device: Hardware) -> float:
        """Estimate a step without communication: the maximum of compute and memory time."""
        peak = device.peak_flops[self.net.dtype]
        computing = self.an_image("flops") / (UTILISATION * peak)
        moving = self.an_image("bytes_accessed") / device.memory_bandwidth
        return self.images * max(computing, moving)


def all_reduce_seconds(device: Hardware, size: float, devices: int) -> float:
    """Estimate a ring all-reduce of ``size`` bytes, over the links first and then the network.

    In a ring of n, each device sends 2 (n - 1) / n of the bytes.
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
    """Return the smallest power of two of devices that fits; "-" outside the estimates' range."""
    for devices in DEVICES:
        way = plan(record, net, devices, fsdp, remat)
        if way.images >= FEW and way.fits(device):
            return str(devices)
    return "-"


def table(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """Format a Markdown table."""
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
