"""A picture that begins well."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_damaged_png(path: Path) -> None:
    """Noise with a chunk amid the pixels whose name is none: Pillow answers with a SyntaxError."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    before, _, after = path.read_bytes().rpartition(b"IDAT")
    path.write_bytes(before + b"\xd0\x00\xa5\xff" + after)
