"""Pictures as data URIs."""

import base64
import io
from pathlib import Path

from PIL import Image

from dit_moe.config import ConfigError

_MAX_BYTES = 400_000
_MAX_SIDE = 1400


def data_uri(path: Path) -> str:
    """A picture inside of the page: a small one as it is, a large one as a smaller JPEG.

    Raises:
      ConfigError: it is no picture.
    """
    content, kind = path.read_bytes(), "png"
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.format != "PNG" or len(content) > _MAX_BYTES:
                smaller = image.convert("RGB")
                smaller.thumbnail((_MAX_SIDE, 4 * _MAX_SIDE))
                buffer = io.BytesIO()
                smaller.save(buffer, "JPEG", quality=85)
                content, kind = buffer.getvalue(), "jpeg"
    except Exception:  # Pillow raises almost anything on damaged files
        raise ConfigError(f"{path} is not a picture") from None
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
