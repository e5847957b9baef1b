"""Pictures as data URIs."""

import base64
import io
from pathlib import Path

from dit_moe.config import ConfigError
from dit_moe.storage.pictures import ImageError, read_picture

_MAX_BYTES = 400_000
_MAX_SIDE = 1400
_PNG = b"\x89PNG\r\n\x1a\n"


def data_uri(path: Path) -> str:
    """A picture inside of the page: a small one as it is, a large one as a smaller JPEG.

    Raises:
      ConfigError: it is no picture.
    """
    content, kind = path.read_bytes(), "png"
    try:
        picture = read_picture(content)
    except ImageError as error:
        raise ConfigError(f"{path} is not a picture that can be shown: {error}") from None
    if not content.startswith(_PNG) or len(content) > _MAX_BYTES:
        picture.thumbnail((_MAX_SIDE, 4 * _MAX_SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        content, kind = buffer.getvalue(), "jpeg"
    return as_uri(content, kind)


def as_uri(content: bytes, kind: str = "png") -> str:
    """The bytes of a picture of this kind, as they are, inside of a page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
