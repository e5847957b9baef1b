"""The device mesh, and the one table that maps logical parameter axes to it."""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dit_moe.config import ConfigError, MeshConfig

AXES = ("data", "fsdp")

RULES: dict[str | None, str | None] = {
    "embed": "fsdp",
    "mlp": None,
    "heads": None,
    "expert": None,
    None: None,
}
"""Logical axis of a parameter to mesh axis. The batch goes over all mesh axes."""


def build_mesh(config: MeshConfig, devices: Sequence | None = None) -> Mesh:
    """Arranges devices (all by default) as the config asks.

    Raises:
      ConfigError: if the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [getattr(config, axis) for axis in AXES]
    known = math.prod(size for size in sizes if size > 0)
    free = len(devices) // known
    shape = [free if size == -1 else size for size in sizes]
    if math.prod(shape) != len(devices):
        wanted = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
        raise ConfigError(
            f"config.mesh is {wanted} on {len(devices)} devices; "
            f"allowed: sizes whose product is {len(devices)}"
        )
    return jax.make_mesh(
        tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(
    mesh: Mesh,
    parameters: Mapping[str, jax.ShapeDtypeStruct],
    axes: Mapping[str, tuple[str | None, ...]],
) -> dict[str, NamedSharding]:
    """Where each parameter lives, by the table; an axis that does not divide is replicated."""

    def sharding(path: str) -> NamedSharding:
        spec = [
            mesh_axis if mesh_axis and size % mesh.shape[mesh_axis] == 0 else None
            for size, name in zip(parameters[path].shape, axes[path], strict=True)
            for mesh_axis in (RULES[name],)
        ]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return {path: sharding(path) for path in parameters}
