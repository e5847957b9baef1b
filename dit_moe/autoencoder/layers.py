"""The layers of the autoencoder. Images are NHWC.

Parameters and group norms are float32; convolutions and attention compute in `dtype`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.autoencoder.convolution import convolve

EPSILON = 1e-6
"""Of every group norm (CompVis/latent-diffusion)."""


def convolution(
    in_channels: int, out_channels: int, kernel: int, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Conv:
    """A convolution with bias that keeps the images' size."""
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel, kernel),
        conv_general_dilated=convolve,
        dtype=dtype,
        rngs=rngs,
    )


class GroupNorm(nnx.Module):
    """Group normalisation in float32 (Wu & He 2018).

    Statistics are gathered per channel first, which is several times as fast on CPU as reducing
    over pixels and a group's channels at once (`nnx.GroupNorm`); the variance is that of centred
    values, without cancellation.
    """

    def __init__(self, channels: int, groups: int):
        self.groups = groups
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x_NxHxWxC: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to float32 [N, H, W, C]."""
        x_NxHxWxC = x_NxHxWxC.astype(jnp.float32)
        centred_NxHxWxC = x_NxHxWxC - self._group_mean(x_NxHxWxC)
        variance_Nx1x1xC = self._group_mean(centred_NxHxWxC**2)
        factor_Nx1x1xC = jax.lax.rsqrt(variance_Nx1x1xC + EPSILON) * self.scale[...]
        return centred_NxHxWxC * factor_Nx1x1xC + self.bias[...]

    def _group_mean(self, x_NxHxWxC: jax.Array) -> jax.Array:
        """The mean over pixels and group, for every channel: [N, 1, 1, C]."""
        n, _, _, c = x_NxHxWxC.shape
        mean_NxG = x_NxHxWxC.mean((1, 2)).reshape(n, self.groups, -1).mean(-1)
        return mean_NxG.repeat(c // self.groups, axis=1)[:, None, None]


class ResidualBlock(nnx.Module):
    """Twice norm, SiLU and 3x3 convolution, added to the input."""

    def __init__(
        self, in_channels: int, out_channels: int, groups: int, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.norm1 = GroupNorm(in_channels, groups)
        self.conv1 = convolution(in_channels, out_channels, 3, dtype, rngs)
        self.norm2 = GroupNorm(out_channels, groups)
        self.conv2 = convolution(out_channels, out_channels, 3, dtype, rngs)
        self.shortcut = (
            convolution(in_channels, out_channels, 1, dtype, rngs)
            if in_channels != out_channels
            else None
        )

    def __call__(self, x_NxHxWxC: jax.Array) -> jax.Array:
        """Maps [N, H, W, in_channels] to [N, H, W, out_channels]."""
        h_NxHxWxC = self.conv1(jax.nn.silu(self.norm1(x_NxHxWxC)))
        h_NxHxWxC = self.conv2(jax.nn.silu(self.norm2(h_NxHxWxC)))
        return h_NxHxWxC + (x_NxHxWxC if self.shortcut is None else self.shortcut(x_NxHxWxC))


class Attention(nnx.Module):
    """Self-attention of one head over all pixels, added to the input."""

    def __init__(self, channels: int, groups: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = GroupNorm(channels, groups)
        self.q, self.k, self.v, self.out = (
            nnx.Linear(channels, channels, dtype=dtype, rngs=rngs) for _ in range(4)
        )

    def __call__(self, x_NxHxWxC: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to [N, H, W, C]."""
        n, h, w, c = x_NxHxWxC.shape
        normed_NxSxC = self.norm(x_NxHxWxC).reshape(n, h * w, c)
        q, k, v = (layer(normed_NxSxC)[:, :, None] for layer in (self.q, self.k, self.v))
        # Softmax in float32.
        mixed_NxSx1xC = jax.nn.dot_product_attention(q, k, v, implementation="xla")
        return x_NxHxWxC + self.out(mixed_NxSx1xC.reshape(n, h, w, c))


class Downsample(nnx.Module):
    """A 3x3 convolution of stride 2, padded below and to the right only."""

    def __init__(self, channels: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            channels, channels, (3, 3), 2, padding=((0, 1), (0, 1)), dtype=dtype, rngs=rngs
        )

    def __call__(self, x_NxHxWxC: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to [N, H / 2, W / 2, C]."""
        return self.conv(x_NxHxWxC)


class Upsample(nnx.Module):
    """Every pixel doubled along both sides, then a 3x3 convolution."""

    def __init__(self, channels: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv = convolution(channels, channels, 3, dtype, rngs)

    def __call__(self, x_NxHxWxC: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to [N, 2H, 2W, C]."""
        return self.conv(x_NxHxWxC.repeat(2, axis=1).repeat(2, axis=2))
