"""Packed matrices that can be read at fewer bits than they have.

Two ways of nesting. `planes` (D2MoE, Wang et al. 2025): a matrix of few bits, and planes of one bit
that each add a scale of their own, with a sign, to every weight; whoever wants fewer bits leaves
out the last planes. `top_bits` (MatQuant, Nair et al. 2025): the highest bits of a code, rounded,
with the scale and zero that follow from it; the matrix is stored as any packed one.
"""

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.nn.packed import (
    SCALE,
    Grid,
    Packed,
    PackedMatrix,
    by_group,
    pack,
    unpack,
)


def top_bits(packed: Packed, bits: int) -> Packed:
    """A matrix at fewer bits: of code c of b bits, clip(floor(c / 2^(b - bits) + 1/2), 0, 2^bits
    - 1)."""
    gone = packed.bits - bits
    if gone == 0:
        return packed
    codes = unpack(packed.codes, packed.bits, packed.rows).astype(jnp.int32)
    fewer = jnp.clip((codes + (1 << gone - 1)) >> gone, 0, 2**bits - 1)
    # Both exact, as powers of two.
    grid = Grid(packed.grid.scale * SCALE(2**gone), packed.grid.zero / SCALE(2**gone))
    return Packed(pack(fewer, bits), grid, bits, packed.group, packed.rows)


@flax.struct.dataclass
class PackedPlanes:
    """A matrix [D, G], or matrices with leading axes: few bits, and K planes of signs."""

    base: Packed
    planes: jax.Array
    """[..., K, R, G] uint8, see `pack`: 1 where a plane's scale is added, 0 where it is taken."""
    scale: jax.Array
    """[..., K, N, G] float16 of each plane's groups."""

    @classmethod
    def of(cls, w_DxG: jax.Array, base: Packed, number: int) -> "PackedPlanes":
        """The matrix that `base` is of, with so many planes: each the signs of what is left, by
        their mean size, which is where their squared error is least."""
        left = w_DxG - base.weights()
        real = by_group(jnp.ones_like(w_DxG[..., :1]), base.group).sum(axis=-2)
        planes, scales = [], []
        for _ in range(number):
            own = by_group(jnp.abs(left), base.group).sum(axis=-2) / real
            planes.append(pack((left > 0).astype(jnp.uint8), 1))
            scales.append(own.astype(SCALE))
            left = left - _signed(planes[-1], scales[-1], base)
        return cls(base, jnp.stack(planes, axis=-3), jnp.stack(scales, axis=-3))

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the matrices: [..., D, G]."""
        return self.base.shape

    def __getitem__(self, index: jax.Array | int) -> "PackedPlanes":
        """One of the matrices along the first axis."""
        return jax.tree.map(lambda part: part[index], self)

    def expert(self, index: jax.Array | int) -> jax.Array:
        """The same, whole: float32 [D, G]."""
        return self[index].weights()

    def weights(self) -> jax.Array:
        """The matrices themselves: float32 [..., D, G]."""
        found = self.base.weights()
        for plane in range(self.planes.shape[-3]):
            own = self.planes[..., plane, :, :], self.scale[..., plane, :, :]
            found = found + _signed(*own, self.base)
        return found

    def fewer(self, number: int) -> "Packed | PackedPlanes":
        """The same with the first planes alone."""
        if number == 0:
            return self.base
        return PackedPlanes(
            self.base, self.planes[..., :number, :, :], self.scale[..., :number, :, :]
        )


def _signed(plane: jax.Array, scale: jax.Array, base: Packed) -> jax.Array:
    """What a plane adds: float32 [..., D, G]."""
    # A code of one bit with its zero at 1/2, and twice the scale, exactly.
    grid = Grid(scale * SCALE(2), jnp.full_like(scale, 0.5))
    return grid.weights(unpack(plane, 1, base.rows), base.group)


class PlanedMatrix(nnx.Module):
    """Stands in a layer where its matrix did: `least` bits rounded to nearest, and planes."""

    def __init__(self, w_DxG: jax.Array, bits: int, least: int, group: int):
        self.base = PackedMatrix(w_DxG, least, group)
        packed = PackedPlanes.of(w_DxG, self.base.packed, bits - least)
        self.planes = nnx.Param(packed.planes, axes=())
        self.plane_scale = nnx.Param(packed.scale, axes=())

    @property
    def packed(self) -> PackedPlanes:
        """Its parameters in the form that banks take."""
        return PackedPlanes(self.base.packed, self.planes[...], self.plane_scale[...])

    def __getitem__(self, index: object) -> jax.Array:
        return self.packed.weights()[index]
