"""Bytes that a device sends in a training step, in closed form."""

from typing import NamedTuple

from jax.sharding import AbstractMesh

from dit_moe.config import ModelConfig, TrainConfig
from dit_moe.plan.memory import FLOAT32, itemsize, parameter_bytes

JOURNEYS = 5
"""Of a row that an expert computes: forward there and back, backward the token and its gradient
there and a gradient back. Its weight, which goes along, is not counted."""


class Traffic(NamedTuple):
    """Bytes of a device in a step."""

    gathered: float
    """Parameters over fsdp, expert and tensor, forward and again backward, and their gradients
    back."""
    reduced: float
    """Gradients over data: a ring's all-reduce is a scatter and a gather."""
    tokens: float
    """Rows to the experts of other devices and back, of an even load."""
    slices: float
    """The same rows to the other slices of their experts, and the sums back."""


class Exchange(NamedTuple):
    """How a device's rows reach the others along the axis "expert", each as likely."""

    inside: float
    """Bytes to devices of its own host."""
    between: float
    """Bytes to those of other hosts."""
    messages: int
    """How many devices it sends to, for one journey."""


def traffic(model: ModelConfig, train: TrainConfig, mesh: AbstractMesh) -> Traffic:
    """Counts for a run on a mesh.

    Args:
      model: the network.
      train: batch, accumulation and what learns.
      mesh: axes as in devices/mesh.py.
    """
    data, expert, tensor = (mesh.shape[axis] for axis in ("data", "expert", "tensor"))
    parameters = parameter_bytes(model, mesh, train)
    learning = parameters.learning / parameters.stored
    # In the dtype of the computation: XLA casts before it gathers.
    moved = parameters.used - parameters.stored + parameters.swapped
    gathered = (2 + learning) * train.accumulation * moved
    rows = journeys(model) * row_bytes(model, train, mesh)
    return Traffic(
        gathered=gathered * itemsize(model) / FLOAT32,
        reduced=2 * train.accumulation * parameters.learning * (data - 1) / data,
        tokens=rows * (expert - 1) / expert,
        slices=rows * (tensor - 1),
    )


def journeys(model: ModelConfig) -> int:
    """How often a row travels in a step."""
    return JOURNEYS + (2 if model.remat == "full" else 0)


def row_bytes(model: ModelConfig, train: TrainConfig, mesh: AbstractMesh) -> float:
    """Bytes of all rows that a device has for experts in a step, wherever those are."""
    computed = sum(moe.travelling(model.num_tokens) for moe in model.mixtures)
    rows = train.batch_size / mesh.size * model.num_tokens * computed
    return rows * model.width * itemsize(model)


def flat(size: float, members: int, domain: int) -> Exchange:
    """One all-to-all.

    Args:
      size: bytes of a device's rows, those for itself included.
      members: devices along the axis, neighbours next to each other.
      domain: how many of them a host has.
    """
    inside = min(members, domain)
    return Exchange(size * (inside - 1) / members, size * (members - inside) / members, members - 1)


def hierarchical(size: float, members: int, domain: int) -> Exchange:
    """One inside of hosts, in which each device gets what goes to its place in any host, then one
    between hosts of devices at the same place."""
    inside = min(members, domain)
    hosts = members // inside
    return Exchange(
        size * (inside - 1) / inside, size * (hosts - 1) / hosts, inside - 1 + hosts - 1
    )
