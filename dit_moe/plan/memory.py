"""Bytes that one device holds during a training step.

Counted from shapes. Exact for the state; for what a step makes on the way, a model of what XLA
keeps, measured in docs/scale.md.
"""

import collections
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from jax.sharding import AbstractMesh, AxisType

from dit_moe.config import (
    EXPERTS,
    ExpertGroup,
    ExpertKind,
    ModelConfig,
    MoEConfig,
    RecurrentKind,
    SegmentConfig,
    TrainConfig,
)
from dit_moe.devices.mesh import AXES, parameter_shardings
from dit_moe.models.frozen import split_learning
from dit_moe.models.low_rank import is_addition, matrices_of, shapes_and_axes
from dit_moe.models.parameters import stack_of
from dit_moe.plan.flops import dispatch_in_rounds
from dit_moe.runs.teacher import held_as

FLOAT32 = 4
_ALL_LEARN = TrainConfig()


@dataclass(frozen=True)
class ParameterBytes:
    """Float32 bytes of the parameters on one device."""

    stored: float
    """Its shards."""
    learning: float
    """Of these, what learns (`split_learning`)."""
    merged: float
    """Of these, the matrices that have additions."""
    used: float
    """What it computes with in a whole step: all of the network, but for the experts of other
    devices, and other slices of its own."""
    swapped: float
    """Of the stored, what it gives to others for its slices of experts."""
    unit_used: float
    """The same of one unit of blocks, the largest, which is what exists at a time."""
    unit_learning: float
    """What learns of one unit, the largest in this."""


def abstract_mesh(shape: Mapping[str, int]) -> AbstractMesh:
    """A mesh without devices; axes that are not given have size 1."""
    sizes = tuple(shape.get(axis, 1) for axis in AXES)
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def parameter_bytes(
    model: ModelConfig, mesh: AbstractMesh, train: TrainConfig = _ALL_LEARN
) -> ParameterBytes:
    """Counts by the table that also places the parameters of a run (devices/mesh.py).

    Raises:
      ConfigError: see `split_learning` and `low_rank.shapes_and_axes`.
    """
    parameters, axes = _parameters(model, train.lora)
    shardings = parameter_shardings(mesh, parameters, axes)
    shards, slices = mesh.shape["expert"], mesh.shape["tensor"]
    learns = split_learning(parameters, train)[0]
    gains = matrices_of(parameters)
    stored = learning = merged = used = swapped = 0.0
    units: dict[str, float] = collections.defaultdict(float)
    learning_units = units.copy()
    for path, parameter in parameters.items():
        shard = math.prod(shardings[path].shard_shape(parameter.shape)) * FLOAT32
        stored += shard
        learning += shard * (path in learns)
        if is_addition(path):
            continue
        merged += shard * (path in gains)
        size = parameter.size * FLOAT32
        if "expert" in axes[path]:
            experts = parameter.shape[axes[path].index("expert")]
            # One alone is shared: it is whole on every device.
            own = math.ceil(experts / shards) / slices if experts > 1 else 1
            size *= own / experts
            swapped += shard * (experts > 1) * (slices - 1) / slices
        used += size
        if (stack := stack_of(path)) is not None:
            units[stack] += size / parameter.shape[0]
            learning_units[stack] += size / parameter.shape[0] * (path in learns or path in gains)
    largest, largest_learning = max(units.values()), max(learning_units.values())
    return ParameterBytes(stored, learning, merged, used, swapped, largest, largest_learning)


_parameters = functools.cache(shapes_and_axes)


def device_bytes(
    model: ModelConfig, train: TrainConfig, mesh: AbstractMesh, *, fused_attention: bool
) -> dict[str, float]:
    """Bytes of one device by part, at the busiest moment of a step (the end of its backward pass).

    Args:
      model: the network.
      train: `batch_size` over `accumulation` must be a multiple of the mesh's size.
      mesh: axes as in devices/mesh.py.
      fused_attention: see `flops.recomputed_flops`.

    Returns:
      parameters, EMA, optimizer: the state; exact. What is on the host (`host_bytes`) is 0 here.
      gradients: float32, in shards like the parameters that learn; twice with accumulation.
      merged: with `train.lora` alone, matrices with their additions in them, and their gradients.
      activations: what is kept for the backward pass, see `saved_bytes`.
      working set: of one unit of blocks: what is recomputed, the parameters as it computes with
        them where they are stored in shards or in another type, and their gradients.
      batch: noisy input, target and noise included.
    """
    parameters = parameter_bytes(model, mesh, train)
    part_images = train.batch_size / train.accumulation / mesh.size
    expert_parallel = dispatch_in_rounds(model, mesh.shape)
    saved = saved_bytes(model, fused_attention=fused_attention, expert_parallel=expert_parallel)
    # In its own backward pass, expert parallelism makes the hidden units of a layer again.
    recomputed = model.num_tokens * max(
        _unit_bytes(model, segment, "none", fused_attention, False)
        - _unit_bytes(model, segment, model.remat, fused_attention, expert_parallel)
        for segment in model.trunk
    )
    # Rows of the devices with other slices, their gradients, and what is made of them.
    rows = max((moe.travelling(model.num_tokens) for moe in model.mixtures), default=0.0)
    shown = 3 * (mesh.shape["tensor"] - 1) * model.num_tokens * rows * model.width * itemsize(model)
    weights = parameters.unit_learning  # the gradients of one unit
    if in_shards(mesh) or model.dtype != "float32":
        # Gathered after the cast, which "none" keeps.
        copied = parameters.used if model.remat == "none" else parameters.unit_used
        weights += copied * itemsize(model) / FLOAT32
    height, width, _ = model.image_shape
    pixels = height * width * (model.channels * 3 + model.out_channels)
    merged = {} if train.lora is None else {"merged": 2 * parameters.merged}
    averages, moments = _state_bytes(parameters, train)
    return {
        "parameters": parameters.stored,
        "EMA": 0 if train.averages_on_host else averages,
        "optimizer": 0 if train.moments_on_host else moments,
        "gradients": parameters.learning * (1 if train.accumulation == 1 else 2),
        **merged,
        "activations": part_images * saved,
        "working set": part_images * (recomputed + shown) + weights,
        "batch": train.batch_size / mesh.size * pixels * FLOAT32,
    }


def in_shards(mesh: AbstractMesh) -> bool:
    """Whether devices gather the parameters that they compute with."""
    return mesh.size > mesh.shape["data"]


def host_bytes(model: ModelConfig, train: TrainConfig, mesh: AbstractMesh) -> float:
    """Bytes that a host keeps of the state for each of its devices, which they come from and go
    back to at every step (`train.averages_on_host`, `train.moments_on_host`); exact."""
    averages, moments = _state_bytes(parameter_bytes(model, mesh, train), train)
    return averages * train.averages_on_host + moments * train.moments_on_host


def _state_bytes(parameters: ParameterBytes, train: TrainConfig) -> tuple[float, float]:
    """Of all moving averages, and of the optimiser's moments."""
    averaged = parameters.learning if train.averages_what_learns else parameters.stored
    halves = 1.5 if train.first_moment_dtype == "bfloat16" else 2
    return (1 + len(train.post_hoc_ema)) * averaged, halves * parameters.learning


def teacher_bytes(
    teacher: ModelConfig, train: TrainConfig, mesh: AbstractMesh, *, fused_attention: bool
) -> float:
    """Bytes that a teacher takes of one device while the run learns from it.

    Its parameters, in shards as the run's own and in the types in which they are held
    (`runs.teacher.held_as`), and one unit of blocks: gathered, and what it makes on the way.

    Args:
      teacher: the network.
      train: of the run.
      mesh: axes as in devices/mesh.py.
      fused_attention: see `flops.recomputed_flops`.
    """
    parameters, axes = _parameters(teacher, None)
    shardings = parameter_shardings(mesh, parameters, axes)
    stored = sum(
        math.prod(shardings[path].shard_shape(p.shape)) * held_as(path, teacher.dtype).itemsize
        for path, p in parameters.items()
    )
    gathered = 0.0
    if in_shards(mesh):
        gathered = parameter_bytes(teacher, mesh).unit_used * itemsize(teacher) / FLOAT32
    part_images = train.batch_size / train.accumulation / mesh.size
    unit = max(
        _unit_bytes(teacher, segment, "none", fused_attention, False) for segment in teacher.trunk
    )
    return stored + gathered + part_images * teacher.num_tokens * unit


def saved_bytes(model: ModelConfig, *, fused_attention: bool, expert_parallel: bool) -> float:
    """Bytes that one image's forward pass keeps for the backward pass (`model.remat`).

    `full`: the input of every unit of blocks. `dots`: also the results of matrix products, that
    is q, k, v, their mixture (not the scores), the projection, both layers of a feed-forward, both
    projections of the routed experts (only their sum under expert parallelism), the
    router's scores (and the layers of its predictor), the modulation.
    `none`: what differentiation of the other elementwise functions needs as well, and the
    activations' results.
    """
    remat = model.remat
    # After the scan: what is normalised last, and what of it becomes patches.
    ends = model.width * (FLOAT32 + itemsize(model))
    units = sum(
        segment.repeats * _unit_bytes(model, segment, remat, fused_attention, expert_parallel)
        for segment in model.trunk
    )
    return model.num_tokens * (ends + units + _pregate_bytes(model, fused_attention))


def _pregate_bytes(model: ModelConfig, fused_attention: bool) -> float:
    """Bytes per token that the router before the trunk keeps, of which nothing is computed again:
    its tokens, the block, what the router sees, before and after it is normalised, its scores."""
    own = model.before
    if own is None:
        return 0
    moe, w = model.mixtures[0], own.width
    block = _unit_bytes(own, own.trunk[0], "none", fused_attention, False)
    router = moe.scored_experts + moe.router.saved(w, moe, products_only=False)
    seen = model.num_tokens if moe.choose_by == "image" else 1
    return block + 3 * w * itemsize(model) + router * FLOAT32 / seen


def _unit_bytes(
    model: ModelConfig,
    segment: SegmentConfig,
    remat: str,
    fused_attention: bool,
    expert_parallel: bool,
) -> float:
    """Bytes per token that one unit of a segment's blocks keeps."""
    size, d = itemsize(model), model.width
    if remat == "full":
        return d * size
    blocks, moe = segment.unit, segment.moe
    dense = blocks - (moe is not None)
    kind, hidden = EXPERTS[model.mlp_activation], model.mlp_ratio * d
    if remat == "dots":
        # q, k, v, mixture, projection, modulation.
        attention = (5 * d + 6 * d / model.num_tokens) * size
        attention += _joint_bytes(model)
        total = d * size + blocks * attention + dense * (kind.in_matrices * hidden + d) * size
    else:
        # What is normalised, before and after; q, k, v; scores before and after softmax.
        scores = 0.0 if fused_attention else model.heads * model.num_tokens
        attention = 9 * d * size + scores * (FLOAT32 + size)
        if model.pairs is not None:
            attention += _joint_bytes(model) + 4 * d * size + scores * (FLOAT32 + size)
        total = blocks * attention + dense * ((kind.in_matrices + 1) * hidden + d) * size
    if moe is not None:
        total += _moe_bytes(model, moe, segment.repeats, remat, expert_parallel)
    return total


def _joint_bytes(model: ModelConfig) -> float:
    """Bytes per token that the products of one block's joint attention keep: those of the adapters
    (on average of both images), the mixture and two projections. Not measured."""
    if (pairs := model.pairs) is None:
        return 0.0
    adapters = 1 + 0.5 * pairs.adapt_second
    return (adapters * (2 * pairs.rank + 4 * model.width) + 3 * model.width) * itemsize(model)


def _moe_bytes(
    model: ModelConfig, moe: MoEConfig, layers: int, remat: str, expert_parallel: bool
) -> float:
    """Bytes per token that one of so many layers with this mixture keeps."""
    size, d = itemsize(model), model.width
    router = 0  # decided before the trunk, scores as well
    if model.pregate is None:
        router = moe.scored_experts + moe.router.saved(d, moe, products_only=remat == "dots")
    total = router * FLOAT32 / (model.num_tokens if moe.choose_by == "image" else 1)
    total += (model.patch_features if moe.router.guess(d) else 0) * FLOAT32
    total += _cheap_bytes(model, moe, remat) + _mix_bytes(model, moe, remat)
    kind, shared = EXPERTS[moe.expert], moe.shared_hidden_ratio * d
    matrices = kind.in_matrices + (remat != "dots")
    total += (matrices * shared + (d if shared else 0)) * size
    for group in moe.groups:
        if isinstance(group.facts, RecurrentKind):
            total += _recurrent_bytes(model, group.facts, group, remat)
        elif expert_parallel:
            total += d * size
        else:
            hidden = group.hidden_ratio * d
            total += _row_bytes(model, moe, group.facts, hidden, layers, remat)
    return total


def _row_bytes(
    model: ModelConfig, moe: MoEConfig, kind: ExpertKind, hidden: float, layers: int, remat: str
) -> float:
    """Bytes per token that the rows of a dispatch keep. They are of a fixed number: those that go
    to other groups or to cheap experts lie idle."""
    size, d = itemsize(model), model.width
    slots = moe.router.chooser == "nobody"
    chosen = moe.rows(model.num_tokens) if slots else moe.top_k
    if remat == "dots":
        return chosen * (kind.in_matrices * hidden + d) * size
    # What a decision before the trunk tells is the same in all layers.
    indices = 8 if model.pregate is None else 8 / layers
    # Rows before and after the experts, these in float32 too; about eight indices and weights.
    rows = ((kind.in_matrices + 1) * hidden + d) * size + (d + indices) * FLOAT32
    rows += d * size if size < FLOAT32 else 0
    # A byte for each value that is masked. Where experts choose, all layers have the same mask.
    apart = moe.tokens_choose and model.pregate is None
    masks = (2 * d + hidden) / (1 if apart else layers)
    return chosen * (rows + masks)


def _recurrent_bytes(
    model: ModelConfig, kind: RecurrentKind, group: ExpertGroup, remat: str
) -> float:
    """Bytes per token that recurrent experts keep: what it adds to the gates, and the sum of their
    outputs; or, where more than products is kept, eleven numbers for each of a state, in float32,
    and a few for each expert."""
    size, d = itemsize(model), model.width
    states = kind.directions * group.number * group.hidden_ratio * d
    if remat == "dots":
        return (3 * states + d) * size
    wide = d * size if size < FLOAT32 else 0
    return (11 * states + 3 * group.number + 2) * FLOAT32 + wide


def _cheap_bytes(model: ModelConfig, moe: MoEConfig, remat: str) -> float:
    """Bytes per token that the cheap experts of a layer keep: the sum of the constants, or, where
    it is not kept in any case, the token in float32."""
    if remat == "dots":
        return model.width * FLOAT32 if "constant" in moe.cheap_experts else 0
    gives = set(moe.cheap_experts) - {"zero"}
    return model.width * FLOAT32 if gives and itemsize(model) < FLOAT32 else 0


def _mix_bytes(model: ModelConfig, moe: MoEConfig, remat: str) -> float:
    """Bytes per token that a learnt mix with the shared expert keeps: two logits, or, where more
    than products is kept, what is mixed in float32 and the shares on their way."""
    if moe.shared_mix == "sum":
        return 0
    if remat == "dots":
        return 2 * FLOAT32
    mixed = 2 + (itemsize(model) < FLOAT32)  # with the token in float32
    return (mixed * model.width + 6) * FLOAT32


def itemsize(model: ModelConfig) -> int:
    """Bytes of an activation."""
    return 4 if model.dtype == "float32" else 2
