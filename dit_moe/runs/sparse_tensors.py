"""Tensors of many zeros in files: a bit for every number, and those numbers that are not zero.

NAME becomes NAME.mask, uint8, eight bits to a byte from the least on, in the order of the elements,
and NAME.values, those whose bit is 1. A zero saves nothing otherwise.
"""

import functools
import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from dit_moe.runs.tensor_files import StoredTensor

_MASK, _VALUES = ".mask", ".values"


def thinned(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors as they are stored: as mask and values, where that takes fewer bytes.

    Minus zero is kept as zero is not: bit for bit, what is read is what was written.
    """
    stored: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        kept = (
            (tensor != 0) | np.signbit(tensor)
            if jnp.issubdtype(tensor.dtype, jnp.floating)
            else None
        )
        if kept is None or -(-tensor.size // 8) + kept.sum() * tensor.itemsize >= tensor.nbytes:
            stored[name] = tensor
            continue
        stored[f"{name}{_MASK}"] = np.packbits(kept.reshape(-1), bitorder="little")
        stored[f"{name}{_VALUES}"] = tensor[kept]
    return stored


def filled(
    tensors: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, StoredTensor]:
    """Stored tensors with whole ones in place of masks and values.

    Args:
      tensors: of a file.
      shapes: of all that should be there, by name. What does not fit them stays as it is.
    """
    whole = dict(tensors)
    for name, shape in shapes.items():
        mask, values = tensors.get(f"{name}{_MASK}"), tensors.get(f"{name}{_VALUES}")
        if name in tensors or mask is None or values is None or not _fit(mask, values, shape):
            continue
        del whole[f"{name}{_MASK}"], whole[f"{name}{_VALUES}"]
        read = functools.partial(_fill, mask, values, shape)
        whole[name] = StoredTensor(shape, values.dtype, read)
    return whole


def _fit(mask: StoredTensor, values: StoredTensor, shape: tuple[int, ...]) -> bool:
    """Whether a mask of these values is one of a tensor of this shape."""
    size = math.prod(shape)
    if mask.shape != (-(-size // 8),) or len(values.shape) != 1:
        return False
    bits = np.unpackbits(np.asarray(mask).astype(np.uint8), bitorder="little")
    return int(bits[:size].sum()) == values.shape[0] and not bits[size:].any()


def _fill(mask: StoredTensor, values: StoredTensor, shape: tuple[int, ...]) -> np.ndarray:
    size = math.prod(shape)
    bits = np.unpackbits(np.asarray(mask), bitorder="little", count=size).astype(bool)
    tensor = np.zeros(size, values.dtype)
    tensor[bits] = np.asarray(values)
    return tensor.reshape(shape)
