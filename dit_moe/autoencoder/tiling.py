"""Decoding in bounded memory: tile by tile, image by image."""

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.autoencoder.network import Autoencoder


def decode_tiled(
    model: Autoencoder,
    latent_NxhxwxC: jax.Array,
    *,
    tile: int = 64,
    overlap: int = 16,
    batch_size: int = 1,
) -> jax.Array:
    """Decodes latents that are too large, or too many, to be decoded at once.

    Equal to `model.decode` where one tile covers a latent. Larger ones are cut into tiles whose
    images are blended linearly where they overlap, which is close: norms and attention see a tile,
    not the whole.

    Args:
      model: the autoencoder.
      latent_NxhxwxC: float [N, h, w, C], not scaled.
      tile: side of a tile, in latent pixels.
      overlap: latent pixels that neighbours share, at least; 0 to tile - 1.
      batch_size: tiles that are decoded at once.

    Returns:
      As `model.decode`: float32 [N, H, W, out_channels].

    Raises:
      ValueError: if tile, overlap or batch_size is out of range.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap is {overlap} with tile {tile}; allowed: 0 to tile - 1")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; allowed: 1 or more")
    n, h, w, c = latent_NxhxwxC.shape
    top_R, left_S = _starts(h, tile, overlap), _starts(w, tile, overlap)
    tile_h, tile_w = min(tile, h), min(tile, w)
    place_Kx3 = np.stack(np.meshgrid(np.arange(n), top_R, left_S, indexing="ij"), -1).reshape(-1, 3)
    # Whole batches; the last place fills up.
    padded_Kx3 = np.pad(place_Kx3, ((0, -len(place_Kx3) % batch_size), (0, 0)), mode="edge")

    def decode(place_Bx3: jax.Array) -> jax.Array:
        def cut(place: jax.Array) -> jax.Array:
            start = (place[0], place[1], place[2], jnp.zeros_like(place[0]))
            return jax.lax.dynamic_slice(latent_NxhxwxC, start, (1, tile_h, tile_w, c))[0]

        return model.decode(jax.vmap(cut)(place_Bx3))

    image = jax.lax.map(decode, jnp.asarray(padded_Kx3.reshape(-1, batch_size, 3)))
    image_KxHxWxC = image.reshape(-1, *image.shape[2:])[: len(place_Kx3)]
    image = image_KxHxWxC.reshape(n, len(top_R), len(left_S), *image.shape[2:])
    factor = model.config.downsampling
    return _blend(image, top_R * factor, left_S * factor, overlap * factor)


def _blend(
    image_NxRxSxHxWxC: jax.Array, top_R: np.ndarray, left_S: np.ndarray, overlap: int
) -> jax.Array:
    """The average of tiles, weighted by nearness to the middle of each."""
    if len(top_R) == len(left_S) == 1:
        return image_NxRxSxHxWxC[:, 0, 0]
    n, _, _, tile_h, tile_w, c = image_NxRxSxHxWxC.shape
    weight_HxWx1 = np.outer(_ramp(tile_h, overlap), _ramp(tile_w, overlap))[..., None]
    height, width = int(top_R[-1]) + tile_h, int(left_S[-1]) + tile_w
    total = jnp.zeros((n, height, width, c), jnp.float32)
    weight = np.zeros((height, width, 1))
    for i, top in enumerate(top_R):
        for j, left in enumerate(left_S):
            where = slice(top, top + tile_h), slice(left, left + tile_w)
            total = total.at[:, *where].add(weight_HxWx1 * image_NxRxSxHxWxC[:, i, j])
            weight[where] += weight_HxWx1
    return total / weight


def _starts(length: int, tile: int, overlap: int) -> np.ndarray:
    """Where tiles start, evenly from one end to the other, sharing `overlap` or more."""
    count = 1 if length <= tile else -(-(length - overlap) // (tile - overlap))
    return np.linspace(0, max(length - tile, 0), count).round().astype(np.int32)


def _ramp(length: int, overlap: int) -> np.ndarray:
    """Weights [length] of a tile's pixels: 1 in the middle, linear over `overlap` at both ends."""
    from_end = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    return np.minimum(1, from_end / max(overlap, 0.5))
