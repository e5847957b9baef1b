import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from dit_moe.autoencoder.config import AutoencoderConfig
from dit_moe.autoencoder.network import Autoencoder
from dit_moe.autoencoder.tiling import decode_tiled

CONFIG = AutoencoderConfig(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2)


class Doubling(Autoencoder):
    """A decoder that looks at nothing but the pixel itself, and at its tile as asked."""

    def __init__(self, tile_share: float = 0.0):
        self.config = CONFIG
        self.tile_share = tile_share

    def decode(self, latent_NxhxwxC):
        image = latent_NxhxwxC[..., :3].repeat(2, axis=1).repeat(2, axis=2)
        return image + self.tile_share * latent_NxhxwxC[:, :1, :1, :3]


@pytest.fixture(scope="module")
def network():
    return Autoencoder(CONFIG, jnp.dtype("float32"), nnx.Rngs(0))


def latents(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=(*shape, 4)), jnp.float32)


def test_equals_decode_where_one_tile_covers_all(network):
    latent = latents(5, 6, 4)
    expected = network.decode(latent)
    tiled = jax.jit(lambda model, z: decode_tiled(model, z, tile=6, overlap=3, batch_size=2))
    np.testing.assert_allclose(tiled(network, latent), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "batch_size"),
    [
        ((9, 9), 4, 1, 1),
        ((10, 3), 4, 2, 3),
        ((4, 13), 5, 4, 4),
        ((8, 8), 4, 0, 2),
        ((7, 9), 6, 0, 1),
    ],
)
def test_tiles_are_put_where_they_belong(size, tile, overlap, batch_size):
    latent = latents(2, *size)
    image = decode_tiled(Doubling(), latent, tile=tile, overlap=overlap, batch_size=batch_size)
    np.testing.assert_allclose(image, Doubling().decode(latent), atol=1e-6)


def test_differences_between_tiles_are_spread_over_the_overlap():
    # Every tile is flat, with a value of its own: what steps remain come from blending.
    latent = jnp.zeros((1, 4, 28, 4)).at[:, 0, jnp.array([0, 12])].set(jnp.array([[0.0], [1.0]]))
    image = decode_tiled(Doubling(tile_share=1.0), latent, tile=16, overlap=4)
    step = np.abs(np.diff(np.asarray(image)[0, 4, :, 0]))
    # The overlap is 8 pixels of the image: 7 whole steps between their centres, and half a step at
    # either end.
    np.testing.assert_allclose(step[step > 1e-5], [1 / 16, *[1 / 8] * 7, 1 / 16], atol=1e-5)


def test_close_to_decode(network):
    latent = latents(1, 40, 40)
    whole, tiled = network.decode(latent), decode_tiled(network, latent, tile=24, overlap=8)
    assert np.abs(whole - tiled).mean() < 0.1 * np.std(whole)
    assert np.abs(whole - tiled).max() > 0


def test_on_several_devices(network):
    latent = latents(4, 7, 5)
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    split = PartitionSpec("data")

    def decode(model, latent):
        return decode_tiled(model, latent, tile=4, overlap=2)

    sharded = jax.jit(
        jax.shard_map(decode, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split)
    )
    np.testing.assert_allclose(sharded(network, latent), decode(network, latent), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile": 4, "overlap": 4}, "overlap is 4 with tile 4; allowed: 0 to tile - 1"),
        ({"tile": 4, "overlap": -1}, "overlap is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_out_of_range(network, settings, message):
    with pytest.raises(ValueError, match=message):
        decode_tiled(network, latents(1, 8, 8), **settings)
