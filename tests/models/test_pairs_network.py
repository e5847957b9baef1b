"""Pairs of images in one network: what it says before it has learnt, and what it must not mix."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import ConfigError, PairsConfig
from dit_moe.config.presets import preset
from dit_moe.models.parameters import functional, init_parameters
from dit_moe.nn.joint_attention import JointAttention
from dit_moe.plan.parameters import parameter_counts
from tests.tiny import DIT_MOE, PROMOE, tiny

PAIRS = PairsConfig(rank=4)
X = jax.random.normal(jax.random.key(0), (6, 8, 8, 1))
T_N = jnp.linspace(0.1, 0.9, 6)
Y_N = jnp.array([0, 0, 3, 10, 10, 7], jnp.int32)
OTHER = jnp.array([1, 0, 3, 2, 5, 4])


def model(moe=DIT_MOE, pairs=PAIRS, **fields):
    return dataclasses.replace(tiny(moe).model, pairs=pairs, **fields)


def away(parameters, key=1):
    """Without the zeros of the initialisation, which hide everything behind them."""
    keys = jax.random.split(jax.random.key(key), len(parameters))
    return {
        path: p + 0.1 * jax.random.normal(k, p.shape)
        for k, (path, p) in zip(keys, sorted(parameters.items()), strict=True)
    }


@pytest.fixture(scope="module", params=[None, DIT_MOE, PROMOE], ids=["dense", "dit", "promoe"])
def networks(request):
    """The base and its parameters, and the pairs' network with what is new at its start."""
    base = model(request.param, None, qk_norm=True)
    parameters = away(init_parameters(base, jax.random.key(0)))
    of_pairs = dataclasses.replace(base, pairs=PAIRS)
    fresh = init_parameters(of_pairs, jax.random.key(2))
    assert parameters.keys() < fresh.keys()
    return base, parameters, of_pairs, {**fresh, **parameters}


def value(model, parameters, x=X, t_N=T_N, y_N=Y_N, **rest):
    call = jax.jit(lambda p, x, t, y: functional(model)(p)(x, t, y, **rest).value)
    return call(parameters, x, t_N, y_N)


def test_at_the_start_it_is_the_base_to_the_bit(networks):
    """Operation by operation; a compiler that fuses them may round the last bit otherwise."""
    base, parameters, of_pairs, whole = networks
    with jax.disable_jit():
        expected = functional(base)(parameters)(X, T_N, Y_N).value
        for scale in (1.0, 0.0):
            actual = functional(of_pairs)(whole)(X, T_N, Y_N, joint_scale=scale).value
            np.testing.assert_array_equal(actual, expected)
    np.testing.assert_allclose(value(of_pairs, whole), expected, atol=1e-6)


def test_without_what_joins_them_each_is_by_itself(networks):
    """Joint scale 0 is two runs: neither the image nor the time nor the class of the other is
    seen; with the joint attention all three are."""
    _, _, of_pairs, whole = networks
    whole = away(whole)
    changed = {
        "x": {"x": X.at[1::2].add(1.0)},
        "t_N": {"t_N": T_N.at[1::2].set(0.33)},
        "y_N": {"y_N": Y_N.at[1::2].set(5)},
    }
    for scale in (0.0, 1.0):
        before = value(of_pairs, whole, joint_scale=scale)
        for name, other in changed.items():
            after = value(of_pairs, whole, joint_scale=scale, **other)
            # Which tokens an expert has beside a token changes how its sums are rounded.
            moved = np.abs(after[::2] - before[::2]).max()
            assert moved < 1e-6 if scale == 0 else moved > 1e-4, (scale, name)
            assert not np.array_equal(after[1::2], before[1::2]), name
    joined, half, none = (value(of_pairs, whole, joint_scale=s) for s in (1.0, 0.5, 0.0))
    assert not np.allclose(half, joined)
    assert not np.allclose(half, none)


@pytest.mark.parametrize("aligned", [True, False])
def test_swapped_pairs_with_swapped_adapters(aligned):
    """First and second are alike, but for what has been learnt for each."""
    of_pairs = model(None, dataclasses.replace(PAIRS, aligned=aligned, adapt_second=False))
    whole = away(init_parameters(of_pairs, jax.random.key(0)))
    swapped = {}
    for path, p in whole.items():
        swapped[path] = p[:, ::-1] if ".joint.both." in path else p
        if aligned and path.endswith(".joint.projection"):
            order = np.r_[16:32, 0:16]
            swapped[path] = p[:, order][:, :, order]
    expected = value(of_pairs, whole)[OTHER]
    actual = value(of_pairs, swapped, X[OTHER], T_N[OTHER], Y_N[OTHER])
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert not np.allclose(value(of_pairs, whole, X[OTHER], T_N[OTHER], Y_N[OTHER]), expected)


def test_what_each_image_finds_in_the_other():
    """The joint attention by its formula, of one block's, in float64."""
    config = model(None, dataclasses.replace(PAIRS, adapt_second=False))
    attention = JointAttention(config, PAIRS, nnx.Rngs(0))
    joint = attention.joint
    for number, p in enumerate((joint.both.qkv.b, joint.both.out.b, joint.projection)):
        p[...] = jax.random.normal(jax.random.key(number), p.shape)
    x = jax.random.normal(jax.random.key(9), (2, 5, 16))

    def matrix(p):
        return np.asarray(p[...], np.float64)

    wide = np.asarray(x, np.float64)
    made = []
    for i in range(2):
        a, b = matrix(joint.both.qkv.a)[i], matrix(joint.both.qkv.b)[i]
        made.append(wide[i] @ (matrix(attention.qkv.kernel) + a @ b))
    found = []
    for i in range(2):
        q = np.split(made[i], 3, axis=-1)[0].reshape(5, 2, 8)
        k, v = (part.reshape(5, 2, 8) for part in np.split(made[1 - i], 3, axis=-1)[1:])
        weights = np.exp(np.einsum("shk,thk->hst", q, k) / np.sqrt(8))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("hst,thk->shk", weights, v).reshape(5, 16)
        a, b = matrix(joint.both.out.a)[i], matrix(joint.both.out.b)[i]
        found.append(mixed @ (matrix(attention.out.kernel) + a @ b))
    projected = np.split(np.concatenate(found, -1) @ matrix(joint.projection), 2, axis=-1)
    alone = attention(x, joint_scale=0.0)
    np.testing.assert_allclose(attention(x) - alone, np.stack(projected), atol=1e-4)
    np.testing.assert_allclose(
        attention(x, joint_scale=0.5) - alone, 0.5 * np.stack(projected), atol=1e-4
    )


def test_what_it_costs():
    """About 15% more parameters, of a published size with experts; and what is for pairs alone."""
    base = preset("DiT-XL/2").model
    whole = parameter_counts(base).total
    together, apart = (
        parameter_counts(dataclasses.replace(base, pairs=PairsConfig(aligned=aligned))).total
        for aligned in (True, False)
    )
    assert 0.2 < together / whole - 1 < 0.28
    assert 0.05 < apart / whole - 1 < 0.12


def test_what_cannot_be():
    with pytest.raises(ValueError, match=r"pairs\.rank is 17; allowed: 1 to the width 16"):
        model(None, PairsConfig(rank=17))
    with pytest.raises(ValueError, match=r"label_dropout is 0\.5 with pairs"):
        model(None, PAIRS, label_dropout=0.5)
    network = functional(model(None))(init_parameters(model(None), jax.random.key(0)))
    with pytest.raises(ConfigError, match="x has 5 images; allowed: pairs, an even number"):
        network(X[:5], T_N[:5], Y_N[:5])
