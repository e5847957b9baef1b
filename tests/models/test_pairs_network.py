"""Pairs of images in one network: what it says before it has learnt, and what it must not mix."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import ConfigError, DataConfig, PairsConfig
from dit_moe.config.pairs import CombinedPairsConfig
from dit_moe.config.presets import preset
from dit_moe.models.parameter_counts import parameter_counts
from dit_moe.models.parameters import functional, init_parameters
from dit_moe.nn.flat import variables
from dit_moe.nn.joint_attention import JointAttention
from dit_moe.pairs.combine import combine
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


COMBINED = (PAIRS, PairsConfig(rank=2, aligned=False, adapt_second=False))


@pytest.fixture(scope="module")
def members():
    """Two configs of runs on pairs with the same model of single images, and their parameters."""
    base = away(init_parameters(model(DIT_MOE, None), jax.random.key(0)))
    found = []
    for number, pairs in enumerate(COMBINED):
        config = dataclasses.replace(
            tiny(DIT_MOE), model=model(DIT_MOE, pairs), data=DataConfig("digits", pair="blur")
        )
        learnt = away(init_parameters(config.model, jax.random.key(1)), 2 + number)
        found.append((config, {**learnt, **base}))
    return found


def test_one_model_combined_is_itself(members):
    for config, parameters in members:
        combined, found = combine([(config, parameters)], [1.0], ["one"])
        assert found.keys() == parameters.keys()
        expected = value(config.model, parameters)
        np.testing.assert_array_equal(value(combined.model, found), expected)


def test_combined_models_add_up_in_the_first_image(members):
    """Of a block: the first image has the weighted sum of what it finds in each second one, and a
    second one what it finds in the first, whatever others there are."""
    (one, _), (two, _) = members
    config = dataclasses.replace(
        one.model, pairs=CombinedPairsConfig(rank=4, models=COMBINED, weights=(0.7, 0.2))
    )
    attention = JointAttention(config, config.pairs, nnx.Rngs(0))
    for number, (_, p) in enumerate(sorted(variables(attention).items())):
        p[...] = p[...] + 0.3 * jax.random.normal(jax.random.key(number), p.shape)
    x = jax.random.normal(jax.random.key(9), (2, 3, 5, 16))
    scale = 0.5
    actual = attention(x.reshape(6, 5, 16), joint_scale=scale).reshape(x.shape)
    first = 0.0
    for number, (each, weight) in enumerate(((one, 0.7), (two, 0.2))):
        alone = JointAttention(each.model, each.model.pairs, nnx.Rngs(1))
        alone.qkv, alone.out = attention.qkv, attention.out
        alone.joint = (attention.joint, attention.others[0])[number]
        rows = x[:, [0, 1 + number]].reshape(4, 5, 16)
        apart = alone(rows, joint_scale=0.0).reshape(2, 2, 5, 16)
        joined = alone(rows, joint_scale=scale).reshape(2, 2, 5, 16)
        np.testing.assert_allclose(actual[:, 1 + number], joined[:, 1], atol=1e-5)
        first += weight * (joined - apart)[:, 0]
    np.testing.assert_allclose(actual[:, 0], apart[:, 0] + first, atol=1e-5)


def test_two_of_equal_kind_average(members):
    """Of the same second image each draws the same, and weights that sum to 1 change nothing."""
    (config, parameters), _ = members
    combined, found = combine([members[0]] * 2, (0.3, 0.7), ["one", "one"])
    twice = np.array([0, 1, 1, 2, 3, 3, 4, 5, 5])
    actual = value(combined.model, found, X[twice], T_N[twice], Y_N[twice])
    expected = value(config.model, parameters)
    np.testing.assert_allclose(actual, expected[twice], atol=1e-5)


def test_with_weights_of_zero_the_first_image_is_the_base(members):
    names = ["one", "two"]
    three = jax.random.normal(jax.random.key(4), (6, 8, 8, 1))
    base = dataclasses.replace(members[0][0].model, pairs=None)
    parameters = {p: members[0][1][p] for p in init_parameters(base, jax.random.key(0))}
    for weights, equal in (((0.0, 0.0), True), ((0.0, 1.0), False)):
        combined, found = combine(members, weights, names)
        actual = value(combined.model, found, three)[::3]
        expected = value(base, parameters, three[::3], T_N[::3], Y_N[::3])
        assert np.allclose(actual, expected, atol=1e-6) == equal


def test_combining_needs_one_model_of_single_images(members):
    (one, parameters), (two, theirs) = members
    path = "patch_in.kernel"
    changed = {**theirs, path: theirs[path] + 1e-3}
    with pytest.raises(ConfigError, match=r"others has 'b', whose model .* 'a', such as in patch"):
        combine([(one, parameters), (two, changed)], [1, 1], ["a", "b"])
    other = dataclasses.replace(two, model=dataclasses.replace(two.model, qk_norm_epsilon=0.1))
    with pytest.raises(ConfigError, match=r"not that of 'a', in config\.json; allowed: runs that"):
        combine([(one, parameters), (other, theirs)], [1, 1], ["a", "b"])


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
    with pytest.raises(ConfigError, match="x has 5 images; allowed: a multiple of 2, as"):
        network(X[:5], T_N[:5], Y_N[:5])
