"""Matrices as integers of few bits: how they lie in bytes, and the network's matrices so kept.

A matrix [D, G] maps D inputs to G outputs. Along its inputs it is cut into groups of `group` rows,
the last of which may have fewer. Each group has for every output a scale and a zero, and a weight
is (code - zero) scale, with a code of 0 to 2^bits - 1.

Codes are cut into parts of 8, 4, 2 and 1 bits, the powers of two that add up to `bits`, the highest
bits in the first part. A part of w bits lies in ceil(D w / 8) rows of bytes, one part after
another; byte r of an output holds its inputs r 8/w and following, the first in the lowest bits. So
every number of bits takes just that many, and rows of the network's width stay contiguous.
"""

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

ORDER = "parts of 8, 4, 2, 1 bits, high bits first; inputs from low to high bits"
"""The order of the bits, in words, for who reads the files."""

SCALE = jnp.float16
"""The type of scales and zeros. Codes are chosen for a scale as it is stored, so that its rounding
costs nothing."""


def parts_of(bits: int) -> tuple[int, ...]:
    """The powers of two that add up to a number of bits, largest first: 7 is 4, 2 and 1."""
    return tuple(width for width in (8, 4, 2, 1) if bits & width)


def byte_rows(rows: int, bits: int) -> int:
    """Rows of bytes that hold so many rows of codes."""
    return sum(-(-rows * width // 8) for width in parts_of(bits))


def packed_bytes(shape: tuple[int, ...], bits: int, group: int) -> int:
    """Bytes of a matrix, or stack of matrices, [..., D, G]: codes, scales and zeros."""
    *leading, rows, outputs = shape
    number = outputs
    for size in leading:
        number *= size
    groups = -(-rows // group)
    return number * (byte_rows(rows, bits) + 2 * groups * jnp.dtype(SCALE).itemsize)


def pack(codes_DxG: jax.Array, bits: int) -> jax.Array:
    """Codes [..., D, G] below 2^bits as bytes: uint8 [..., R, G] with R of `byte_rows`."""
    *leading, rows, outputs = codes_DxG.shape
    found, above = [], bits
    for width in parts_of(bits):
        above -= width
        each = 8 // width
        part = (codes_DxG.astype(jnp.uint8) >> above) & (2**width - 1)
        part = jnp.pad(part, [(0, 0)] * len(leading) + [(0, -rows % each), (0, 0)])
        part = part.reshape(*leading, -1, each, outputs) << _shifts(width)
        found.append(part.sum(axis=-2, dtype=jnp.uint8))
    return jnp.concatenate(found, axis=-2)


def unpack(bytes_RxG: jax.Array, bits: int, rows: int) -> jax.Array:
    """The inverse of `pack` for so many rows of codes: uint8 [..., D, G]."""
    *leading, _, outputs = bytes_RxG.shape
    codes = jnp.zeros((*leading, rows, outputs), jnp.uint8)
    first, above = 0, bits
    for width in parts_of(bits):
        above -= width
        last = first + -(-rows * width // 8)
        part = (bytes_RxG[..., first:last, None, :] >> _shifts(width)) & (2**width - 1)
        codes |= part.reshape(*leading, -1, outputs)[..., :rows, :] << above
        first = last
    return codes


def _shifts(width: int) -> jax.Array:
    """Where each of a byte's values begins: uint8 [8 / width, 1]."""
    return jnp.arange(0, 8, width, dtype=jnp.uint8)[:, None]


@flax.struct.dataclass
class Grid:
    """What the codes of groups mean: a weight is (code - zero) scale."""

    scale: jax.Array
    """[..., N, G] float16, positive."""
    zero: jax.Array
    """[..., N, G] float16, in units of codes."""

    def codes(self, w_DxG: jax.Array, bits: int, group: int) -> jax.Array:
        """The nearest codes of weights: uint8 [..., D, G]."""
        scale, zero = self._by_row(w_DxG.shape[-2], group)
        return jnp.clip(jnp.round(w_DxG / scale + zero), 0, 2**bits - 1).astype(jnp.uint8)

    def weights(self, codes_DxG: jax.Array, group: int) -> jax.Array:
        """What codes stand for: float32 [..., D, G]."""
        scale, zero = self._by_row(codes_DxG.shape[-2], group)
        return (codes_DxG.astype(jnp.float32) - zero) * scale

    def _by_row(self, rows: int, group: int) -> tuple[jax.Array, jax.Array]:
        def by_row(own: jax.Array) -> jax.Array:
            return jnp.repeat(own.astype(jnp.float32), group, axis=-2)[..., :rows, :]

        return by_row(self.scale), by_row(self.zero)


def range_grid(w_DxG: jax.Array, bits: int, group: int) -> Grid:
    """The grid of round to nearest: from each group's least weight, or 0, to its largest, or 0.

    The zero is a code, so that weights that are 0 stay 0.
    """
    grouped = by_group(w_DxG, group)
    least = jnp.minimum(grouped.min(axis=-2), 0)
    span = jnp.maximum(grouped.max(axis=-2), 0) - least
    scale = jnp.where(span > 0, span / (2**bits - 1), 1)
    # Rounded up, or the largest weight might have no code.
    stored = scale.astype(SCALE)
    stored = jnp.where(stored < scale, jnp.nextafter(stored, jnp.asarray(jnp.inf, SCALE)), stored)
    return Grid(stored, jnp.round(-least / stored.astype(jnp.float32)).astype(SCALE))


def by_group(w_DxG: jax.Array, group: int) -> jax.Array:
    """Weights [..., D, G] as [..., N, group, G], filled up with zeros."""
    *leading, rows, outputs = w_DxG.shape
    padded = jnp.pad(w_DxG, [(0, 0)] * len(leading) + [(0, -rows % group), (0, 0)])
    return padded.reshape(*leading, -1, group, outputs)


@flax.struct.dataclass
class Packed:
    """A matrix [D, G], or matrices with leading axes, as packed codes and what they mean."""

    codes: jax.Array
    """[..., R, G] uint8, see `pack`."""
    grid: Grid
    bits: int = flax.struct.field(pytree_node=False)
    group: int = flax.struct.field(pytree_node=False)
    rows: int = flax.struct.field(pytree_node=False)
    """D."""

    @classmethod
    def of(cls, w_DxG: jax.Array, grid: Grid, bits: int, group: int) -> "Packed":
        """Weights rounded to the nearest of a grid."""
        codes = pack(grid.codes(w_DxG, bits, group), bits)
        return cls(codes, grid, bits, group, rows=w_DxG.shape[-2])

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the matrices: [..., D, G]."""
        *leading, _, outputs = self.codes.shape
        return *leading, self.rows, outputs

    def __getitem__(self, index: jax.Array | int) -> "Packed":
        """One of the matrices along the first axis."""
        return jax.tree.map(lambda part: part[index], self)

    def expert(self, index: jax.Array | int) -> jax.Array:
        """The same, whole: float32 [D, G]."""
        return self[index].weights()

    def weights(self) -> jax.Array:
        """The matrices themselves: float32 [..., D, G]."""
        return self.grid.weights(unpack(self.codes, self.bits, self.rows), self.group)


class PackedMatrix(nnx.Module):
    """Stands in a layer where its matrix did, and reads like it: `[...]` is the matrix, float32."""

    def __init__(self, w_DxG: jax.Array, bits: int, group: int):
        self.bits, self.group, self.rows = bits, group, w_DxG.shape[-2]
        packed = Packed.of(w_DxG, range_grid(w_DxG, bits, group), bits, group)
        self.codes = nnx.Param(packed.codes, axes=())
        self.scale = nnx.Param(packed.grid.scale, axes=())
        self.zero = nnx.Param(packed.grid.zero, axes=())

    @property
    def packed(self) -> Packed:
        """Its parameters in the form that banks take."""
        grid = Grid(self.scale[...], self.zero[...])
        return Packed(self.codes[...], grid, self.bits, self.group, self.rows)

    def __getitem__(self, index: object) -> jax.Array:
        return self.packed.weights()[index]
