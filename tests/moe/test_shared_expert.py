"""The expert that all tokens share: in a sum with the routed ones, or in a learnt convex mix."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import ModelConfig, MoEConfig, SegmentConfig
from dit_moe.models.parameters import abstract_parameters
from dit_moe.moe.layer import MoELayer
from dit_moe.moe.routing import Conditioning
from dit_moe.plan.flops import image_flops
from tests.moe.test_facts import flops_of

T, D = 24, 16
SUM = MoEConfig(num_experts=4, top_k=1, expert="gelu", hidden_ratio=2, shared_hidden_ratio=3)
LEARNT = dataclasses.replace(SUM, shared_mix="learnt")


def parts(moe: MoEConfig, bias: tuple[float, float] = (0, 0), scale: float = 0) -> tuple:
    """The layer, its tokens, its output, and that of the routed and of the shared experts alone."""
    layer = MoELayer(moe, D, nnx.Rngs(0))
    if layer.mix is not None:
        kernel_Dx2 = scale * jax.random.normal(jax.random.key(2), (D, 2))
        layer.mix.kernel[...], layer.mix.bias[...] = kernel_Dx2, jnp.array(bias)  # pyright: ignore
    x_TxD = jax.random.normal(jax.random.key(1), (T, D))
    conditioning = Conditioning(jnp.zeros(T, bool), T)
    alone = MoELayer(dataclasses.replace(SUM, shared_hidden_ratio=0), D, nnx.Rngs(0))
    alone.router, alone.experts = layer.router, layer.experts
    assert layer.shared is not None
    y_TxD, routed_TxD = layer(x_TxD, conditioning)[0], alone(x_TxD, conditioning)[0]
    return layer, x_TxD, y_TxD, routed_TxD, layer.shared(x_TxD)


def test_the_mix_is_convex_token_by_token():
    """One token after another, in numpy."""
    layer, x_TxD, y_TxD, routed_TxD, shared_TxD = parts(LEARNT, bias=(0.3, -0.2), scale=1)
    kernel, bias = np.asarray(layer.mix.kernel[...]), np.asarray(layer.mix.bias[...])
    tokens = zip(*map(np.asarray, (x_TxD, y_TxD, routed_TxD, shared_TxD)), strict=True)
    for x, y, routed, shared in tokens:
        logits = x @ kernel + bias
        share = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(y, share[0] * routed + share[1] * shared, atol=2e-5)


def test_closed_forms_of_the_mix():
    _, _, y_TxD, routed_TxD, shared_TxD = parts(LEARNT)
    np.testing.assert_allclose(y_TxD, (routed_TxD + shared_TxD) / 2, atol=1e-6)
    for bias, alone in (((1e4, 0.0), 3), ((0.0, 1e4), 4)):
        found = parts(LEARNT, bias=bias, scale=0.1)
        np.testing.assert_array_equal(found[2], found[alone])
    fresh = MoELayer(LEARNT, D, nnx.Rngs(3)).mix
    assert fresh is not None
    assert not np.any(fresh.kernel[...])  # half and half at first


def test_one_routed_expert_beside_a_fixed_one_is_the_sum_of_two_networks():
    """PR-MoE's residual form; with a single expert its weight is exactly 1."""
    layer, x_TxD, y_TxD, _, shared_TxD = parts(dataclasses.replace(SUM, num_experts=1))
    own = layer.experts.bank().expert(0, jnp.float32)
    h = jax.nn.gelu(x_TxD @ own.w_in + own.b_in, approximate=True)
    np.testing.assert_allclose(y_TxD, h @ own.w_out + own.b_out + shared_TxD, atol=2e-5)


def test_gradients_reach_the_shares():
    x_TxD = jax.random.normal(jax.random.key(1), (T, D))
    conditioning = Conditioning(jnp.zeros(T, bool), T)
    layer = MoELayer(LEARNT, D, nnx.Rngs(0))
    gradient = nnx.grad(lambda layer: jnp.sum(layer(x_TxD, conditioning)[0] ** 2))(layer)
    assert jnp.abs(gradient.mix.kernel[...]).max() > 0


def test_the_shares_cost_two_columns():
    """Against XLA, and what plans count of it."""
    tokens, width = 256, 512
    layer = MoELayer(LEARNT, width, nnx.Rngs(0))
    x_TxD = jax.random.normal(jax.random.key(0), (tokens, width))
    plain = ModelConfig(width=width, depth=1, heads=8, moe=SUM)
    learnt = dataclasses.replace(plain, moe=LEARNT)
    counted = (image_flops(learnt).shared - image_flops(plain).shared) / plain.num_tokens

    def run(mix: nnx.Module) -> jax.Array:
        assert callable(mix)
        return mix(x_TxD)

    assert layer.mix is not None
    assert flops_of(run, layer.mix) == pytest.approx(tokens * counted, rel=0.01)


def test_a_pyramid_has_as_many_experts_as_the_paper_says():
    """350M+PR-MoE-32/64: ten MoE layers of 32 experts, then two of 64, in every other block."""
    moe = dataclasses.replace(SUM, num_experts=32, every=2)
    top = dataclasses.replace(moe, num_experts=64)
    model = ModelConfig(
        width=16, depth=24, heads=2, segments=(SegmentConfig(20, moe), SegmentConfig(4, top))
    )
    shapes = {path: p.shape for path, p in abstract_parameters(model).items()}
    experts = [s for path, s in shapes.items() if path.endswith("feed_forward.experts.w_in")]
    # [L, E, ...] of every segment: a dense block has one.
    assert sum(s[0] * s[1] for s in experts) == 10 * 32 + 2 * 64 + 12


def test_a_mix_needs_a_shared_expert():
    with pytest.raises(ValueError, match="shared_mix is 'learnt' with shared_hidden_ratio 0"):
        dataclasses.replace(LEARNT, shared_hidden_ratio=0)
