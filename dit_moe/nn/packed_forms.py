"""All forms of packed matrices, and the one that a config tells."""

import jax

from dit_moe.config import PackedConfig
from dit_moe.nn.packed import Packed, PackedMatrix
from dit_moe.nn.packed_parts import PackedParts, PartedMatrices
from dit_moe.nn.packed_planes import PackedPlanes, PlanedMatrix

PackedForm = Packed | PackedParts | PackedPlanes
"""In memory, as banks take them: each has `shape`, `weights()` and `expert(index)`."""
PackedModule = PackedMatrix | PartedMatrices | PlanedMatrix
"""In a layer, in place of the matrix: each has `packed`."""


def fresh(w_DxG: jax.Array, kind: PackedConfig) -> PackedModule:
    """The module of matrices [..., D, G], rounded to nearest."""
    if kind.experts:
        return PartedMatrices(w_DxG, kind.experts, kind.group)
    if kind.has_planes:
        return PlanedMatrix(w_DxG, kind.bits, kind.fewest, kind.group)
    return PackedMatrix(w_DxG, kind.bits, kind.group)
