"""Stacks of packed matrices of which some have more bits than others.

Matrices with equal bits lie together as one part, and a place for each tells where. So all bytes
are of use, however many bits each matrix has, and a part is packed as a whole stack would be.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dit_moe.nn.packed import Packed, PackedMatrix


@flax.struct.dataclass
class PackedParts:
    """Matrices [E, D, G], or stacks of them with leading axes, in parts of equal bits."""

    parts: tuple[Packed, ...]
    """[..., E_part, D, G] each."""
    place: jax.Array
    """[..., E] int32: where each matrix lies in the parts, one after another."""

    @classmethod
    def of(cls, parts: Sequence[Packed], members: Sequence[np.ndarray]) -> "PackedParts":
        """Parts and, for each of them, the numbers of the matrices that it holds, in order."""
        place = np.argsort(np.concatenate(members), kind="stable")
        return cls(tuple(parts), jnp.asarray(place, jnp.int32))

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the matrices: [..., E, D, G]."""
        return *self.place.shape, *self.parts[0].shape[-2:]

    def expert(self, index: jax.Array | int) -> jax.Array:
        """One of the matrices [E, D, G]: float32 [D, G]. Only its own part is looked at."""
        first = np.cumsum([0, *(part.shape[0] for part in self.parts)])
        place = self.place[index]
        own = jnp.searchsorted(jnp.asarray(first[1:-1]), place, side="right")
        found = [
            lambda place, part=part, start=start: part.expert(place - start)
            for part, start in zip(self.parts, first[:-1].tolist(), strict=True)
        ]
        return jax.lax.switch(own, found, place)

    def weights(self) -> jax.Array:
        """The matrices themselves: float32 [..., E, D, G]."""
        together = jnp.concatenate([part.weights() for part in self.parts], axis=-3)
        return jnp.take_along_axis(together, self.place[..., None, None], axis=-3)


def bits_of_parts(bits_E: Sequence[int]) -> list[tuple[int, int]]:
    """The parts of a stack whose matrices have these bits: bits and how many, most bits first."""
    return [(bits, list(bits_E).count(bits)) for bits in sorted(set(bits_E), reverse=True)]


class PartedMatrices(nnx.Module):
    """Stands in a layer where its stack [..., E, D, G] did: rounded to nearest, the first matrices
    with the most bits."""

    def __init__(self, w_ExDxG: jax.Array, bits_E: Sequence[int], group: int):
        parts, first = [], 0
        for bits, number in bits_of_parts(bits_E):
            own = w_ExDxG[..., first : first + number, :, :]
            parts.append(PackedMatrix(own, bits, group))
            first += number
        self.parts = nnx.List(parts)
        place = jnp.broadcast_to(jnp.arange(first, dtype=jnp.int32), w_ExDxG.shape[:-2])
        self.place = nnx.Param(place, axes=())

    @property
    def packed(self) -> PackedParts:
        """Its parameters in the form that banks take."""
        return PackedParts(tuple(part.packed for part in self.parts), self.place[...])

    def __getitem__(self, index: object) -> jax.Array:
        return self.packed.weights()[index]
