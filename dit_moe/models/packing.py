"""Which matrices of a network are packed (`ModelConfig.packed`)."""

from collections.abc import Sequence

import jax
from flax import nnx

from dit_moe.config import ConfigError, PackedConfig
from dit_moe.models.patterns import check_patterns, matches
from dit_moe.nn.feed_forward import Experts
from dit_moe.nn.linear import Linear
from dit_moe.nn.packed_forms import PackedModule, fresh

_MATRICES = {Linear: ("kernel",), Experts: ("w_in", "w_out")}


def pack_matrices(network: nnx.Module, packed: Sequence[PackedConfig]) -> None:
    """Replaces matrices of a network, whose stacks are made, by packed ones, rounded to nearest.

    Raises:
      ConfigError: a pattern matches none, several match the same, or one tells the bits of another
        number of experts.
    """
    if not packed:
        return
    found = packable(network)
    for number, kind in enumerate(packed):
        field = f"config.model.packed.{number}.patterns"
        check_patterns(field, kind.patterns, list(found), "matrix that can be packed")
    for path, (module, name) in found.items():
        kind = kind_of(path, packed)
        if kind is not None:
            setattr(module, name, _packed(path, getattr(module, name)[...], kind))


def _packed(path: str, w: jax.Array, kind: PackedConfig) -> PackedModule:
    number = w.shape[-3] if path.endswith(_MATRICES[Experts]) else 0
    if kind.experts and number != len(kind.experts):
        raise ConfigError(
            f"config.model.packed has bits for {len(kind.experts)} experts of {path}; allowed: for "
            f"{number}, as many as it has"
        )
    return fresh(w, kind)


def packable(network: nnx.Module) -> dict[str, tuple[nnx.Module, str]]:
    """The matrices that can be packed by dotted path: the layer that has it, and its name there."""
    return {
        ".".join(map(str, (*path, name))): (module, name)
        for path, module in nnx.iter_modules(network)
        for name in _MATRICES.get(type(module), ())
    }


def kind_of(path: str, packed: Sequence[PackedConfig]) -> PackedConfig | None:
    """How the matrix of a path is packed; None: not at all.

    Raises:
      ConfigError: several match it.
    """
    kinds = [kind for kind in packed if matches(path, kind.patterns)]
    if len(kinds) > 1:
        raise ConfigError(
            f"config.model.packed has {path} in {len(kinds)} of its parts; allowed: one of them"
        )
    return kinds[0] if kinds else None
