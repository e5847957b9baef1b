"""The layers of the autoencoder. Images are NHWC.

Parameters and group norms are float32; convolutions and attention compute in `dtype`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.autoencoder.convolution import convolve

EPSILON = 1e-6
"""What every group norm adds to the variance (CompVis/latent-diffusion)."""


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


def group_norm(channels: int, groups: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Group normalisation with scale and bias, in float32."""
    return nnx.GroupNorm(
        channels,
        groups,
        epsilon=EPSILON,
        dtype=jnp.float32,
        use_fast_variance=False,  # E[x^2] - E[x]^2 cancels where the mean is large
        rngs=rngs,
    )


class ResidualBlock(nnx.Module):
    """Twice norm, SiLU and 3x3 convolution, added to the input."""

    def __init__(
        self, in_channels: int, out_channels: int, groups: int, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.norm1 = group_norm(in_channels, groups, rngs)
        self.conv1 = convolution(in_channels, out_channels, 3, dtype, rngs)
        self.norm2 = group_norm(out_channels, groups, rngs)
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
        self.norm = group_norm(channels, groups, rngs)
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
