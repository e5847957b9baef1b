"""The mesh, what it splits, and that it changes no numbers."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from dit_moe.config import (
    CHEAP_EXPERTS,
    EXPERTS,
    RECURRENT,
    ROUTERS,
    ConfigError,
    CosineRouterConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    NoisyTopKRouterConfig,
    PregateConfig,
    RouterConfig,
    SegmentConfig,
    SigmoidTopKRouterConfig,
    TopKRouterConfig,
)
from dit_moe.config.presets import preset
from dit_moe.devices.mesh import (
    batch_sharding,
    build_mesh,
    check_mesh,
    parameter_shardings,
    with_neighbours,
)
from dit_moe.diffusion.integrate import build_objective
from dit_moe.models.parameters import (
    Parameters,
    abstract_parameters,
    functional,
    init_parameters,
    logical_axes,
)
from dit_moe.moe.statistics import layer_statistics
from dit_moe.runs.checkpoints import Checkpoints
from dit_moe.runs.state import TrainState, abstract_state, init_state
from dit_moe.training.step import build_step, image_keys
from tests.tiny import (
    ADAMOE,
    DIFFMOE,
    DIT_MOE,
    EC_DIT,
    HECTO,
    MOE_PLUS_PLUS,
    PROMOE,
    PROMOE_EC,
    PYRAMID,
    RACE,
    SOFT_MOE,
    UNLIKE,
    in_segments,
    tiny,
)
from tests.training.test_training import batch, one_device

OF_THE_PACKAGE = {name for name in ROUTERS.names if ROUTERS[name].__module__.startswith("dit_moe.")}
KINDS = {*EXPERTS, *RECURRENT}
"""Before any test registers others."""


def _with(router: RouterConfig, expert: str = "swiglu") -> MoEConfig:
    return dataclasses.replace(DIT_MOE, router=router, expert=expert)


BEFORE, SLICED = "before the trunk", "slices of experts"
NETWORKS = {
    "tokens choose": in_segments(
        DIT_MOE,
        _with(SigmoidTopKRouterConfig()),
        _with(TopKRouterConfig(gate="sigmoid", bias="share", capacity_factor=1.0)),
        _with(NoisyTopKRouterConfig(z_coef=0.01)),
        _with(CosineRouterConfig(rank=8), "silu"),
    ),
    # ProMoE's unconditional expert makes five, which two devices do not share evenly.
    "prototypes and images": in_segments(PROMOE, PROMOE_EC, EC_DIT),
    # Experts choose from all images, so that devices have shares of any size.
    "the batch": in_segments(DIFFMOE, RACE),
    "cheap experts and slots": in_segments(ADAMOE, MOE_PLUS_PLUS, SOFT_MOE),
    "unlike experts and a pyramid": (*in_segments(HECTO, UNLIKE), *PYRAMID),
    SLICED: in_segments(DIT_MOE, PROMOE, UNLIKE),
    BEFORE: (SegmentConfig(2, _with(TopKRouterConfig(bias="share"))),),
}
"""Networks that together have every router and every kind of experts."""


def evaluated(model: ModelConfig, parameters: Parameters, mesh: Mesh) -> dict[str, np.ndarray]:
    """All numbers of one evaluation in training: losses, metrics, statistics of the routers, what
    these keep beside the gradient, and the gradient of every parameter."""
    objective = build_objective(tiny().objective)
    mixtures = [segment.moe for segment in model.trunk if segment.moe is not None]
    x_NxHxWxC, y_N = batch(16)
    y_N = y_N.at[::5].set(model.null_label)

    def loss(parameters: Parameters, key_N: jax.Array, x: jax.Array, y_N: jax.Array):
        network = functools.partial(functional(model)(parameters), train=True)
        value, (metrics, prediction) = objective.loss(network, key_N, x, y_N)
        statistics = layer_statistics(prediction.routing, mixtures)
        kept = [routing.next_state for routing in prediction.deciders]
        return value, {"metrics": metrics, "statistics": statistics, "kept": kept}

    with jax.set_mesh(mesh):
        placed = jax.device_put(
            parameters,
            parameter_shardings(mesh, abstract_parameters(model), logical_axes(model)),
        )
        arrays = (image_keys(jax.random.key(0), 16), x_NxHxWxC, y_N)
        arrays = jax.device_put(arrays, batch_sharding(mesh))
        found = jax.jit(jax.value_and_grad(loss, has_aux=True))(placed, *arrays)
    leaves = jax.tree.leaves_with_path(jax.device_get(found))
    return {jax.tree_util.keystr(path): value for path, value in leaves}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        *((name, (2, 2, 2)) for name in NETWORKS if name != SLICED),
        ("the batch", (4, 2, 1)),
        (SLICED, (1, 2, 2, 2)),
    ],
)
def test_experts_on_several_devices_change_no_numbers(name, sizes):
    """Losses, metrics and what routers keep to 1e-5 of their array's largest, and gradients, in
    whose sums much cancels out, to 1e-4."""
    pregate = PregateConfig(heads=2) if name == BEFORE else None
    model = dataclasses.replace(tiny(NETWORKS[name]).model, pregate=pregate)
    parameters = jax.jit(init_parameters, static_argnums=0)(model, jax.random.key(0))
    # adaLN-zero shuts all layers at first; what they compute is to be seen.
    for i, path in enumerate(parameters):
        if "modulation." in path or "patch_out." in path or "guess." in path:
            noise = jax.random.normal(jax.random.key(i), parameters[path].shape)
            parameters[path] += 0.1 * noise
    expected = evaluated(model, parameters, one_device())
    actual = evaluated(model, parameters, build_mesh(MeshConfig(*sizes)))
    assert actual.keys() >= expected.keys()  # several devices tell what travels, too
    for path, value in expected.items():
        tolerance = (1e-4 if path.startswith("[1]") else 1e-5) * np.abs(value).max()
        np.testing.assert_allclose(actual[path], value, rtol=0, atol=tolerance, err_msg=path)


def test_the_networks_have_every_router_and_kind_of_experts():
    mixtures = [s.moe for segments in NETWORKS.values() for s in segments if s.moe is not None]
    kinds = {group.kind for moe in mixtures for group in moe.groups}
    assert {moe.router.name for moe in mixtures} == OF_THE_PACKAGE
    assert kinds == KINDS
    assert {kind for moe in mixtures for kind in moe.cheap_experts} == set(CHEAP_EXPERTS)


@pytest.mark.parametrize("sizes", [(1, 2, 4, 1), (1, 4, 2, 1), (1, 2, 2, 2)])
@pytest.mark.parametrize("name", ["DiT-MoE-S/2-8E2A", "ProMoE-S/2"])
def test_a_device_stores_its_share(name, sizes):
    """Parameters, EMA and optimiser: an eighth of the bytes, expert or not."""
    config = preset(name)
    mesh = build_mesh(MeshConfig(*sizes))
    check_mesh(mesh, config.model)
    state = abstract_state(config.model, config.train, mesh)
    for part in (state, {k: v for k, v in state.parameters.items() if "experts" not in k}):
        leaves = jax.tree.leaves(part)
        total = sum(leaf.size for leaf in leaves)
        share = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
        assert total / 8 <= share < 1.15 * total / 8
    w_in = next(v for k, v in state.parameters.items() if k.endswith("feed_forward.experts.w_in"))
    _, fsdp, expert, tensor = sizes
    _, num_experts, width, inner = w_in.shape
    by_expert = 1 if num_experts % expert else expert
    shape = (num_experts // by_expert, width // (8 // by_expert), inner)
    assert w_in.sharding.shard_shape(w_in.shape)[1:] == shape
    assert fsdp * expert * tensor == 8


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh needs to know of a device."""

    id: int
    process_index: int
    device_kind: str = "cpu"
    platform: str = "cpu"


@pytest.mark.parametrize("sizes", [(8, 1, 1, 1), (2, 2, 2, 1), (1, 1, 4, 2)])
def test_a_process_has_a_contiguous_part_of_the_batch(sizes):
    devices = [Device(id, process_index=id // 2 % 4) for id in (5, 2, 7, 0, 3, 1, 4, 6)]
    mesh = build_mesh(MeshConfig(*sizes), devices)
    assert mesh.devices.shape == sizes
    order = [(device.process_index, device.id) for device in mesh.devices.flat]
    assert order == [(id // 2, id) for id in range(8)]


def test_processes_of_unlike_sizes_are_refused():
    devices = [Device(id, process_index=id // 5) for id in range(8)]
    with pytest.raises(ConfigError, match="some processes have 3 devices and some 5; allowed: as"):
        build_mesh(MeshConfig(), devices)


@dataclasses.dataclass(frozen=True)
class SliceDevice(Device):
    """One that tells which devices fast links join."""

    slice_index: int = 0


@pytest.mark.parametrize(
    ("sizes", "devices", "expected"),
    [
        ((1, 1, 8), [Device(id, id // 4) for id in range(8)], 4),
        ((1, 1, 4, 2), [Device(id, id // 4) for id in range(8)], 2),
        ((2, 1, 4), [Device(id, id // 4) for id in range(8)], 1),
        ((1, 1, 8), [Device(id, id) for id in range(8)], 1),
        # A process for each of a host's two, and several hosts that share a network of their own.
        ((1, 1, 8), [SliceDevice(id, id, slice_index=id // 2) for id in range(8)], 2),
        ((1, 1, 8), [SliceDevice(id, id // 4) for id in range(8)], 1),
    ],
)
def test_neighbours_are_found_where_the_experts_go_beyond_a_host(sizes, devices, expected):
    mesh = build_mesh(MeshConfig(*sizes), devices)
    model = tiny(dataclasses.replace(DIT_MOE, num_experts=8)).model
    assert with_neighbours(model, mesh) is model
    open_model = dataclasses.replace(model, exchange_within=None)
    check_mesh(mesh, open_model)
    assert with_neighbours(open_model, mesh).exchange_within == expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"data": 3, "expert": 2},
            "config.mesh is data 3 x fsdp 1 x expert 2 on 8 devices; "
            "allowed: sizes whose product is 8",
        ),
        (
            {"expert": 8},
            "config.mesh.expert is 8 with model.moe.num_experts 4 on 8 devices; allowed: 1, 2, 4",
        ),
        (
            {"fsdp": 4, "expert": 2},
            "config.mesh.fsdp is 4 and config.mesh.expert 2 with model.width 20 on 8 devices; "
            "allowed: a product of the two among 1, 2, 4",
        ),
        (
            {"data": 1, "expert": 2, "tensor": 4},
            "config.mesh.fsdp is 1, expert 2 and tensor 4 with model.width 20 on 8 devices; "
            "allowed: a product of the three among 1, 2, 4",
        ),
        (
            {"tensor": 8},
            "config.mesh.tensor is 8 with experts of 20 hidden units on 8 devices; "
            "allowed: 1, 2, 4",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
    model = dataclasses.replace(tiny(PROMOE).model, width=20)
    with pytest.raises(ConfigError) as error:
        check_mesh(build_mesh(MeshConfig(**sizes)), model)
    assert str(error.value) == message


def test_a_dense_model_has_no_expert_axis():
    mesh = build_mesh(MeshConfig(expert=2))
    with pytest.raises(ConfigError, match=r"expert is 2 with a dense model .* allowed: 1$"):
        check_mesh(mesh, tiny(None).model)
    check_mesh(build_mesh(MeshConfig(fsdp=8)), tiny(None).model)


def test_one_size_is_free():
    assert build_mesh(MeshConfig(data=2, fsdp=1, expert=-1)).shape["expert"] == 4
    with pytest.raises(ValueError, match="fsdp, expert are all -1; allowed: -1 for one of them"):
        MeshConfig(data=1, fsdp=-1, expert=-1)
    with pytest.raises(ValueError, match="expert is 0; allowed: -1 or a positive number"):
        MeshConfig(expert=0)


@pytest.mark.slow
def test_a_state_saved_on_eight_devices_goes_on_elsewhere(tmp_path):
    """On 1, 2 and 4 devices and other axes: the same losses."""
    config = tiny(DIT_MOE)

    def losses(state, mesh: Mesh) -> tuple[TrainState, list[float]]:
        with jax.set_mesh(mesh):
            step = jax.jit(build_step(config.model, config.objective, config.train, config.seed))
            arrays, found = jax.device_put(batch(16), batch_sharding(mesh)), []
            for _ in range(3):
                state, metrics = step(state, *arrays)
                found.append(float(metrics["loss"]))
        return state, found

    mesh = build_mesh(MeshConfig(data=2, fsdp=2, expert=2))
    with jax.set_mesh(mesh):
        state, _ = losses(init_state(config.model, config.train, mesh, config.seed), mesh)
        with Checkpoints(tmp_path, keep=1) as checkpoints:
            checkpoints.save(state)
    _, expected = losses(state, mesh)
    for sizes in [(1, 1, 1, 1), (1, 1, 2, 1), (1, 4, 1, 1), (1, 1, 2, 4)]:
        other = build_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])
        with Checkpoints(tmp_path) as checkpoints:
            like = abstract_state(config.model, config.train, other)
            restored = checkpoints.restore(3, like)
        _, actual = losses(restored, other)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, err_msg=str(sizes))
