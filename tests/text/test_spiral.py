"""The network of texts: who reads whom, and what rounding gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import ConfigError, MoEConfig
from dit_moe.config.routers import TopKRouterConfig
from dit_moe.text.config import TextConfig, TextDiffusionConfig, TextModelConfig
from dit_moe.text.network import SpiralText, functional, init_parameters
from dit_moe.text.start import plain

V, N = 11, 2
MODEL = TextModelConfig(
    width=16, depth=2, heads=2, source_length=5, target_length=4, embedding_width=8
)
MOE = MoEConfig(
    router=TopKRouterConfig(), num_experts=3, top_k=1, hidden_ratio=1.0, shared_hidden_ratio=0.0
)
CONFIG = TextConfig(model=MODEL, diffusion=TextDiffusionConfig(times=50))


@functools.cache
def network(**fields) -> SpiralText:
    """With parameters away from their start, where gates would be 0."""
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, **fields))
    parameters = init_parameters(config, V, jax.random.key(0))
    moved = {
        path: value + 0.1 * jax.random.normal(jax.random.fold_in(jax.random.key(1), i), value.shape)
        for i, (path, value) in enumerate(sorted(parameters.items()))
    }
    return functional(config, V)(moved)


SOURCE = jnp.asarray(np.random.default_rng(0).integers(0, V, (N, 5)))
TIMES = jnp.array([3, 40])


def predict(net: SpiralText, x: jax.Array, t: jax.Array = TIMES):
    return net(net.read(SOURCE), x, t, jnp.zeros_like(x))


X, OTHER_X = np.random.default_rng(1).normal(size=(2, N, 4, 8)).astype(np.float32)


@pytest.mark.parametrize("moe", [None, MOE])
def test_with_the_flow_cut_the_encoder_knows_nothing_of_the_target(moe):
    net = network(cut=True, moe=moe)
    one, other = predict(net, X), predict(net, OTHER_X, TIMES + 5)
    np.testing.assert_array_equal(one.encoded, other.encoded)
    np.testing.assert_array_equal(one.encoded, net.read(SOURCE).stream.x)
    assert not np.array_equal(one.value, other.value)
    gradient = jax.grad(lambda x: jnp.square(predict(net, x).encoded).sum())(jnp.asarray(X))
    assert (np.asarray(gradient) == 0).all()


@pytest.mark.parametrize("moe", [None, MOE])
def test_the_spiral_encoder_reads_the_target_and_its_time(moe):
    net = network(moe=moe)
    one = predict(net, X)
    assert not np.array_equal(one.encoded, predict(net, OTHER_X).encoded)
    assert not np.array_equal(one.encoded, predict(net, X, TIMES + 5).encoded)
    gradient = jax.grad(lambda x: jnp.square(predict(net, x).encoded).sum())(jnp.asarray(X))
    assert (np.asarray(gradient) != 0).any(axis=(1, 2)).all()


@pytest.mark.parametrize("cut", [False, True])
def test_the_target_depends_on_the_source_and_rows_on_themselves(cut):
    net = network(cut=cut)
    one = predict(net, X).value
    changed = SOURCE.at[0, 2].set((SOURCE[0, 2] + 1) % V)
    other = net(net.read(changed), X, TIMES, jnp.zeros_like(X)).value
    assert not np.allclose(one[0], other[0])
    np.testing.assert_allclose(one[1], other[1], atol=1e-6)


def test_what_is_read_once_serves_all_times():
    """The encoder of the cut network is not run again: its parameters may be lost by then."""
    net = network(cut=True)
    read = net.read(SOURCE)
    graphdef, state = nnx.split(net)
    without = nnx.merge(graphdef, jax.tree.map(jnp.copy, state))
    without.encoder = jax.tree.map(lambda p: p * jnp.nan, net.encoder)
    for t in (TIMES, TIMES + 5):
        zeros = jnp.zeros_like(X)
        np.testing.assert_array_equal(
            net(read, X, t, zeros).value, without(read, X, t, zeros).value
        )


def test_embeddings_round_to_themselves():
    net = network()
    embedding = net.embeddings()
    np.testing.assert_allclose(jnp.square(embedding).sum(axis=1), 8, rtol=1e-5)
    tokens = jnp.arange(V)[None]
    np.testing.assert_array_equal(net.round(embedding[tokens]), tokens)
    # By the greatest product as by the least distance, near them too.
    near = embedding[tokens] + 0.5 * jax.random.normal(jax.random.key(0), (1, V, 8))
    distance = jnp.square(near[0][:, None] - embedding[None]).sum(axis=-1)
    np.testing.assert_array_equal(net.round(near)[0], jnp.argmin(distance, axis=1))
    assert (net.logits(embedding[tokens])[0].argmax(axis=1) == tokens[0]).all()


def test_plain_has_as_many_parameters():
    wide = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, width=64))

    def size(config):
        shapes = jax.eval_shape(lambda: init_parameters(config, V, jax.random.key(0)))
        return sum(p.size for p in shapes.values())

    assert plain(wide).model.cut
    assert size(plain(wide)) == pytest.approx(size(wide), rel=2e-3)
    for fields in ({"cut": True}, {"moe": MOE}, {"mlp_activation": "swiglu"}):
        with pytest.raises(ConfigError, match="allowed: cut false, moe none"):
            plain(dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, **fields)))


@pytest.mark.parametrize("every", [1, 2])
def test_mixtures_lie_in_both_sides(every):
    net = network(moe=dataclasses.replace(MOE, every=every))
    routing = predict(net, X).routing
    assert list(routing) == ["encoder", "decoder"]
    assert routing["encoder"].scores.shape == (2 // every, N * 5, 3)
    assert routing["decoder"].scores.shape == (2 // every, N * 4, 3)
    losses = predict(net, X).losses
    assert set(losses) == set(routing["encoder"].losses)
