"""Encoder and decoder of the Stable Diffusion autoencoder (Rombach et al. 2022, appendix E)."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.autoencoder.config import AutoencoderConfig
from dit_moe.autoencoder.layers import (
    Attention,
    Downsample,
    ResidualBlock,
    Upsample,
    convolution,
    group_norm,
)


class Moments(NamedTuple):
    """A diagonal normal distribution of latents, not scaled, float32."""

    mean: jax.Array
    """[N, h, w, C]."""
    log_variance: jax.Array
    """[N, h, w, C], from -30 to 20."""

    def sample(self, key: jax.Array) -> jax.Array:
        """A latent [N, h, w, C] drawn from the distribution."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_variance / 2) * noise


class Level(nnx.Module):
    """Residual blocks at one resolution, then a change of resolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        groups: int,
        resample: type[Downsample] | type[Upsample] | None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        widths = [in_channels, *[out_channels] * num_blocks]
        self.blocks = nnx.List(
            ResidualBlock(a, b, groups, dtype, rngs) for a, b in itertools.pairwise(widths)
        )
        self.resample = None if resample is None else resample(out_channels, dtype, rngs)

    def __call__(self, x_NxHxWxC: jax.Array) -> jax.Array:
        for block in self.blocks:
            x_NxHxWxC = block(x_NxHxWxC)
        return x_NxHxWxC if self.resample is None else self.resample(x_NxHxWxC)


class Middle(nnx.Module):
    """Two residual blocks with attention between them, at the lowest resolution."""

    def __init__(self, config: AutoencoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        channels, groups = config.block_out_channels[-1], config.norm_num_groups
        self.block1 = ResidualBlock(channels, channels, groups, dtype, rngs)
        self.attention = (
            Attention(channels, groups, dtype, rngs) if config.mid_block_add_attention else None
        )
        self.block2 = ResidualBlock(channels, channels, groups, dtype, rngs)

    def __call__(self, x_NxHxWxC: jax.Array) -> jax.Array:
        x_NxHxWxC = self.block1(x_NxHxWxC)
        if self.attention is not None:
            x_NxHxWxC = self.attention(x_NxHxWxC)
        return self.block2(x_NxHxWxC)


class Encoder(nnx.Module):
    """Images to (mean, log-variance) in one array of twice the latent's channels."""

    def __init__(self, config: AutoencoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        channels, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = convolution(config.in_channels, channels[0], 3, dtype, rngs)
        inputs, last = (channels[0], *channels), len(channels) - 1
        self.levels = nnx.List(
            Level(
                inputs[i],
                channels[i],
                config.layers_per_block,
                groups,
                Downsample if i < last else None,
                dtype,
                rngs,
            )
            for i in range(len(channels))
        )
        self.middle = Middle(config, dtype, rngs)
        self.norm_out = group_norm(channels[-1], groups, rngs)
        self.conv_out = convolution(channels[-1], 2 * config.latent_channels, 3, dtype, rngs)

    def __call__(self, x_NxHxWxC: jax.Array) -> jax.Array:
        x_NxHxWxC = self.conv_in(x_NxHxWxC)
        for level in self.levels:
            x_NxHxWxC = level(x_NxHxWxC)
        x_NxHxWxC = self.middle(x_NxHxWxC)
        return self.conv_out(jax.nn.silu(self.norm_out(x_NxHxWxC)))


class Decoder(nnx.Module):
    """Latents to images."""

    def __init__(self, config: AutoencoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        channels, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = convolution(config.latent_channels, channels[0], 3, dtype, rngs)
        self.middle = Middle(config, dtype, rngs)
        inputs, last = (channels[0], *channels), len(channels) - 1
        self.levels = nnx.List(
            Level(
                inputs[i],
                channels[i],
                config.layers_per_block + 1,
                groups,
                Upsample if i < last else None,
                dtype,
                rngs,
            )
            for i in range(len(channels))
        )
        self.norm_out = group_norm(channels[-1], groups, rngs)
        self.conv_out = convolution(channels[-1], config.out_channels, 3, dtype, rngs)

    def __call__(self, x_NxHxWxC: jax.Array) -> jax.Array:
        x_NxHxWxC = self.middle(self.conv_in(x_NxHxWxC))
        for level in self.levels:
            x_NxHxWxC = level(x_NxHxWxC)
        return self.conv_out(jax.nn.silu(self.norm_out(x_NxHxWxC)))


class Autoencoder(nnx.Module):
    """Images to latents and back.

    A pytree: `jax.jit(lambda autoencoder, x: autoencoder.decode(x))(autoencoder, x)` works.

    Args:
      config: the shape of the network.
      dtype: of convolutions and attention, float32 or bfloat16. Parameters and group norms are
        float32 in either.
      rngs: source of random parameters.
    """

    def __init__(self, config: AutoencoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, dtype, rngs)
        self.decoder = Decoder(config, dtype, rngs)
        latents = config.latent_channels
        self.quant_conv = (
            convolution(2 * latents, 2 * latents, 1, dtype, rngs) if config.use_quant_conv else None
        )
        self.post_quant_conv = (
            convolution(latents, latents, 1, dtype, rngs) if config.use_post_quant_conv else None
        )

    def encode(self, image_NxHxWxC: jax.Array) -> Moments:
        """The distribution of each image's latent, not scaled.

        Args:
          image_NxHxWxC: float [N, H, W, in_channels] in [-1, 1]; H and W are multiples of
            `config.downsampling`.

        Raises:
          ValueError: for another shape.
        """
        _, h, w, c = image_NxHxWxC.shape
        factor = self.config.downsampling
        if h % factor or w % factor or c != self.config.in_channels:
            raise ValueError(
                f"images are {h}x{w} with {c} channels; allowed: multiples of {factor} with "
                f"{self.config.in_channels} channels"
            )
        moments = self.encoder(image_NxHxWxC)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return Moments(mean, jnp.clip(log_variance, -30.0, 20.0))

    def decode(self, latent_NxhxwxC: jax.Array) -> jax.Array:
        """The images of latents that are not scaled.

        Args:
          latent_NxhxwxC: float [N, h, w, latent_channels].

        Returns:
          float32 [N, h * downsampling, w * downsampling, out_channels], about [-1, 1], not clipped.
        """
        if self.post_quant_conv is not None:
            latent_NxhxwxC = self.post_quant_conv(latent_NxhxwxC)
        return self.decoder(latent_NxhxwxC).astype(jnp.float32)
