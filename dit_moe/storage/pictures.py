"""From the bytes of an image file to a picture, or why not: the reader of all commands."""

import functools
import io
import warnings

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin, features

from dit_moe.storage.colours import ColourError, in_srgb, opaque

# Formats that Pillow decodes itself: PostScript, for one, would start another program.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP", "AVIF")
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".j2k", ".jfif", ".jp2", ".jpe"),
    *(".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
"""How their files' names end. Content decides; names count only where a folder also holds other
things."""
MAX_PIXELS = 2**26
"""The most that a file may have: 8192 x 8192, 192 MiB as RGB."""
_MAX_TEXT = 2**26
# Pillow's own limit, 1 MiB, is less than what image generators store beside a picture.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _MAX_TEXT
# Brands of ISO base media files (ISO/IEC 23008-12, annex B; AV1 Image File Format, section 6).
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF = {b"avif", b"avis"}

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


def read_picture(data: bytes | np.ndarray, *, alpha: bool = False) -> Image.Image:
    """Decodes one picture.

    Args:
      data: a file of one of `FORMATS`, or HEIC where pillow-heif is installed (its content
        decides, not its name), or pixels: uint8 [H, W] or [H, W, 1 to 4].
      alpha: keep how transparent it is, in mode LA or RGBA; else it lies on white.

    Returns:
      The first frame, upright, in sRGB with 8 bits a channel; of mode L if it is grey, RGB
      otherwise.

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
        try:
            image = in_srgb(image)
        except ColourError as error:
            raise ImageError(str(error)) from None
        image = image if alpha else opaque(image)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        return image


def _load(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("empty file")
    formats = _formats(data)
    # Pillow's readers raise almost anything on damaged input, so the exceptions are not listed.
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        raise ImageError("too many pixels") from None
    except Exception as error:
        raise ImageError(_reason(error, "not an image")) from None
    if image.width * image.height > MAX_PIXELS:
        raise ImageError("too many pixels")
    _scale_transparent_value(image)
    try:
        image.load()
    except Exception as error:
        raise ImageError(_reason(error, "truncated or damaged")) from None
    return image


def _formats(data: bytes) -> tuple[str, ...]:
    """The formats to try; raises ImageError where what reads this one is not installed."""
    brands = _brands(data)
    if brands & _HEIC:
        if not _reads_heic():
            raise ImageError("HEIC, for which pillow-heif is needed: pip install 'dit-moe[heif]'")
        return ("HEIF",)
    if brands & _AVIF and not features.check("avif"):
        raise ImageError("AVIF, for which Pillow 11.3 or newer is needed")
    return FORMATS


def _brands(data: bytes) -> set[bytes]:
    """What an ISO base media file says it can be read as; none for other files."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), 1024)
    return {data[i : i + 4] for i in (8, *range(16, end, 4))}


@functools.cache
def _reads_heic() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _reason(error: Exception, otherwise: str) -> str:
    return "too much text or too large a profile" if "MAX_TEXT" in str(error) else otherwise


def _scale_transparent_value(image: ImageFile.ImageFile) -> None:
    # Pillow scales a PNG's values to 8 bits, but not the one that is transparent.
    value = image.info.get("transparency")
    if image.format != "PNG" or value is None or not image.tile:
        return
    match image.tile[0][3]:
        case "L;2":
            image.info["transparency"] = value * 85
        case "L;4":
            image.info["transparency"] = value * 17
        case "RGB;16B":
            image.info["transparency"] = tuple(part >> 8 for part in value)


def _orientation(image: Image.Image) -> int | None:
    try:
        # After loading: some formats are made upright there, and then say so here.
        return image.getexif().get(_ORIENTATION)
    except Exception:
        return None  # the pixels are good even if the EXIF block is not
