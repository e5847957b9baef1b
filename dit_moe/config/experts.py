"""The kinds of experts: feed-forward ones, recurrent ones, and those that cost next to nothing.

What follows from a kind is asked of it: parameters, operations, conversion, upcycling. A file of
the user's own may register others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dit_moe.config.rules import ConfigError

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True)
class ExpertKind:
    """A feed-forward network: y = W_out a(W_in x), of one hidden width F."""

    whole_images: ClassVar[bool] = False
    """It computes the tokens that are routed to it, and no other."""

    name: str
    in_matrices: int
    """How many matrices [D, F] lie side by side in W_in: 2 where one gates the other."""
    biases: bool
    """Whether both layers have one."""
    activation: Callable[["jax.Array"], "jax.Array"]
    """a, from [..., in_matrices F] to [..., F] in the same dtype."""

    def parameters(self, width: int, hidden: int) -> int:
        """Numbers of one expert."""
        matrices = (self.in_matrices + 1) * width * hidden
        return matrices + (self.in_matrices * hidden + width) * self.biases

    def flops(self, width: int, hidden: float) -> float:
        """Operations of its matrix products for one token, forward."""
        return 2 * (self.in_matrices + 1) * width * hidden


@dataclass(frozen=True)
class RecurrentKind:
    """A gated recurrent unit over an image's tokens in raster order, of a state of H numbers in
    each direction, and a linear map of the states to the width (Hecto)."""

    whole_images: ClassVar[bool] = True
    """It computes all tokens of every image, since each depends on others; what it gives counts
    where it is chosen."""

    name: str
    directions: int
    """1: from the first token to the last; 2: from the last to the first as well."""

    def parameters(self, width: int, hidden: int) -> int:
        """Numbers of one expert."""
        gates = 3 * hidden * (width + hidden) + 4 * hidden
        return self.directions * (gates + hidden * width) + width

    def flops(self, width: int, hidden: float) -> float:
        """Operations of its matrix products for one token, forward."""
        return 2 * self.directions * 4 * width * hidden + self.step_flops(hidden)

    def step_flops(self, hidden: float) -> float:
        """The part of these operations that takes the state before, and waits for it."""
        return 2 * self.directions * 3 * hidden * hidden


RECURRENT = {kind.name: kind for kind in (RecurrentKind("gru", 1), RecurrentKind("bigru", 2))}
"""Kinds of recurrent experts by name."""


class _Kinds(dict[str, ExpertKind]):
    def __missing__(self, name: str) -> ExpertKind:
        raise ConfigError(f"expert is {name!r}; allowed: {', '.join(map(repr, self))}")


EXPERTS: dict[str, ExpertKind] = _Kinds()
"""All kinds by name; an unknown name is a `ConfigError`."""


def register_expert(kind: ExpertKind) -> ExpertKind:
    """Makes a kind known under its name, which a config may then hold."""
    EXPERTS[kind.name] = kind
    return kind


# JAX is imported on first use: the commands' --help needs none.


def _swiglu(h: "jax.Array") -> "jax.Array":
    import jax
    import jax.numpy as jnp

    gate, up = jnp.split(h, 2, axis=-1)
    return jax.nn.silu(gate) * up


def _gelu(h: "jax.Array") -> "jax.Array":
    import jax

    return jax.nn.gelu(h, approximate=True)


def _silu(h: "jax.Array") -> "jax.Array":
    import jax

    return jax.nn.silu(h)


for _kind in (
    # Gate, up and down without biases, gate first (Shazeer 2020; DiT-MoE, DSMoE).
    ExpertKind("swiglu", in_matrices=2, biases=False, activation=_swiglu),
    # Up and down, with the tanh approximation (DiT, ProMoE).
    ExpertKind("gelu", in_matrices=1, biases=True, activation=_gelu),
    ExpertKind("silu", in_matrices=1, biases=True, activation=_silu),
):
    register_expert(_kind)


CHEAP_EXPERTS = {"zero": 0, "copy": 0, "constant": 3}
"""Experts without matrices (MoE++, Jin et al. 2024): `zero` gives nothing (AdaMoE's null expert),
`copy` the token itself, `constant` a mix of the token and a learnt vector.

Told is how many vectors of the model's width each has; a token is multiplied by each once."""
