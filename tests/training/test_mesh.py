"""The mesh, what it splits, and that it changes no numbers."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from dit_moe.config import (
    ConfigError,
    CosineRouterConfig,
    MeshConfig,
    NoisyTopKRouterConfig,
    TopKRouterConfig,
)
from dit_moe.config.presets import preset
from dit_moe.devices.mesh import batch_sharding, build_mesh, check_mesh
from dit_moe.runs.checkpoints import Checkpoints
from dit_moe.runs.state import TrainState, abstract_state, init_state
from dit_moe.training.step import build_step
from tests.tiny import (
    ADAMOE,
    DIFFMOE,
    DIT_MOE,
    HECTO,
    MOE_PLUS_PLUS,
    PROMOE,
    PROMOE_EC,
    PYRAMID,
    RACE,
    SOFT_MOE,
    UNLIKE,
    tiny,
)
from tests.training.test_training import assert_close, batch, one_device, run_steps


@pytest.mark.parametrize(
    ("moe", "sizes"),
    [
        (DIT_MOE, (2, 2, 2)),
        (PROMOE, (2, 2, 2)),
        (PROMOE_EC, (2, 2, 2)),
        (DIFFMOE, (2, 2, 2)),
        (DIFFMOE, (4, 2, 1)),
        (ADAMOE, (2, 2, 2)),
        (MOE_PLUS_PLUS, (2, 2, 2)),
        (PYRAMID, (2, 2, 2)),
        (HECTO, (2, 2, 2)),
        (UNLIKE, (2, 2, 2)),
        (dataclasses.replace(DIT_MOE, router=NoisyTopKRouterConfig(z_coef=0.01)), (2, 2, 2)),
        (dataclasses.replace(DIT_MOE, router=CosineRouterConfig(rank=8)), (2, 2, 2)),
        (
            dataclasses.replace(DIT_MOE, router=TopKRouterConfig(gate="sigmoid", bias="share")),
            (2, 2, 2),
        ),
        (dataclasses.replace(DIT_MOE, router=TopKRouterConfig(capacity_factor=1.0)), (2, 2, 2)),
        (SOFT_MOE, (2, 2, 2)),
        (RACE, (2, 2, 2)),
    ],
    ids=[
        "DiT-MoE",
        "ProMoE",
        "ProMoE-EC",
        "DiffMoE",
        "DiffMoE without an expert axis",
        "AdaMoE",
        "MoE++",
        "pyramid",
        "Hecto",
        "unlike experts",
        "noisy",
        "cosine",
        "sigmoid with a bias",
        "capacity",
        "SoftMoE",
        "Expert Race",
    ],
)
def test_experts_on_several_devices_change_no_numbers(moe, sizes):
    """ProMoE's unconditional expert makes five, which two devices do not share evenly. DiffMoE's
    experts choose from all images, so that devices have shares of any size."""
    config = tiny(moe, batch_size=16, beta1=0.0)
    expected, expected_metrics = run_steps(config, one_device())
    actual, metrics = run_steps(config, build_mesh(MeshConfig(*sizes)))
    assert_close(actual, expected, 1e-4)
    for name, value in expected_metrics.items():
        check = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5, err_msg=name)
        jax.tree.map(check, metrics[name], value)


@pytest.mark.parametrize("sizes", [(1, 2, 4), (1, 4, 2)])
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
    fsdp, expert = sizes[1:]
    _, num_experts, width, inner = w_in.shape
    by_expert = 1 if num_experts % expert else expert
    shape = (num_experts // by_expert, width // (8 // by_expert), inner)
    assert w_in.sharding.shard_shape(w_in.shape)[1:] == shape
    assert fsdp * expert == 8


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh needs to know of a device."""

    id: int
    process_index: int
    device_kind: str = "cpu"
    platform: str = "cpu"


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_a_process_has_a_contiguous_part_of_the_batch(sizes):
    devices = [Device(id, process_index=id // 2 % 4) for id in (5, 2, 7, 0, 3, 1, 4, 6)]
    mesh = build_mesh(MeshConfig(*sizes), devices)
    assert mesh.devices.shape == sizes
    order = [(device.process_index, device.id) for device in mesh.devices.flat]
    assert order == [(id // 2, id) for id in range(8)]


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
    for sizes in [(1, 1, 1), (1, 1, 2), (1, 4, 1)]:
        data, fsdp, expert = sizes
        other = build_mesh(
            MeshConfig(data=data, fsdp=fsdp, expert=expert), jax.devices()[: math.prod(sizes)]
        )
        with Checkpoints(tmp_path) as checkpoints:
            like = abstract_state(config.model, config.train, other)
            restored = checkpoints.restore(3, like)
        _, actual = losses(restored, other)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, err_msg=str(sizes))
