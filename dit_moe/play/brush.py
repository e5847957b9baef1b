"""From a picture that was painted on to what inpainting keeps of it."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from dit_moe.config import ConfigError
from dit_moe.data.prepare.decode import center_crop
from dit_moe.play.drawer import Known
from dit_moe.storage.colours import as_mode, opaque

_SIDE = 256  # pixels to paint on, at least


def canvas(picture: np.ndarray) -> np.ndarray:
    """A picture uint8 [H, W, 1 or 3], large enough to paint on; `known` finds the same pixels."""
    factor = 1
    while factor * min(picture.shape[:2]) < _SIDE:
        factor *= 2  # as `center_crop` halves
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.broadcast_to(large, (*large.shape[:2], 3)) if large.shape[2] == 1 else large


def known(edited: Mapping[str, Any] | None, shape: tuple[int, int, int]) -> Known:
    """What is kept: the pixels of which the brush covers less than half.

    Args:
      edited: what Gradio's editor returns: a background and layers of paint, each an array
        [h, w, 4] uint8 of any size.
      shape: [H, W, C] of the model's pictures; one of another form is cropped.

    Raises:
      ConfigError: there is no picture, nothing is painted, or all of it.
    """
    if edited is None or edited["background"] is None or not np.any(edited["background"]):
        raise ConfigError(
            "the picture to paint on is empty; allowed: draw, and choose one, or upload one"
        )
    background = opaque(Image.fromarray(edited["background"]))
    size, channels = shape[:2], shape[2]
    mode = "L" if channels == 1 else "RGB"
    picture = np.asarray(center_crop(as_mode(background, mode), size), np.float32)
    paint = np.zeros(background.size[::-1], np.uint8)
    for layer in edited["layers"]:
        paint = np.maximum(paint, layer[..., 3])
    new = np.asarray(center_crop(Image.fromarray(paint), size)) >= 128
    if not new.any() or new.all():
        raise ConfigError(
            f"the brush covers {'all' if new.all() else 'no pixel'} of the picture; allowed: a "
            "part of it, which is drawn anew"
        )
    picture = picture.reshape(shape) / 127.5 - 1
    return Known(kept=jnp.asarray(~new[..., None]), picture=jnp.asarray(picture))
