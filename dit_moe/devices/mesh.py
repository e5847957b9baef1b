"""The device mesh, and the one table that maps logical parameter axes to it."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from dit_moe.config import ConfigError, MeshConfig, ModelConfig, MoEConfig, divisors
from dit_moe.config.rules import listing

AXES = ("data", "fsdp", "expert", "tensor")

RULES: dict[str | None, tuple[str, ...]] = {
    "embed": ("expert", "fsdp", "tensor"),
    "mlp": (),
    "heads": (),
    "expert": ("expert",),
    None: (),
}
"""Logical axis of a parameter to the mesh axes that split it. The batch goes over all mesh axes.

A mesh axis goes to the first axis of a parameter that asks for it: routed experts are split over
expert and, each of them, over fsdp and tensor; all else over the three. `moe/expert_parallel.py`
relies on it, and on their order: gathering over tensor, then fsdp must leave one whole part of the
width. It computes with slices of the hidden units, which it swaps for parts of the width: stored,
the matrices of the first layer lie side by side, and a slice of the whole is none of each.
"""


def fill_sizes(asked: Mapping[str, int], num_devices: int) -> dict[str, int]:
    """Sizes by axis, in which -1 is replaced by how often the others go into the devices."""
    known = math.prod(size for size in asked.values() if size != -1)
    rest = num_devices // max(known, 1)
    return {axis: rest if size == -1 else size for axis, size in asked.items()}


def in_words(sizes: Mapping[str, int]) -> str:
    """Sizes by axis as a person writes them; tensor, which few need, where it is not 1."""
    return " x ".join(
        f"{axis} {size}" for axis, size in sizes.items() if axis != "tensor" or size != 1
    )


def build_mesh(config: MeshConfig, devices: Sequence | None = None) -> Mesh:
    """Arranges devices (all by default) as the config asks.

    The devices of a process come one after another, and processes in order: each has a contiguous
    part of the batch.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices, or one process has more of
        them than another.
    """
    devices = list(jax.devices() if devices is None else devices)
    asked = {axis: getattr(config, axis) for axis in AXES}
    shape = tuple(fill_sizes(asked, len(devices)).values())
    if math.prod(shape) != len(devices):
        raise ConfigError(
            f"config.mesh is {in_words(asked)} on {len(devices)} devices; "
            f"allowed: sizes whose product is {len(devices)}"
        )
    types = (AxisType.Auto,) * len(AXES)
    if len({device.process_index for device in devices}) == 1:
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    numbers = set(collections.Counter(device.process_index for device in devices).values())
    if len(numbers) > 1:
        raise ConfigError(
            f"some processes have {min(numbers)} devices and some {max(numbers)}; allowed: as many "
            "each, since they read equal parts of a batch"
        )
    # On a TPU pod jax.make_mesh follows the network, in and out of the hosts.
    devices.sort(key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=types)


def with_neighbours(model: ModelConfig, mesh: Mesh) -> ModelConfig:
    """The model with `exchange_within` as this mesh has it, where the config leaves it open."""
    if model.exchange_within is not None:
        return model
    return dataclasses.replace(model, exchange_within=_neighbours(mesh))


def _neighbours(mesh: Mesh) -> int:
    """How many devices beside each other along the axis "expert" fast links join (a host's GPUs, a
    TPU slice), where the axis goes beyond these; otherwise 1."""
    size = mesh.shape["expert"]
    lines = np.moveaxis(mesh.devices, AXES.index("expert"), -1).reshape(-1, size)
    place = np.vectorize(lambda d: getattr(d, "slice_index", d.process_index), otypes=[int])(lines)

    def together(number: int) -> bool:
        groups = place.reshape(-1, number)
        return bool((groups == groups[:, :1]).all())

    most = max(number for number in divisors(size) if together(number))
    return most if most < size else 1


def check_mesh(mesh: Mesh | AbstractMesh, model: ModelConfig) -> None:
    """Checks that the mesh splits the model evenly.

    Raises:
      ConfigError: it does not.
    """
    fsdp, expert, tensor = (mesh.shape[axis] for axis in ("fsdp", "expert", "tensor"))
    # Of several mixtures, the number that all of their divisors divide.
    experts = math.gcd(*(moe.num_experts for moe in model.mixtures)) or 1
    if experts % expert:
        of = f"model.moe.num_experts {experts}" if model.mixtures else "a dense model"
        raise ConfigError(
            f"config.mesh.expert is {expert} with {of} on {mesh.size} devices; allowed: "
            f"{_common_divisors(experts, mesh.size)}"
        )
    if expert > 1 and expert % (model.exchange_within or 1):
        raise ConfigError(
            f"config.model.exchange_within is {model.exchange_within} with config.mesh.expert "
            f"{expert}; allowed: {_common_divisors(expert)}"
        )
    hidden = math.gcd(*(units for moe in model.mixtures for units in _sliced(model, moe))) or 1
    if hidden % tensor:
        of = f"experts of {hidden} hidden units" if model.mixtures else "a dense model"
        raise ConfigError(
            f"config.mesh.tensor is {tensor} with {of} on {mesh.size} devices; allowed: "
            f"{_common_divisors(hidden, mesh.size)}"
        )
    if model.width % (fsdp * expert * tensor):
        sizes = f"config.mesh.fsdp is {fsdp} and config.mesh.expert {expert}"
        if tensor > 1:
            sizes = f"config.mesh.fsdp is {fsdp}, expert {expert} and tensor {tensor}"
        raise ConfigError(
            f"{sizes} with model.width {model.width} on {mesh.size} devices; allowed: a product of "
            f"{'the three' if tensor > 1 else 'the two'} among "
            f"{_common_divisors(model.width, mesh.size)}"
        )


def _sliced(model: ModelConfig, moe: MoEConfig) -> list[int]:
    """The hidden units of each group of experts that tokens are sent to."""
    groups = [group for group in moe.groups if not group.facts.whole_images]
    return [int(group.hidden_ratio * model.width) for group in groups]


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
