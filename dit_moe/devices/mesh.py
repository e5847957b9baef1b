"""The device mesh, and the one table that maps logical parameter axes to it."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from dit_moe.config import ConfigError, MeshConfig, ModelConfig, divisors
from dit_moe.config.rules import listing

AXES = ("data", "fsdp", "expert")

RULES: dict[str | None, tuple[str, ...]] = {
    "embed": ("expert", "fsdp"),
    "mlp": (),
    "heads": (),
    "expert": ("expert",),
    None: (),
}
"""Logical axis of a parameter to the mesh axes that split it. The batch goes over all mesh axes.

A mesh axis goes to the first axis of a parameter that asks for it: routed experts are split over
expert and, each of them, over fsdp; all else over both. `moe/expert_parallel.py` relies on it, and
on the order of the two: gathering over fsdp must leave one whole part of the width.
"""


def fill_sizes(asked: Mapping[str, int], num_devices: int) -> dict[str, int]:
    """Sizes by axis, in which -1 is replaced by how often the others go into the devices."""
    known = math.prod(size for size in asked.values() if size != -1)
    rest = num_devices // max(known, 1)
    return {axis: rest if size == -1 else size for axis, size in asked.items()}


def build_mesh(config: MeshConfig, devices: Sequence | None = None) -> Mesh:
    """Arranges devices (all by default) as the config asks.

    The devices of a process come one after another, and processes in order: each has a contiguous
    part of the batch.

    Raises:
      ConfigError: if the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    asked = {axis: getattr(config, axis) for axis in AXES}
    shape = tuple(fill_sizes(asked, len(devices)).values())
    if math.prod(shape) != len(devices):
        wanted = " x ".join(f"{axis} {size}" for axis, size in asked.items())
        raise ConfigError(
            f"config.mesh is {wanted} on {len(devices)} devices; "
            f"allowed: sizes whose product is {len(devices)}"
        )
    types = (AxisType.Auto,) * len(AXES)
    if len({device.process_index for device in devices}) == 1:
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    # On a TPU pod jax.make_mesh follows the network, in and out of the hosts.
    devices.sort(key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=types)


def check_mesh(mesh: Mesh | AbstractMesh, model: ModelConfig) -> None:
    """Checks that the mesh splits the model evenly.

    Raises:
      ConfigError: it does not.
    """
    fsdp, expert = mesh.shape["fsdp"], mesh.shape["expert"]
    # Of several mixtures, the number that all of their divisors divide.
    experts = math.gcd(*(moe.num_experts for moe in model.mixtures)) or 1
    if experts % expert:
        of = f"model.moe.num_experts {experts}" if model.mixtures else "a dense model"
        raise ConfigError(
            f"config.mesh.expert is {expert} with {of} on {mesh.size} devices; allowed: "
            f"{_common_divisors(experts, mesh.size)}"
        )
    if expert > 1 and expert % model.exchange_within:
        raise ConfigError(
            f"config.model.exchange_within is {model.exchange_within} with config.mesh.expert "
            f"{expert}; allowed: {_common_divisors(expert)}"
        )
    if model.width % (fsdp * expert):
        raise ConfigError(
            f"config.mesh.fsdp is {fsdp} and config.mesh.expert {expert} with model.width "
            f"{model.width} on {mesh.size} devices; allowed: a product of the two among "
            f"{_common_divisors(model.width, mesh.size)}"
        )


def _common_divisors(*numbers: int) -> str:
    return listing(divisors(math.gcd(*numbers)))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(
    mesh: Mesh | AbstractMesh,
    parameters: Mapping[str, jax.ShapeDtypeStruct],
    axes: Mapping[str, tuple[str | None, ...]],
) -> dict[str, NamedSharding]:
    """Where each parameter lives, by the table; a mesh axis that does not divide is left out."""

    def sharding(path: str) -> NamedSharding:
        spec: list[tuple[str, ...]] = []
        for size, name in zip(parameters[path].shape, axes[path], strict=True):
            taken: list[str] = []
            for axis in RULES[name]:
                parts = math.prod(mesh.shape[a] for a in (*taken, axis))
                if size % parts == 0 and not any(axis in other for other in spec):
                    taken.append(axis)
            spec.append(tuple(taken))
        return NamedSharding(mesh, PartitionSpec(*(taken or None for taken in spec)))

    return {path: sharding(path) for path in parameters}
