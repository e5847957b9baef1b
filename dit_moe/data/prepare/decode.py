"""From a picture to a crop, or the reason why not."""

import math

import numpy as np
from PIL import Image

from dit_moe.config.sizes import height_and_width
from dit_moe.storage.colours import MODES, as_mode
from dit_moe.storage.pictures import MAX_PIXELS, ImageError, read_picture


def decode(
    data: bytes | np.ndarray, image_size: int | tuple[int, int], channels: int = 3
) -> np.ndarray:
    """Decodes and crops one picture.

    Args:
      data: as for `pictures.read_picture`.
      image_size: side of the crop in pixels, or height and width.
      channels: a key of `colours.MODES`.

    Returns:
      uint8 [H, W, channels]: what `read_picture` finds, cut by `center_crop`. With alpha, colours
      that nobody sees are 0.

    Raises:
      ImageError: it cannot be used.
    """
    picture = as_mode(read_picture(data, alpha=channels in (2, 4)), MODES[channels])
    crop = center_crop(picture, image_size)
    crop_HxWxC = np.asarray(crop).reshape(crop.height, crop.width, channels)
    if channels in (1, 3):
        return crop_HxWxC
    # As Pillow leaves them wherever it resizes; files hold anything there.
    return np.where(crop_HxWxC[..., -1:] == 0, np.uint8(0), crop_HxWxC)


def center_crop(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """The largest centred square at the given size, as ADM crops ImageNet, or another rectangle.

    Halves the picture by averaging while it is at least twice the size both ways, so that the
    bicubic step that follows never shrinks it by more than 2.
    Source: Dhariwal and Nichol 2021, https://github.com/openai/guided-diffusion (image_datasets).

    Raises:
      ImageError: the picture is so long and thin that the resized one would exceed MAX_PIXELS.
    """
    height, width = height_and_width(size)
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    whole = round(image.width * scale), round(image.height * scale)
    if math.prod(whole) > MAX_PIXELS:
        raise ImageError("too long and thin")
    image = image.resize(whole, Image.Resampling.BICUBIC)
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    return image.crop((left, top, left + width, top + height))
