"""Experts spread over eight devices against the reference on one."""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dit_moe.config import EXPERTS, ConfigError, MeshConfig
from dit_moe.devices.mesh import build_mesh, check_mesh, parameter_shardings
from dit_moe.models.dit import DiT
from dit_moe.models.watched import moe_layers
from dit_moe.moe import layer
from dit_moe.moe.exchange import DIRECT, Travel
from dit_moe.moe.expert_parallel import dispatch_to_shards, make_plan, round_rows
from dit_moe.moe.routing import Routing
from dit_moe.moe.statistics import expert_traffic
from dit_moe.nn.feed_forward import ExpertWeights
from dit_moe.plan.traffic import flat, hierarchical
from tests.moe.dispatch_contract import assert_close, make_experts, make_routing, value_and_grads
from tests.tiny import DIT_MOE, tiny

WIDTH, HIDDEN, TOKENS, TOP_K = 16, 24, 64, 2
AXES = {
    "w_in": ("expert", "embed", "mlp"),
    "w_out": ("expert", "mlp", "embed"),
    "b_in": ("expert", "mlp"),
    "b_out": ("expert", "embed"),
}
# Mesh sizes, experts (9 and 5 do not divide: the last is an unconditional one), activation, dtype.
SETUPS = {
    "8 devices for 8 experts": ((1, 1, 8, 1), 8, "swiglu", jnp.float32),
    "all axes": ((2, 2, 2, 1), 8, "swiglu", jnp.float32),
    "5 experts on 2 devices": ((2, 2, 2, 1), 5, "gelu", jnp.float32),
    "9 experts on 4 devices": ((1, 2, 4, 1), 9, "gelu", jnp.bfloat16),
    "slices of 8 experts": ((1, 2, 2, 2), 8, "swiglu", jnp.float32),
    "slices of 5 experts on 2 devices": ((1, 1, 2, 4), 5, "gelu", jnp.float32),
}
LOADS = ["uniform", "zipf", "all to the first", "all to the last", "none", "all weights 0"]


def inputs(num_experts: int, activation: str, dtype: Any, load: str) -> tuple[Any, ...]:
    """Tokens, their routing, experts with biases for gelu, and a cotangent."""
    rng = np.random.default_rng(0)
    experts = make_experts(rng, num_experts, WIDTH, HIDDEN, activation, activation == "gelu")
    num = TOKENS * TOP_K
    weight = rng.random(num) * (load != "all weights 0")
    match load:
        case "zipf":
            share = 1 / np.arange(1, num_experts + 1)
            expert = rng.choice(num_experts, num, p=share / share.sum())
        case "all to the first":
            expert = np.zeros(num)
        case "all to the last":
            expert = np.full(num, num_experts - 1)
        case "none":
            expert = num_experts + np.arange(num) % 3
        case _:
            expert = rng.integers(num_experts, size=num)
    token = np.repeat(np.arange(TOKENS), TOP_K)
    routing = make_routing(token, expert, weight, TOKENS, num_experts)
    x, cotangent = (jnp.asarray(rng.normal(size=(TOKENS, WIDTH)), dtype) for _ in range(2))
    return x, routing, experts, cotangent


def stored(mesh: Mesh, experts: ExpertWeights) -> ExpertWeights:
    """The shardings in which the trainer stores these weights."""
    arrays = {name: w for name in AXES if (w := getattr(experts, name)) is not None}
    return dataclasses.replace(experts, **parameter_shardings(mesh, arrays, AXES))  # pyright: ignore[reportArgumentType]


def over_mesh(
    x: jax.Array,
    routing: Routing,
    experts: ExpertWeights,
    cotangent: jax.Array,
    travel: Travel = DIRECT,
) -> Any:
    """The layer's dispatch and its gradients, as `value_and_grads` of test_dispatch.py."""

    def run(x: jax.Array, weight: jax.Array, experts: ExpertWeights) -> jax.Array:
        routed = dataclasses.replace(routing, weight=weight)
        return layer._dispatch_over_mesh(x, routed, experts, TOP_K, travel=travel)

    y, pull = jax.vjp(run, x, routing.weight, experts)
    return y, pull(cotangent)


@functools.cache
def compiled(setup: str) -> tuple[Any, jax.stages.Compiled]:
    """The shardings of all arguments, and `over_mesh` compiled for them."""
    sizes, num_experts, activation, dtype = SETUPS[setup]
    mesh = build_mesh(MeshConfig(*sizes))
    x, routing, experts, cotangent = inputs(num_experts, activation, dtype, "uniform")
    tokens, weights = NamedSharding(mesh, PartitionSpec(mesh.axis_names)), stored(mesh, experts)
    shardings = (tokens, tokens, weights, tokens)
    with jax.set_mesh(mesh):
        run = jax.jit(
            over_mesh, in_shardings=shardings, out_shardings=(tokens, (tokens, tokens, weights))
        )
        return shardings, run.lower(x, routing, experts, cotangent).compile()


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("setup", SETUPS)
def test_values_and_gradients_are_those_of_one_device(setup: str, load: str) -> None:
    _, num_experts, activation, dtype = SETUPS[setup]
    arrays = inputs(num_experts, activation, dtype, load)
    shardings, run = compiled(setup)
    y, gradients = run(*jax.device_put(arrays, shardings))
    if dtype == jnp.bfloat16:
        x, routing, experts, cotangent = arrays
        arrays = x.astype(jnp.float32), routing, experts, cotangent.astype(jnp.float32)
    expected_y, expected_gradients = value_and_grads(*arrays, "reference")
    assert_close(y, expected_y, 1e-5 if dtype == jnp.float32 else 2e-2)
    assert_close(gradients, expected_gradients, 1e-4 if dtype == jnp.float32 else 2e-2)


def collectives(program: jax.stages.Compiled, kind: str) -> list[tuple[int, ...]]:
    """The shapes of all results of the collectives of one kind in a compiled program."""
    results = re.findall(rf"= (.*) {kind}(?:-start)?\(", program.as_text() or "")
    shapes = re.findall(r"\w+\[([\d,]+)\]", " ".join(results))
    return [tuple(map(int, shape.split(","))) for shape in shapes]


@pytest.mark.parametrize("setup", SETUPS)
def test_tokens_travel_and_no_device_gathers_the_experts(setup: str) -> None:
    (*_, shards, slices), num_experts, activation, _ = SETUPS[setup]
    (_, _, weights, _), run = compiled(setup)
    num = TOKENS * TOP_K // 8  # assignments of a device
    slot = (1, round_rows(num, num, shards), WIDTH)
    # Forward: there and back. Backward: tokens and gradients there, gradients back.
    assert collectives(run, "all-to-all").count(slot) == 5 * shards

    stack = (num_experts, WIDTH, HIDDEN * (2 if activation == "swiglu" else 1))
    share = num_experts * WIDTH * stack[2] // shards // slices
    shown = (slices * shards, *slot[1:])
    gathers = [shape for shape in collectives(run, "all-gather") if shape != shown]
    assert all(math.prod(shape) <= share for shape in gathers)
    # The search does find such a gather where there is one.
    everywhere = NamedSharding(weights.w_in.mesh, PartitionSpec())
    whole = jax.jit(jnp.copy, in_shardings=weights.w_in, out_shardings=everywhere)
    assert stack in collectives(whole.lower(jnp.ones(stack)).compile(), "all-gather")


@pytest.mark.parametrize("setup", [setup for setup in SETUPS if "slices" in setup])
def test_slices_of_experts_travel_as_counted(setup: str) -> None:
    """Rows to the devices with other slices and sums back, and parts of the width for slices of the
    hidden units: bytes as the closed forms have them."""
    (_, fsdp, shards, slices), num_experts, activation, _ = SETUPS[setup]
    _, run = compiled(setup)
    num = TOKENS * TOP_K // 8
    slot = (shards, round_rows(num, num, shards), WIDTH)
    shown = (slices * slot[0], *slot[1:])
    # Forward: there and back. Backward: tokens and gradients there, gradients back.
    assert collectives(run, "all-gather").count(shown) == 3
    assert collectives(run, "reduce-scatter").count(slot) == 2

    per_expert = EXPERTS[activation].in_matrices * HIDDEN * WIDTH, HIDDEN * WIDTH
    by_expert = num_experts if num_experts % shards else num_experts // shards
    split = shards * fsdp * slices if num_experts % shards else fsdp * slices
    parts = [by_expert * size // split // slices for size in per_expert]
    swaps = [s for s in collectives(run, "all-to-all") if len(s) == 5]
    # Each forward and, of its gradient, backward; to all but itself.
    for part in parts:
        assert sum(math.prod(s) == part for s in swaps) == 2 * slices * parts.count(part)
    assert len(swaps) == 4 * slices


@pytest.mark.parametrize(
    ("load", "expected"),
    # A slot has 1.25 times the rows of an even load.
    [("even", 1), ("all to the first", 7), ("all to the last", 7), ("none", 0)],
)
def test_number_of_rounds(load: str, expected: int) -> None:
    mesh = build_mesh(MeshConfig(data=1, expert=8))
    num = 64  # assignments of a device
    if load == "even":
        expert = np.arange(8 * num) % 8
    else:
        expert = np.full(8 * num, {"all to the first": 0, "all to the last": 7, "none": 8}[load])
        if load != "none":
            expert[num:] = 8  # one device alone sets the pace of all

    def rounds(expert_A: jax.Array) -> jax.Array:
        plan = make_plan(expert_A, 1, mesh.axis_names)
        return plan.rounds(round_rows(num, num, 8))[None]

    with jax.set_mesh(mesh):
        specs = PartitionSpec(mesh.axis_names), PartitionSpec(None)
        run = jax.jit(jax.shard_map(rounds, in_specs=specs[0], out_specs=specs[1]))
        assert run(jnp.asarray(expert, jnp.int32)).item() == expected
    assert round_rows(num, num, 8) == 10


def test_several_rounds_of_an_even_load_stand_in_line() -> None:
    """Two forward and three backward, whatever the load, and others in a loop after them."""
    mesh, travel = build_mesh(MeshConfig(data=2, expert=4)), Travel(forward=2, backward=3)
    x, routing, experts, cotangent = inputs(8, "swiglu", jnp.float32, "uniform")
    num = TOKENS * TOP_K // 8
    slots = [(1, round_rows(num, num, 4, n), WIDTH) for n in (2, 3)]
    assert slots == [(1, 3, WIDTH), (1, 2, WIDTH)]
    with jax.set_mesh(mesh):
        run = jax.jit(functools.partial(over_mesh, travel=travel))
        program = run.lower(x, routing, experts, cotangent).compile()
        found = collectives(program, "all-to-all")
        # There and back; tokens and gradients there, gradients back.
        assert found.count(slots[0]) == 2 * (2 + 1) * 4
        assert found.count(slots[1]) == 3 * (3 + 1) * 4
        for load in LOADS:
            arrays = inputs(8, "swiglu", jnp.float32, load)
            y, gradients = run(*arrays)
            expected_y, expected = value_and_grads(*arrays, "reference")
            assert_close(y, expected_y, 1e-5)
            assert_close(gradients, expected, 1e-4)


@pytest.mark.parametrize("within", [2, 4])
def test_two_steps_are_one_to_the_bit_and_as_counted(within: int) -> None:
    """Eight devices as hosts of two or four; bytes and messages as the closed forms have them."""
    mesh = build_mesh(MeshConfig(data=1, expert=8))
    arrays = inputs(8, "swiglu", jnp.float32, "zipf")
    with jax.set_mesh(mesh):
        results = []
        for travel in (DIRECT, Travel(within=within)):
            run = jax.jit(functools.partial(over_mesh, travel=travel))
            results.append((run(*arrays), run.lower(*arrays).compile()))
    (direct, one), (relayed, two) = results
    jax.tree.map(np.testing.assert_array_equal, relayed, direct)

    num = TOKENS * TOP_K // 8
    rows, hosts = round_rows(num, num, 8), 8 // within
    size = 8 * rows * WIDTH * 4  # bytes of all slots of a device
    flat_form, two_form = (form(size, 8, within) for form in (flat, hierarchical))
    # Forward: there and back. Backward: tokens and gradients there, gradients back.
    slots = [shape for shape in collectives(one, "all-to-all") if shape[-2:] == (rows, WIDTH)]
    assert len(slots) == 5 * 8
    assert len(slots) / 5 - 1 == flat_form.messages
    assert 4 * math.prod(slots[0]) * 7 == flat_form.inside + flat_form.between
    parts = [shape for shape in collectives(two, "all-to-all") if shape[-2:] == (rows, WIDTH)]
    inside = [shape for shape in parts if shape[:2] == (hosts, 1)]
    between = [shape for shape in parts if shape[:2] == (1, within)]
    assert (len(inside), len(between)) == (5 * within, 5 * hosts)
    assert within - 1 + hosts - 1 == two_form.messages
    assert 4 * math.prod(inside[0]) * (within - 1) == two_form.inside
    assert 4 * math.prod(between[0]) * (hosts - 1) == two_form.between == flat_form.between


def test_a_config_says_how_its_tokens_travel() -> None:
    fields = {"forward_rounds": 2, "backward_rounds": 3, "exchange_within": 4}
    config = dataclasses.replace(tiny().model, **fields)
    model = nnx.eval_shape(lambda: DiT(config, nnx.Rngs(0)))
    assert [moe.travel for moe in moe_layers(model)] == [Travel(2, 3, 4)]
    config = dataclasses.replace(config, moe=dataclasses.replace(DIT_MOE, num_experts=8))
    check_mesh(build_mesh(MeshConfig(data=1, expert=8)), config)
    with pytest.raises(ConfigError, match="exchange_within is 4 with"):
        check_mesh(build_mesh(MeshConfig(data=4, expert=2)), config)


def test_rows_of_a_round() -> None:
    # Without the axis "expert" too a share a little above the usual one takes one round.
    assert round_rows(64, 8 * 64, 1) == 80
    assert round_rows(64, 70, 1) == 70
    assert round_rows(64, 512, 8, 3) == 4


def ragged_all_to_all(
    operand: jax.Array,
    output: jax.Array,
    input_offsets: jax.Array,
    send_sizes: jax.Array,
    output_offsets: jax.Array,
    recv_sizes: jax.Array,
    *,
    axis_name: str,
) -> jax.Array:
    """What JAX documents of `lax.ragged_all_to_all`, which does not run on CPU."""
    gather = functools.partial(lax.all_gather, axis_name=axis_name)
    operands, starts, sizes, targets = map(
        gather, (operand, input_offsets, send_sizes, output_offsets)
    )
    me, row = lax.axis_index(axis_name), jnp.arange(len(operand))
    # Sizes that do not match are undefined behaviour; here they spoil the result.
    output = jnp.where((sizes[:, me] == recv_sizes).all(), output, jnp.nan)
    for device in range(lax.axis_size(axis_name)):
        target = jnp.where(row < sizes[device, me], targets[device, me] + row, len(output))
        source = operands[device].at[starts[device, me] + row].get(mode="clip")
        output = output.at[target].set(source, mode="drop")
    return output


def test_ragged_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lax, "ragged_all_to_all", ragged_all_to_all)
    to_shards = functools.partial(dispatch_to_shards, backend="ragged")
    monkeypatch.setattr(layer, "dispatch_to_shards", to_shards)
    arrays = inputs(8, "swiglu", jnp.float32, "zipf")
    with jax.set_mesh(build_mesh(MeshConfig(data=2, expert=4))):
        actual = jax.jit(over_mesh)(*arrays)
    assert_close(actual, value_and_grads(*arrays, "reference"), 1e-5)


def test_ragged_exchange_lowers_for_tpu_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    to_shards = functools.partial(dispatch_to_shards, backend="ragged")
    monkeypatch.setattr(layer, "dispatch_to_shards", to_shards)
    arrays = inputs(8, "swiglu", jnp.bfloat16, "uniform")
    with jax.set_mesh(build_mesh(MeshConfig(data=2, expert=4))):
        traced = jax.jit(over_mesh).trace(*arrays)
    for platform in ("tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        # Forward: there and back. Backward: tokens, weights and gradients there; two back.
        assert text.count("ragged_all_to_all") == 7


def test_expert_traffic_is_counted_by_device() -> None:
    """By hand: 2 x 2 devices, 4 assignments each, 3 experts padded to 4, two on each place."""
    expert = np.array([[0, 1, 2, 2], [0, 0, 0, 0], [2, 2, 0, 1], [2, 2, 1, 2]]).ravel()
    # Devices 0 and 2 hold experts 0 and 1, devices 1 and 3 expert 2.
    routing = make_routing(np.arange(16), expert, np.ones(16), 16, 3)
    stack = jax.tree.map(lambda a: a[None], routing)
    mesh = build_mesh(MeshConfig(data=2, expert=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        traffic = expert_traffic(stack, [np.arange(3)])
    np.testing.assert_allclose(traffic["sent"], [(2 + 4 + 2 + 1) / 16])
    np.testing.assert_allclose(traffic["received_largest"], [9 / 16])
    assert expert_traffic(stack, [np.arange(3)]) == {}
    # Slots without an expert do not travel.
    unused = dataclasses.replace(stack, expert=stack.expert.at[:, :8].set(4))
    with jax.set_mesh(mesh):
        traffic = expert_traffic(unused, [np.arange(3)])
    np.testing.assert_allclose(traffic["sent"], [(2 + 1) / 8])
    np.testing.assert_allclose(traffic["received_largest"], [5 / 8])
