"""Properties of the network that no fixture covers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dit_moe
from dit_moe.config import BatchPoolRouterConfig, ConfigError
from dit_moe.models.dit import DiT
from dit_moe.models.parameters import (
    abstract_parameters,
    get_parameters,
    logical_axes,
)
from dit_moe.nn.attention import Attention, rotate
from dit_moe.nn.embeddings import (
    drop_labels,
    patchify,
    position_embedding,
    rotary_angles,
    timestep_features,
    unpatchify,
)
from dit_moe.nn.flat import bind
from tests.tiny import DIFFMOE, DIT_MOE, PROMOE, PROMOE_EC, SOFT_MOE, tiny


def randomised(model: DiT) -> DiT:
    """Without the zeros of the initialisation, which hide everything behind them."""
    keys = iter(jax.random.split(jax.random.key(1), 200))
    parameters = get_parameters(model)
    return bind(
        model,
        {p: v + 0.05 * jax.random.normal(next(keys), v.shape) for p, v in parameters.items()},
    )


def inputs(n: int = 3):
    x = jax.random.normal(jax.random.key(0), (n, 8, 8, 1))
    return x, jnp.linspace(0.1, 0.9, n), jnp.arange(n, dtype=jnp.int32)


@pytest.mark.parametrize(("qk_norm", "epsilon"), [(False, 1e-5), (True, 1e-5), (True, 0.1)])
def test_attention(qk_norm, epsilon):
    config = dataclasses.replace(tiny().model, qk_norm=qk_norm, qk_norm_epsilon=epsilon)
    # What places parameters on devices knows all their axes.
    axes = {path: len(names) for path, names in logical_axes(config).items()}
    assert axes == {path: p.ndim for path, p in abstract_parameters(config).items()}
    attention = Attention(config, nnx.Rngs(0))
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 5, 16)), np.float64)
    qkv = x @ np.asarray(attention.qkv.kernel[...], np.float64)
    q, k, v = qkv.reshape(2, 5, 3, 2, 8).transpose(2, 0, 3, 1, 4)
    if qk_norm:
        q, k = (
            (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + epsilon)
            for a in (q, k)
        )
    logits = q @ k.transpose(0, 1, 3, 2) / np.sqrt(8)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    mixed = (weights @ v).transpose(0, 2, 1, 3).reshape(2, 5, 16)
    expected = mixed @ np.asarray(attention.out.kernel[...], np.float64)
    np.testing.assert_allclose(attention(jnp.asarray(x, jnp.float32)), expected, atol=1e-5)


def test_rotary_attention():
    """A token's query and key are turned by its place: each pair of features as complex numbers."""
    config = dataclasses.replace(tiny().model, position="rope")  # 4 x 4 tokens, heads of width 8
    attention = Attention(config, nnx.Rngs(0))
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 16, 16)), np.float64)
    qkv = x @ np.asarray(attention.qkv.kernel[...], np.float64)
    q, k, v = qkv.reshape(2, 16, 3, 2, 8).transpose(2, 0, 3, 1, 4)

    def turned(a: np.ndarray) -> np.ndarray:
        place = np.arange(16)
        halves = []
        for half, coordinate in zip(np.split(a, 2, axis=-1), (place // 4, place % 4), strict=True):
            angle = coordinate[:, None] * np.array([1.0, 10000**-0.5])
            z = (half[..., :2] + 1j * half[..., 2:]) * np.exp(1j * angle)
            halves += [z.real, z.imag]
        return np.concatenate(halves, axis=-1)

    logits = turned(q) @ turned(k).transpose(0, 1, 3, 2) / np.sqrt(8)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    mixed = (weights @ v).transpose(0, 2, 1, 3).reshape(2, 16, 16)
    expected = mixed @ np.asarray(attention.out.kernel[...], np.float64)
    angles = rotary_angles((4, 4), 8)
    np.testing.assert_allclose(attention(jnp.asarray(x, jnp.float32), angles), expected, atol=1e-5)
    # Queries and keys of bfloat16 stay so.
    assert (
        rotate(jnp.ones((1, 16, 2, 8), jnp.bfloat16), rotary_angles((4, 4), 8)).dtype
        == jnp.bfloat16
    )


def test_rotary_angles_of_another_grid():
    """Stretched: a place of the picture has the same angle on the finer grid."""
    coarse, fine = rotary_angles((2, 2), 8), rotary_angles((4, 4), 8, (2, 2)).reshape(4, 4, 4)
    np.testing.assert_allclose(fine[::2, ::2].reshape(4, 4), coarse, atol=1e-6)
    with pytest.raises(ValueError, match="heads is 8 with position 'rope' and width 16"):
        dataclasses.replace(tiny().model, position="rope", heads=8)


def test_patches():
    x = np.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    patches = patchify(x, 2)
    assert patches.shape == (2, 4, 12)
    np.testing.assert_array_equal(patches[0, 1].reshape(2, 2, 3), x[0, :2, 2:])
    np.testing.assert_array_equal(unpatchify(patches, (2, 2), 2), x)
    wide = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    np.testing.assert_array_equal(unpatchify(patchify(wide, 2), (2, 3), 2), wide)


def test_positions_of_a_rectangle_are_those_of_its_rows_and_columns():
    square, wide = position_embedding((5, 5), 16), position_embedding((3, 5), 16)
    np.testing.assert_array_equal(wide, square.reshape(5, 5, 16)[:3].reshape(15, 16))
    tall = rotary_angles((5, 2), 8)
    expected = rotary_angles((5, 5), 8).reshape(5, 5, 4)[:, :2].reshape(10, 4)
    np.testing.assert_array_equal(tall, expected)


def test_timestep_features():
    t = np.array([0.0, 0.5, 999.0])
    angle = t[:, None] * np.exp(-np.log(10000) * np.arange(128) / 128)
    expected = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose(timestep_features(jnp.asarray(t)), expected, atol=1e-4)


def test_drop_labels():
    keys = jax.random.split(jax.random.key(0), 4000)
    labels = jnp.arange(4000) % 10
    dropped = drop_labels(keys, labels, 0.1, 10)
    assert ((dropped == 10) | (dropped == labels)).all()
    assert abs(float((dropped == 10).mean()) - 0.1) < 0.02
    np.testing.assert_array_equal(drop_labels(keys[7:], labels[7:], 0.1, 10), dropped[7:])
    np.testing.assert_array_equal(drop_labels(keys, labels, 0.0, 10), labels)


def test_initialisation():
    """Zeros where adaLN-zero asks for them, Xavier uniform for each matrix, else 0.02."""
    model = dataclasses.replace(tiny(DIT_MOE).model, width=64, num_classes=500)
    parameters = get_parameters(DiT(model, nnx.Rngs(0)))
    for path, value in parameters.items():
        if "modulation" in path or path.startswith("patch_out") or path.endswith("bias"):
            assert (value == 0).all(), path
    block = "trunk.segments.0.blocks.0"
    for path, fan_in, fan_out in (
        (f"{block}.attention.qkv.kernel", 64, 192),
        (f"{block}.feed_forward.experts.w_in", 64, 64),  # gate and up are a matrix each
        (f"{block}.feed_forward.experts.w_out", 64, 64),
        ("patch_in.kernel", 4, 64),
    ):
        bound = np.sqrt(6 / (fan_in + fan_out))
        value = np.asarray(parameters[path])
        assert np.abs(value).max() <= bound, path
        np.testing.assert_allclose(value.std(), bound / np.sqrt(3), rtol=0.1, err_msg=path)
    for path in ("label.table", "timestep.dense_in.kernel", "timestep.dense_out.kernel"):
        np.testing.assert_allclose(parameters[path].std(), 0.02, rtol=0.05, err_msg=path)
    first, second = parameters[f"{block}.attention.qkv.kernel"]
    assert (first != second).mean() > 0.99  # layers are drawn apart


@pytest.mark.parametrize("moe", [None, DIT_MOE, PROMOE])
def test_a_fresh_network_predicts_zero(moe):
    model = DiT(tiny(moe).model, nnx.Rngs(0))
    prediction = model(*inputs())
    np.testing.assert_array_equal(prediction.value, 0)
    assert (prediction.routing == ()) == (moe is None)


@pytest.mark.parametrize("moe", [None, DIT_MOE, PROMOE])
def test_bfloat16_computes_near_float32(moe):
    config = tiny(moe).model
    exact = randomised(DiT(config, nnx.Rngs(0)))
    rough = DiT(dataclasses.replace(config, dtype="bfloat16"), nnx.Rngs(0))
    rough = bind(rough, get_parameters(exact))
    expected, actual = exact(*inputs()), rough(*inputs())
    assert all(p.dtype == jnp.float32 for p in get_parameters(rough).values())
    assert actual.value.dtype == jnp.float32
    error = jnp.linalg.norm(actual.value - expected.value) / jnp.linalg.norm(expected.value)
    assert 0 < error < 0.05
    if moe is not None:
        assert actual.routing[0].scores.dtype == jnp.float32


def test_routing_is_stacked_over_moe_layers():
    config = dataclasses.replace(tiny(PROMOE).model, depth=6)
    x, t, _ = inputs(2)
    routing = DiT(config, nnx.Rngs(0))(x, t, jnp.array([3, 10])).routing[0]
    assert routing.expert.shape == (3, 2 * 16)  # odd blocks, two images of 16 tokens, top-1
    assert routing.scores.shape == (3, 2 * 16, 4)
    is_unconditional = routing.expert == 4
    np.testing.assert_array_equal(is_unconditional[:, :16], False)
    np.testing.assert_array_equal(is_unconditional[:, 16:], True)


def largest_difference(model: DiT, *, train: bool = False) -> float:
    """Between an image's prediction beside others and alone."""
    run = nnx.jit(lambda model, *arrays: model(*arrays, train=train).value)
    together, alone = run(model, *inputs()), run(model, *(a[1:2] for a in inputs()))
    return float(jnp.abs(together[1:2] - alone).max())


@pytest.mark.parametrize("moe", [None, DIT_MOE, PROMOE, PROMOE_EC, SOFT_MOE])
def test_an_image_does_not_depend_on_the_others(moe):
    assert largest_difference(randomised(DiT(tiny(moe).model, nnx.Rngs(0)))) < 1e-5


def test_the_pool_of_a_batch_is_for_training_only():
    """A published DiffMoE draws on the pool when it samples, too; `inference` has it so."""

    def build(**settings: Any) -> DiT:
        moe = dataclasses.replace(DIFFMOE, router=BatchPoolRouterConfig(**settings))
        model = randomised(DiT(tiny(moe).model, nnx.Rngs(0)))
        parameters = get_parameters(model)
        # In the middle of the predictions.
        path = "trunk.segments.0.blocks.1.feed_forward.router.threshold"
        return bind(model, parameters | {path: jnp.full_like(parameters[path], 0.5)})

    by_token = build()
    share = (by_token(*inputs()).routing[0].expert < 4).mean()
    assert 0.2 < share < 0.8
    assert largest_difference(by_token) < 1e-5
    assert largest_difference(by_token, train=True) > 1e-3
    assert largest_difference(build(inference="batch")) > 1e-3


def test_create_by_name():
    with pytest.raises(ConfigError, match="preset is 'ProMoE-Q/2'"):
        dit_moe.create("ProMoE-Q/2")
    model = dit_moe.create("DiT-S/2", seed=0)
    prediction = model(jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), jnp.array([1000]))
    assert prediction.value.shape == (1, 32, 32, 8)
    for label in (1001, -1):
        with pytest.raises(ConfigError, match=rf"y_N has {label}; allowed: 0 to 999, and 1000 for"):
            model(jnp.zeros((2, 32, 32, 4)), jnp.zeros(2), jnp.array([3, label]))
