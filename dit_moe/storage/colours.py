"""From whatever colours a file holds to sRGB with 8 bits a channel."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

# What ICC profiles call the colours of Pillow's modes.
_SPACES = {
    **dict.fromkeys(("1", "L", "LA"), "GRAY"),
    **dict.fromkeys(("P", "PA", "RGB", "RGBA"), "RGB "),
    "CMYK": "CMYK",
}
_MODES = {"GRAY": "L", "RGB ": "RGB", "CMYK": "CMYK"}
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""What Pillow calls a picture of so many channels; the second and the fourth are alpha."""
LUMA = (0.299, 0.587, 0.114)
"""How much of red, green and blue is in the luma (ITU-R BT.601, as in JPEG's YCbCr)."""
_ROUNDING = 2  # of 255: profiles that say sRGB in other words differ by as much


class ColourError(Exception):
    """Nothing says what white is; the message is a short reason."""


def in_srgb(image: Image.Image) -> Image.Image:
    """The picture in one of `MODES`: L if it is grey, RGB otherwise, with alpha if it has any.

    Colours are taken as the picture's ICC profile says; a profile that is damaged, or of other
    colours than the picture's, is ignored.

    Raises:
      ColourError: of floating-point or 32-bit pixels, or colours that Pillow cannot convert.
    """
    profile = image.info.get("icc_profile")
    if image.mode == "F":
        raise ColourError("floating-point pixels")
    if image.mode.startswith("I"):
        image = _to_8_bits(image)
    space = _SPACES.get(image.mode, "")
    transform = _to_srgb(profile, space) if profile and space else None
    mode = "L" if space == "GRAY" else "RGB"
    try:
        if image.mode in _TRANSPARENT or "transparency" in image.info:
            image = image.convert("RGBA")
            colours = _apply(transform, image, space)
            colours.putalpha(image.getchannel("A"))
            return as_mode(colours, f"{mode}A")
        return as_mode(_apply(transform, image, space), mode)
    except ValueError:
        raise ColourError("unknown colours") from None


def opaque(image: Image.Image) -> Image.Image:
    """A picture of `in_srgb` on white, of mode L or RGB."""
    if image.mode not in ("LA", "RGBA"):
        return image
    white = Image.new("RGBA", image.size, "white")
    return as_mode(Image.alpha_composite(white, as_mode(image, "RGBA")), image.mode[:-1])


def on_white(image_NxHxWxC: np.ndarray) -> np.ndarray:
    """Pictures without alpha, to the bit as `opaque` makes them.

    Args:
      image_NxHxWxC: uint8, C of 1 to 4.

    Returns:
      uint8 [N, H, W, 1 or 3].
    """
    if image_NxHxWxC.shape[-1] % 2:
        return image_NxHxWxC
    colours, alpha = np.split(image_NxHxWxC.astype(np.uint16), [-1], axis=-1)
    return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    """The picture in another mode; Pillow would copy one that is in it already."""
    return image if image.mode == mode else image.convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    value_HxW = np.asarray(image)
    if value_HxW.min() < 0 or value_HxW.max() > 65535:
        raise ColourError("32-bit pixels")
    # Divided by 257, rounded. Pillow itself would clip at 255.
    grey_HxW = (value_HxW.astype(np.uint32) * 255 + 32767) // 65535
    grey = Image.fromarray(grey_HxW.astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(value_HxW == transparent, 0, 255).astype(np.uint8)))
    return grey


def _apply(
    transform: ImageCms.ImageCmsTransform | None, image: Image.Image, space: str
) -> Image.Image:
    """The colours as RGB, without transparency."""
    if transform is None:
        return as_mode(image, "RGB")
    converted = transform.apply(as_mode(image, _MODES[space]))
    assert converted is not None
    return converted


@functools.lru_cache(maxsize=8)
def _to_srgb(profile: bytes, space: str) -> ImageCms.ImageCmsTransform | None:
    """What a profile asks for; None if nothing, or nothing that can be done."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        core: Any = opened.profile  # its stubs take it for a file
        if core.xcolor_space != space:
            return None
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(opened, srgb, _MODES[space], "RGB")
        assert isinstance(transform, ImageCms.ImageCmsTransform)
        if space != "CMYK":
            ramp = _ramp().convert(_MODES[space])
            change = np.asarray(_apply(transform, ramp, space), int) - ramp.convert("RGB")
            if np.abs(change).max() <= _ROUNDING:
                return None
    except Exception:  # damaged profiles raise almost anything
        return None
    return transform


def _ramp() -> Image.Image:
    """All colours of values 0, 17, ... 255."""
    value = np.arange(0, 256, 17, dtype=np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(value, value, value), -1).reshape(1, -1, 3))
