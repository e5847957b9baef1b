"""Small files of the format of MNIST for tests."""

import gzip
import struct
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    """uint8 of any rank as the format has it."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(
    folder: Path, image: np.ndarray, label: np.ndarray, head: str = "train-", packed: bool = True
) -> Path:
    """uint8 [N, H, W] and [N] as two files; returns that of the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for array, kind in ((label, "labels-idx1-ubyte"), (image, "images-idx3-ubyte")):
        path = folder / f"{head}{kind}{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    return path
