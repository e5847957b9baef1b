"""Attention to another sequence, against products in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import ModelConfig
from dit_moe.nn.cross_attention import CrossAttention

CONFIG = ModelConfig(width=8, depth=1, heads=2, image_size=4, channels=1, patch_size=2)


@pytest.mark.parametrize(("asking", "read"), [(3, 5), (70, 66), (66, 3)])
def test_each_token_finds_a_mean_of_the_other_sequence(asking, read):
    layer = CrossAttention(CONFIG, nnx.Rngs(0))
    x, other = (
        np.asarray(jax.random.normal(jax.random.key(k), (2, s, 8)))
        for k, s in ((1, asking), (2, read))
    )
    found = layer(jnp.asarray(x), jnp.asarray(other))
    kernel = {name: np.asarray(getattr(layer, name).kernel[...]) for name in ("query", "key_value")}
    key, value = np.split(other @ kernel["key_value"], 2, axis=-1)
    query = x @ kernel["query"]
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        score = query[..., head] @ key[..., head].swapaxes(1, 2) / 2
        weight = np.exp(score) / np.exp(score).sum(axis=-1, keepdims=True)
        heads.append(weight @ value[..., head])
    expected = np.concatenate(heads, axis=-1) @ np.asarray(layer.out.kernel[...])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
