"""From the bytes of an image file to a square crop, or the reason why not."""

import io
import warnings

import numpy as np
from PIL import Image

# Formats that Pillow decodes itself: PostScript, for one, would start another program.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 2**26
"""Of a file, and of its enlargement to the crop's size: 8192 x 8192, 192 MiB as RGB."""

_ORIENTATION = 0x0112  # EXIF 2.32, table 4
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(Exception):
    """A picture cannot be used. The message is a short reason, the same on every machine."""


def decode(data: bytes | np.ndarray, image_size: int) -> np.ndarray:
    """Decodes and crops one picture.

    Args:
      data: a file of one of `FORMATS` (its content decides, not its name), or pixels: uint8
        [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].
      image_size: side of the crop in pixels.

    Returns:
      uint8 [image_size, image_size, 3]: the first frame, upright, in RGB, on white where it is
      transparent, cut by `center_crop`.

    Raises:
      ImageError: it cannot be used.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata, and bombs that are refused below
        if isinstance(data, np.ndarray):
            image = Image.fromarray(data[..., 0] if data.shape[2:] == (1,) else data)
        else:
            image = _load(data)
        orientation = _orientation(image)
        image = _to_rgb(image)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        return np.asarray(center_crop(image, image_size))


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


def _load(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("empty file")
    # Pillow's readers raise almost anything on damaged input, so the exceptions are not listed.
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageError("too many pixels") from None
    except Exception:
        raise ImageError("not an image") from None
    if image.width * image.height > MAX_PIXELS:
        raise ImageError("too many pixels")
    try:
        image.load()
    except Exception:
        raise ImageError("truncated or damaged") from None
    return image


def _orientation(image: Image.Image) -> int | None:
    try:
        # After loading: some formats are made upright there, and then say so here.
        return image.getexif().get(_ORIENTATION)
    except Exception:
        return None  # the pixels are good even if the EXIF block is not


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageError("floating-point pixels")  # nothing says what white is
    if image.mode.startswith("I"):
        value_HxW = np.asarray(image)
        if value_HxW.min() < 0 or value_HxW.max() > 65535:
            raise ImageError("32-bit pixels")
        # 16 bits to 8: divided by 257, rounded. Pillow itself would clip at 255.
        value_HxW = (value_HxW.astype(np.uint32) * 255 + 32767) // 65535
        image = Image.fromarray(value_HxW.astype(np.uint8))
    try:
        if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")
    except ValueError:
        raise ImageError("unknown colours") from None
