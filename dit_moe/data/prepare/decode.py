"""From a picture to a square crop, or the reason why not."""

import numpy as np
from PIL import Image

from dit_moe.storage.colours import MODES, as_mode
from dit_moe.storage.pictures import MAX_PIXELS, ImageError, read_picture


def decode(data: bytes | np.ndarray, image_size: int, channels: int = 3) -> np.ndarray:
    """Decodes and crops one picture.

    Args:
      data: as for `pictures.read_picture`.
      image_size: side of the crop in pixels.
      channels: a key of `colours.MODES`.

    Returns:
      uint8 [image_size, image_size, channels]: what `read_picture` finds, cut by `center_crop`.
      With alpha, colours that nobody sees are 0.

    Raises:
      ImageError: it cannot be used.
    """
    picture = as_mode(read_picture(data, alpha=channels in (2, 4)), MODES[channels])
    crop_HxWxC = np.asarray(center_crop(picture, image_size)).reshape(image_size, image_size, -1)
    if channels in (1, 3):
        return crop_HxWxC
    # As Pillow leaves them wherever it resizes; files hold anything there.
    return np.where(crop_HxWxC[..., -1:] == 0, np.uint8(0), crop_HxWxC)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The largest centred square at the given size, as ADM crops ImageNet.

    Halves the picture by averaging while its shorter side is at least twice the size, so that the
    bicubic step that follows never shrinks it by more than 2.
    Source: Dhariwal and Nichol 2021, https://github.com/openai/guided-diffusion (image_datasets).

    Raises:
      ImageError: the picture is so long and thin that the resized one would exceed MAX_PIXELS.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_PIXELS:
        raise ImageError("too long and thin")
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
