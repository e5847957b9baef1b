"""What one experiment costs on one mesh: memory, FLOPs and, on a known accelerator, time.

The time is a prediction from data sheets. Compute runs at a fixed share of the peak, the update of
the state at the memory's bandwidth, and collectives at that of the links: parameters are gathered
over fsdp, expert and tensor in the forward and again in the backward pass and their gradients
scattered back, gradients are then summed over data, and the tokens of routed experts travel over
expert and to all of tensor.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jax.sharding import AbstractMesh

from dit_moe.config import Config, ConfigError, ModelConfig, TrainConfig, divisors
from dit_moe.config.rules import listing
from dit_moe.devices.accelerators import Device
from dit_moe.devices.mesh import check_mesh, in_words
from dit_moe.plan.flops import dispatch_in_rounds, image_flops, recomputed_flops
from dit_moe.plan.memory import (
    abstract_mesh,
    device_bytes,
    host_bytes,
    parameter_bytes,
    teacher_bytes,
)
from dit_moe.plan.rounds import EXCHANGE_LATENCY, EXPERT_LATENCY, Costs, Rounds, rounds_of
from dit_moe.plan.traffic import traffic
from dit_moe.plan.training_flops import training_flops
from dit_moe.runs.teacher import taught_steps, teacher_model

UTILISATION = 0.4
"""Share of the peak that the matrix products are assumed to reach. Not measured here."""

USABLE = 0.75
"""Share of a device's memory that an estimate may fill. It is what JAX takes of a GPU unless told
otherwise, and leaves room for what the compiler does differently (docs/scale.md)."""


@dataclass(frozen=True)
class Estimate:
    """What a run will need."""

    config: Config
    mesh: Mapping[str, int]
    device: Device | None
    parts: Mapping[str, float]
    """Bytes of one device; see `memory.device_bytes`."""
    host_bytes: float
    """What a host keeps for one device; see `memory.host_bytes`."""
    flops_per_image: float
    """Model FLOPs of training on one image; see `training_flops`."""
    hardware_flops_per_image: float
    """The same with what rematerialisation computes again, and with the teacher's."""
    teacher_flops_per_image: float
    """Of the forward pass of its teacher, in the steps that have one (`train.distill`)."""
    seconds: tuple[float, float] | None
    """The time of a step with communication hidden behind compute, and not hidden at all; None
    without a known device."""
    rounds: Rounds | None
    """In how many rounds tokens should travel to their experts; None without a known device, or
    where none travel."""

    @property
    def num_devices(self) -> int:
        """How many devices the mesh has."""
        return math.prod(self.mesh.values())

    @property
    def peak(self) -> float | None:
        """FLOP/s of all devices together, for model FLOP utilisation; None where the device is not
        known."""
        return self.device and self.num_devices * self.device.peak(self.config.model.dtype)

    @property
    def bytes_per_device(self) -> float:
        """All parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the device has the memory; true where the device is not known."""
        return self.device is None or self.bytes_per_device <= USABLE * self.device.memory

    @property
    def images_per_second(self) -> tuple[float, float] | None:
        """The speed of all devices together, slowest first."""
        if self.seconds is None:
            return None
        fast, slow = self.seconds
        return self.config.train.batch_size / slow, self.config.train.batch_size / fast

    def sentence(self) -> str:
        """All of it in one sentence."""
        title = "device" if self.device is None else self.device.title
        train = self.config.train
        batch = f"batch {train.batch_size}"
        if train.accumulation > 1:
            batch += f" in {train.accumulation} parts"
        parts = ", ".join(f"{name} {size / 1e9:.3g}" for name, size in self.parts.items())
        on_host = (
            f", {self.host_bytes / 1e9:.3g} GB of its host's memory" if self.host_bytes else ""
        )
        shape = in_words(self.mesh)
        text = (
            f"{self.config.name} on {self.num_devices} x {title}, mesh {shape}, {batch}: "
            f"{self.bytes_per_device / 1e9:.3g} GB a device ({parts}){on_host}; "
            f"{self.flops_per_image / 1e9:,.4g} GFLOPs a training image"
        )
        if self.teacher_flops_per_image:
            text += (
                f", and {self.teacher_flops_per_image / 1e9:,.4g} of its teacher up to step "
                f"{taught_steps(train):,}"
            )
        if self.device is not None and not self.fits:
            usable = USABLE * self.device.memory / 1e9
            return f"{text}; does not fit: {usable:.3g} GB are counted on"
        if self.seconds is not None and self.images_per_second is not None:
            text += (
                f"; predicted: {span(*self.seconds)} s a step, "
                f"{span(*self.images_per_second)} images/s"
            )
            if self.host_bytes:
                text += ", without what goes to the host and back"
            if self.rounds is not None:
                text += f"; {self.rounds.sentence()}"
        return text


def span(low: float, high: float) -> str:
    """Two numbers to two digits, or one where they agree."""
    texts = [f"{float(f'{x:.2g}'):,.9g}" for x in (low, high)]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


def estimate(
    config: Config,
    mesh_shape: Mapping[str, int],
    device: Device | None = None,
    costs: Costs | None = None,
) -> Estimate:
    """Estimates a training run.

    Args:
      config: the experiment; its `mesh` is not read.
      mesh_shape: sizes of the axes in devices/mesh.py; those not given are 1.
      device: the accelerator; None where it is not known, for memory and FLOPs alone.
      costs: what travel to experts and their arithmetic take there, where they were measured.

    Raises:
      ConfigError: the mesh does not divide the model or the batch, `train.freeze` or `train.lora`
        does not fit the model, or there is no such teacher as `train.distill` names.
    """
    model, train = config.model, config.train
    mesh = abstract_mesh(mesh_shape)
    check_mesh(mesh, model)
    if train.batch_size % (train.accumulation * mesh.size):
        fewer = [n for n in divisors(train.batch_size // train.accumulation) if n < mesh.size]
        raise ConfigError(
            f"config.train.batch_size is {train.batch_size} with accumulation "
            f"{train.accumulation} on {mesh.size} devices; allowed: a multiple of "
            f"{train.accumulation * mesh.size}, or, for a run that has begun, {listing(fewer)} "
            "devices (such as CUDA_VISIBLE_DEVICES shows)"
        )
    fused = _fused_attention(model, device)
    flops = training_flops(model, train)
    hardware = flops + recomputed_flops(
        model, fused_attention=fused, expert_parallel=dispatch_in_rounds(model, mesh.shape)
    )
    parts = device_bytes(model, train, mesh, fused_attention=fused)
    teacher, of_teacher = teacher_model(config), 0.0
    if teacher is not None:
        of_teacher = image_flops(teacher).total
        hardware += of_teacher
        own = _fused_attention(teacher, device)
        parts["teacher"] = teacher_bytes(teacher, train, mesh, fused_attention=own)
    return Estimate(
        config=config,
        mesh=dict(mesh.shape),
        device=device,
        parts=parts,
        host_bytes=host_bytes(model, train, mesh),
        flops_per_image=flops,
        hardware_flops_per_image=hardware,
        teacher_flops_per_image=of_teacher,
        seconds=None if device is None else _step_seconds(model, train, mesh, device, hardware),
        rounds=None if device is None else _rounds(model, train, mesh, device, costs),
    )


def _fused_attention(model: ModelConfig, device: Device | None) -> bool:
    head = model.width // model.heads
    fits = model.dtype == "bfloat16" and head % 8 == 0 and head <= 128  # nn/attention.py
    return device is not None and device.fused_attention and fits


def _step_seconds(
    model: ModelConfig,
    train: TrainConfig,
    mesh: AbstractMesh,
    device: Device,
    flops_per_image: float,
) -> tuple[float, float]:
    compute = train.batch_size / mesh.size * flops_per_image
    compute /= UTILISATION * device.peak(model.dtype)
    # Reads parameters, averages, two moments and gradients; writes all but the last.
    copies, learning = 4 + len(train.post_hoc_ema), parameter_bytes(model, mesh, train).learning
    compute += (2 * copies + 1) * learning / device.memory_bandwidth

    sent = traffic(model, train, mesh)
    data, tensor = mesh.shape["data"], mesh.shape["tensor"]
    shards = mesh.size // data
    links = _link_seconds(device, sent.gathered, shards, stride=1)
    links += _link_seconds(device, sent.reduced, data, stride=shards)
    links += sent.tokens * _exchange_beta(device, mesh)
    links += _link_seconds(device, sent.slices, tensor, stride=1)
    return max(compute, links), compute + links


def _exchange_beta(device: Device, mesh: AbstractMesh) -> float:
    """Seconds for a byte that a device sends to the others along the axis "expert"."""
    inside = max(device.domain // mesh.shape["tensor"], 1)
    beyond = max(0.0, 1 - inside / mesh.shape["expert"])  # of these bytes, for other hosts
    return 1 / device.interconnect + beyond / device.network


def _rounds(
    model: ModelConfig, train: TrainConfig, mesh: AbstractMesh, device: Device, costs: Costs | None
) -> Rounds | None:
    """With costs by the data sheet where none were measured."""
    reduced = traffic(model, train, mesh).reduced / train.accumulation
    data = mesh.shape["data"]
    gradients = _link_seconds(device, reduced, data, mesh.size // data)
    costs = costs or Costs(
        exchange_alpha=EXCHANGE_LATENCY,
        exchange_beta=_exchange_beta(device, mesh),
        expert_alpha=EXPERT_LATENCY,
        expert_beta=1 / (UTILISATION * device.peak(model.dtype)),
    )
    inside = _link_seconds(device, 1.0, mesh.shape["tensor"], stride=1)
    return rounds_of(model, train, mesh, costs, gradients, inside)


def _link_seconds(device: Device, size: float, members: int, stride: int) -> float:
    """Time of a collective over `members` devices of which neighbours are `stride` apart.

    Beyond one domain its members there share the traffic, each over a network card of its own.
    """
    seconds = size / device.interconnect
    if members * stride > device.domain:
        inside = min(max(device.domain // stride, 1), members)
        seconds += size / inside / device.network
    return seconds
