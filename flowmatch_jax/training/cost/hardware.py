"""Peak performance of accelerators per device, from their datasheets.

Sources:
    TPU v4, v5e, v5p, v6e: https://docs.cloud.google.com/tpu/docs/v4 (.../v5e, .../v5p, .../v6e);
        links of v4: Jouppi et al. 2023, https://arxiv.org/abs/2304.01433, 6 of 50 GB/s.
    A100 SXM: https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/
        nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf;
        40 GB: https://images.nvidia.com/aem-dam/en-zz/Solutions/data-center/
        nvidia-ampere-architecture-whitepaper.pdf
    H100 SXM, H200 SXM: https://www.nvidia.com/en-us/data-center/h100/ (.../h200/); its figures
        are with sparsity, twice those here.
    Networks of NVIDIA's own nodes: https://docs.nvidia.com/dgx/dgxa100-user-guide/ (a 200 Gb/s
        port per GPU), https://docs.nvidia.com/dgx/dgxh100-user-guide/ (400 Gb/s).
    float32: https://docs.jax.dev/en/latest/201/precision.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GB, GIB = 1e9, 2**30


@dataclass(frozen=True)
class Hardware:
    """A kind of device; for TPUs a chip, as JAX counts them.

    Attributes:
        name: common name.
        peak_flops: dense floating-point operations per second by dtype of the arrays in matrix
            products and convolutions. For "float32" it is JAX's default precision: TF32 on GPUs,
            one pass of bfloat16 on TPUs.
        memory_bytes: total memory; programs can use a few percent less.
        memory_bandwidth: bytes per second.
        link_bandwidth: bytes per second that a device sends over all its links (ICI, NVLink) in one
            direction: half of the "bidirectional" figure.
        linked: maximum number of devices that these links connect: a pod or a node.
        network_bandwidth: bytes per second that a device sends beyond them, in a node by the same
            vendor; None for TPUs, whose pods are larger than any run here.
    """

    name: str
    peak_flops: Mapping[str, float]
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    linked: int
    network_bandwidth: float | None = None


def _tpu(
    name: str, tflops: float, gib: float, memory_gb_s: float, link_gb_s: float, pod: int
) -> Hardware:
    peak = {"bfloat16": tflops * 1e12, "float32": tflops * 1e12}
    return Hardware(name, peak, gib * GIB, memory_gb_s * GB, link_gb_s * GB, pod)


def _gpu(
    name: str, tflops: float, gb: float, memory_gb_s: float, link_gb_s: float, network_gb_s: float
) -> Hardware:
    """Create a GPU; TF32 has half of bfloat16's rate, and nodes have 8 devices."""
    peak = {"bfloat16": tflops * 1e12, "float32": tflops / 2 * 1e12}
    bandwidths = (memory_gb_s * GB, link_gb_s * GB)
    return Hardware(name, peak, gb * GB, *bandwidths, 8, network_gb_s * GB)


TPU_V4 = _tpu("TPU v4", 275, 32, 1200, 300, 4096)
TPU_V5E = _tpu("TPU v5e", 197, 16, 819, 200, 256)
TPU_V5P = _tpu("TPU v5p", 459, 95, 2765, 600, 8960)
TPU_V6E = _tpu("TPU v6e", 918, 32, 1600, 400, 256)
A100_40 = _gpu("A100 40 GB", 312, 40, 1555, 300, 25)
A100_80 = _gpu("A100 80 GB", 312, 80, 2039, 300, 25)
H100 = _gpu("H100 SXM", 989, 80, 3350, 450, 50)
H200 = _gpu("H200", 989, 141, 4800, 450, 50)

# By the full `jax.Device.device_kind`: other variants of these GPUs (PCIe, NVL, MIG) are slower.
_BY_DEVICE_KIND = {
    "TPU v4": TPU_V4,
    "TPU v5 lite": TPU_V5E,
    "TPU v5e": TPU_V5E,
    "TPU v5": TPU_V5P,
    "TPU v5p": TPU_V5P,
    "TPU v6 lite": TPU_V6E,
    "TPU v6e": TPU_V6E,
    "NVIDIA A100-SXM4-40GB": A100_40,
    "NVIDIA A100-SXM4-80GB": A100_80,
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA H200": H200,
}


def find(device_kind: str) -> Hardware | None:
    """Return the hardware of a `jax.Device.device_kind`, or None if it is unknown."""
    return _BY_DEVICE_KIND.get(device_kind)
