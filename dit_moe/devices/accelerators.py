"""Accelerators: peak arithmetic, memory and links, by the makers' data sheets.

GPUs: NVIDIA's data sheets of A100, H100, H200, HGX B200 and L4, dense (without structured
sparsity), the SXM form where there are several. A network card per GPU of the usual eight-GPU
systems: 200 Gbit/s (A100), 400 Gbit/s (later); L4: 100 Gbit/s per host of eight.
TPUs: cloud.google.com/tpu/docs, "System architecture" of each version; per chip.
A gigabyte is 10^9 bytes here. Where a sheet means 2^30, that is left as a reserve.
"""

import re
from dataclasses import dataclass
from typing import Literal

GB = 1e9
TERA = 1e12


@dataclass(frozen=True)
class Device:
    """One accelerator. FLOPs and bytes per second; links in one direction."""

    title: str
    kind: str
    """Regular expression for the whole of `jax.Device.device_kind`."""
    bfloat16: float
    """Peak of dense matrix products."""
    float32: float
    """The same for float32 arrays at JAX's default precision: TensorFloat-32 on GPUs, one
    bfloat16 pass on TPUs."""
    memory: float
    """Bytes."""
    memory_bandwidth: float
    interconnect: float
    """Bandwidth to the other devices of the domain: NVLink, PCIe or a TPU slice's own network."""
    domain: int
    """Devices that the interconnect joins: a host's GPUs, a TPU pod's chips."""
    network: float
    """Bandwidth to devices beyond the domain."""
    fused_attention: bool
    """cuDNN's attention is used for bfloat16 (nn/attention.py)."""

    def peak(self, dtype: Literal["float32", "bfloat16"]) -> float:
        """Peak FLOP/s of matrix products of arrays of this type."""
        return self.bfloat16 if dtype == "bfloat16" else self.float32


def _gpu(
    title: str,
    kind: str,
    bfloat16: float,
    tensor_float32: float,
    memory: float,
    memory_bandwidth: float,
    nvlink: float,
    network: float,
) -> Device:
    return Device(
        title=title,
        kind=f"NVIDIA {kind}",
        bfloat16=bfloat16 * TERA,
        float32=tensor_float32 * TERA,
        memory=memory * GB,
        memory_bandwidth=memory_bandwidth * GB,
        interconnect=nvlink * GB,
        domain=8,
        network=network * GB,
        fused_attention=True,
    )


def _tpu(
    version: str,
    kind: str,
    bfloat16: float,
    memory: float,
    memory_bandwidth: float,
    links: float,
    pod: int,
    network: float,
) -> Device:
    return Device(
        title=f"TPU {version}",
        kind=f"TPU {kind}",
        bfloat16=bfloat16 * TERA,
        float32=bfloat16 * TERA,
        memory=memory * GB,
        memory_bandwidth=memory_bandwidth * GB,
        interconnect=links * GB,
        domain=pod,
        network=network * GB,
        fused_attention=False,
    )


DEVICES = {
    # Tera-FLOP/s: bfloat16, TF32. GB; GB/s: memory, NVLink, network.
    "l4": _gpu("L4", r"L4", 121, 60, 24, 300, 32, 1.5),
    "a100-40": _gpu("A100 (40 GB)", r"A100.*40GB", 312, 156, 40, 1555, 300, 25),
    "a100-80": _gpu("A100 (80 GB)", r"A100.*80GB.*", 312, 156, 80, 2039, 300, 25),
    "h100": _gpu("H100 (80 GB)", r"H100 80GB HBM3", 989, 494, 80, 3350, 450, 50),
    "h200": _gpu("H200", r"H200", 989, 494, 141, 4800, 450, 50),
    "b200": _gpu("B200", r"B200", 2250, 1125, 180, 8000, 900, 50),
    # Tera-FLOP/s. GB; GB/s: memory, links. Chips of a pod. GB/s: data centre network.
    "v4": _tpu("v4", r"v4", 275, 32, 1228, 300, 4096, 6),
    "v5e": _tpu("v5e", r"v5 ?(lite|e)", 197, 16, 819, 200, 256, 3),
    "v5p": _tpu("v5p", r"v5p?", 459, 95, 2765, 600, 8960, 6),
    "v6e": _tpu("v6e", r"v6 ?(lite|e)", 918, 32, 1640, 400, 256, 12),
}


def find_device(device_kind: str) -> Device | None:
    """The accelerator of this `jax.Device.device_kind`; None for a CPU or one not in the table."""
    for device in DEVICES.values():
        if re.fullmatch(device.kind, device_kind):
            return device
    return None


def peak_flops(device_kind: str, dtype: Literal["float32", "bfloat16"]) -> float | None:
    """Peak FLOP/s of one device, for model FLOP utilisation; None where it is not known.

    Args:
      device_kind: `jax.devices()[0].device_kind`, such as "NVIDIA H100 80GB HBM3".
      dtype: of the matrix products' inputs (`model.dtype`).
    """
    device = find_device(device_kind)
    return None if device is None else device.peak(dtype)
