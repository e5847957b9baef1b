"""The update of a state whose averages and moments lie in the memory of the host."""

import dataclasses

import jax
import numpy as np
import pytest

from dit_moe.config import ConfigError, SegmentConfig, TopKRouterConfig, TrainConfig
from dit_moe.devices.host_memory import check_memory_kinds
from dit_moe.devices.mesh import build_mesh
from dit_moe.models.frozen import split_learning
from dit_moe.models.parameters import router_prefixes
from dit_moe.plan.memory import device_bytes, host_bytes
from dit_moe.runs.state import TrainState, abstract_state, init_state
from dit_moe.training.update import build_update
from tests.tiny import DIT_MOE, PROMOE, in_segments, tiny

# Two stacks, of one unit and of two, and a router that keeps a bias beside the gradient.
BIASED = dataclasses.replace(DIT_MOE, router=TopKRouterConfig(bias="share"))
MIXTURES = (*in_segments(BIASED), SegmentConfig(4, PROMOE))
BOTH = {"averages_on_host": True, "moments_on_host": True}


def updated(settings: dict[str, object]) -> TrainState:
    """Two updates by made-up gradients, under jit, as one of several devices would do them."""
    config = tiny(MIXTURES, **settings)
    mesh, model, train = build_mesh(config.mesh), config.model, config.train
    with jax.set_mesh(mesh):
        state = init_state(model, train, mesh, config.seed)
        shardings = jax.tree.map(lambda a: a.sharding, abstract_state(model, train, mesh))
        update = jax.jit(build_update(train), donate_argnums=0, out_shardings=shardings)
        bias = f"{router_prefixes(model)[0]}bias"
        for number in range(2):
            learning, _ = split_learning(state.parameters, train)
            key = jax.random.fold_in(jax.random.key(1), number)
            gradient = {path: jax.random.normal(key, p.shape) for path, p in learning.items()}
            state = update(state, gradient, {bias: state.parameters[bias] + 0.5})
    return state


def test_an_update_of_what_lies_on_the_host_is_that_of_the_devices():
    settings = {"post_hoc_ema": (0.05, 0.1), "freeze": ("trunk.segments.1.*", "patch_in.*")}
    expected, actual = updated(settings), updated({**settings, **BOTH})
    leaves = jax.tree.leaves_with_path(expected)
    for (path, value), own in zip(leaves, jax.tree.leaves(actual), strict=True):
        np.testing.assert_array_equal(own, value, err_msg=jax.tree_util.keystr(path))
    kinds = {a.sharding.memory_kind for a in jax.tree.leaves((actual.ema, actual.tracks))}
    assert kinds == {"pinned_host"}
    moments = [a for a in jax.tree.leaves(actual.optimizer) if a.ndim]
    assert moments
    assert {a.sharding.memory_kind for a in moments} == {"pinned_host"}
    on_devices = jax.tree.leaves((actual.parameters, actual.step))
    assert {a.sharding.memory_kind for a in on_devices} == {"device"}
    assert int(actual.step) == 0  # which is counted outside


def test_bytes_of_the_host_are_planned():
    config = tiny(MIXTURES, post_hoc_ema=(0.1,), first_moment_dtype="bfloat16", **BOTH)
    mesh = build_mesh(config.mesh)
    state = abstract_state(config.model, config.train, mesh)
    real = {"device": 0, "pinned_host": 0}
    for a in jax.tree.leaves(state):
        size = np.prod(a.sharding.shard_shape(a.shape), dtype=int) * a.dtype.itemsize
        real[a.sharding.memory_kind] += size
    planned = config.model, config.train, mesh.abstract_mesh
    parts = device_bytes(*planned, fused_attention=False)
    counters = 3 * 4  # the step's number and two of the optimiser
    assert parts["parameters"] + parts["EMA"] + parts["optimizer"] + counters == real["device"]
    assert host_bytes(*planned) == real["pinned_host"]
    assert host_bytes(config.model, tiny().train, mesh.abstract_mesh) == 0


@dataclasses.dataclass(frozen=True)
class _Memory:
    kind: str


class _Device:
    device_kind = "abacus"

    def addressable_memories(self):
        return [_Memory("device"), _Memory("beads")]


def test_devices_that_do_not_reach_their_hosts_memory_are_told():
    train = TrainConfig(moments_on_host=True)
    with pytest.raises(ConfigError) as error:
        check_memory_kinds(train, [_Device()])  # pyright: ignore[reportArgumentType]
    assert str(error.value) == (
        "config.train.moments_on_host is true on 'abacus', which knows the memory device, beads, "
        "not pinned_host; allowed: false there"
    )
    check_memory_kinds(TrainConfig(), [_Device()])  # pyright: ignore[reportArgumentType]
    check_memory_kinds(train, jax.local_devices())
