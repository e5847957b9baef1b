"""Fingerprints of arrays: a number that any changed, moved or missing element changes.

Computed where the arrays live, without gathering them. Sums modulo 2^32 have no order, so the
number is the same on any mesh and any number of processes.
"""

import hashlib
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Bijective mixing of 32 bits by shifts and odd factors: "lowbias32" of C. Wellons, Hash Prospector.
_FACTORS = (0x7FEB352D, 0x846CA68B)
GOLDEN = 0x9E3779B9
"""2^32 / golden ratio, odd: every index has an offset of its own."""


def fingerprints(tree: Any) -> dict[str, int]:
    """The fingerprint of every leaf by its path, such as "optimizer/0/mu/head.kernel".

    Args:
      tree: arrays of at most 32 bits an element. Where they are spread over several processes, all
        of those call this.
    """
    # One after another: collectives of programs that run at once can wait for each other. And not
    # in one program: many leaves have the same shape, and compilation costs most.
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): int(_fingerprint(leaf)) for path, leaf in leaves}


def digest(tree: Any) -> str:
    """SHA-256 of all fingerprints and their paths, hexadecimal; arguments as there."""
    text = json.dumps(fingerprints(tree), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def path_name(path: tuple[Any, ...]) -> str:
    """Where a leaf is in its tree."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


@jax.jit
def _fingerprint(x: jax.Array) -> jax.Array:
    """uint32: the sum over elements i of mix(bits_i + golden * i), modulo 2^32.

    A change of one element is noticed for certain, as mix is bijective; any other (values that
    changed places, zeros for a lost part) unless 32 random bits agree.
    """
    x = jax.device_put(x, jax.memory.Space.Device)  # from the host's memory, if it is there
    hashed = lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    for axis in range(x.ndim):
        stride = math.prod(x.shape[axis + 1 :]) * GOLDEN % 2**32
        hashed += lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride)
    hashed = (hashed ^ (hashed >> 16)) * jnp.uint32(_FACTORS[0])
    hashed = (hashed ^ (hashed >> 15)) * jnp.uint32(_FACTORS[1])
    return jnp.sum(hashed ^ (hashed >> 16), dtype=jnp.uint32)
