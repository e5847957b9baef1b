"""A network whose experts come from a ring: the same network, with banks that ask the host."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, SupportsInt

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dit_moe.config import EXPERTS, ModelConfig
from dit_moe.config.experts import ExpertKind
from dit_moe.models.dit import DiT
from dit_moe.models.parameters import Parameters
from dit_moe.nn.feed_forward import Experts, ExpertWeights, PackedExperts
from dit_moe.nn.flat import bind
from dit_moe.streaming.layout import Layer, Store

Bound = Callable[[Parameters], Experts]
"""From the tensors of experts, by the names of `Leaf`, to experts that have them."""


class Blocks(Protocol):
    """What gives experts, such as a `Ring`."""

    def block(self, layer: int, expert: int, user: object) -> np.ndarray:
        """See `Ring.block`."""
        ...


class Source:
    """Where banks get their experts. Its programs outlive no ring: it is given one before they run.

    Args:
      store: what there is.
    """

    def __init__(self, store: Store):
        self.store = store
        self.ring: Blocks | None = None

    def leaves(
        self,
        kept: Layer,
        user: object,
        number: SupportsInt,
        expert: SupportsInt,
    ) -> tuple[np.ndarray, ...]:
        """The tensors of an expert.

        Args:
          kept: any layer of its stack.
          user: see `Ring.block`.
          number: of its layer in the store.
          expert: in its layer.
        """
        assert self.ring is not None
        block = self.ring.block(int(number), int(expert), user)
        return tuple(
            block[offset : offset + leaf.bytes].view(jnp.dtype(leaf.dtype)).reshape(leaf.shape)
            for leaf, offset in zip(kept.leaves, kept.offsets, strict=False)
        )


@flax.struct.dataclass
class StreamedBank:
    """The experts of one layer as dispatch asks for them."""

    number: jax.Array
    """[] int32: of the layer in the store."""
    kept: Layer = flax.struct.field(pytree_node=False)
    """Any layer of the stack; they are alike."""
    bound: Bound = flax.struct.field(pytree_node=False)
    activation: str = flax.struct.field(pytree_node=False)
    """Name of the kind."""
    source: Source = flax.struct.field(pytree_node=False)

    @property
    def kind(self) -> ExpertKind:
        """The facts of the kind."""
        return EXPERTS[self.activation]

    @property
    def num_experts(self) -> int:
        """E."""
        return self.kept.experts

    def expert(self, index: jax.Array | int, dtype: jnp.dtype) -> ExpertWeights:
        """The weights of one expert, without the leading axis."""
        return self._ask(index).expert(0, dtype)

    def stack(self, dtype: jnp.dtype) -> ExpertWeights:
        """The weights of all experts, their matrices in a dtype."""
        each = jax.lax.map(self._ask, jnp.arange(self.num_experts))
        return jax.tree.map(lambda w: w[:, 0], each).stack(dtype)

    def _ask(self, index: jax.Array | int) -> ExpertWeights | PackedExperts:
        """One expert as it is stored, from the host while the program runs."""
        shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in self.kept.leaves)
        # The user is the stack of one network, whose layers run one after another.
        give = partial(self.source.leaves, self.kept, self.bound)
        leaves = jax.pure_callback(give, shapes, self.number, index)
        names = [leaf.name for leaf in self.kept.leaves]
        return self.bound(
            {name: leaf[None] for name, leaf in zip(names, leaves, strict=True)}
        ).bank()


class _StreamedExperts(nnx.Module):
    """Stands where the network has `Experts`."""

    def __init__(self, experts: Experts, kept: Layer, units: int, source: Source):
        self.kind, self.kept, self.source = experts.kind, kept, source
        # A function, as a module that a module has would be one of its parts.
        self.bound = lambda leaves: bind(experts, leaves)
        self.number = nnx.Param(jax.ShapeDtypeStruct((units,), jnp.int32))

    def bank(self) -> StreamedBank:
        """The bank of the unit that runs."""
        return StreamedBank(self.number[...], self.kept, self.bound, self.kind, self.source)


def streamed(config: ModelConfig, source: Source) -> Callable[[Parameters], DiT]:
    """As `models.parameters.functional`, of a network whose experts are the source's: it computes
    with the other parameters.

    Args:
      config: of a model to which the store fits.
      source: of the experts; has a ring when the network runs.
    """
    model = nnx.eval_shape(lambda: DiT(config, nnx.Rngs(0)))
    numbers: dict[str, list[int]] = {}
    for number, layer in enumerate(source.store.layers):
        numbers.setdefault(layer.path, []).append(number)
    for path, own in numbers.items():
        *above, name = path.split(".")
        parent = functools.reduce(_child, above, model)
        experts = _child(parent, name)
        stand_in = _StreamedExperts(experts, source.store.layers[own[0]], len(own), source)
        if name.isdecimal():
            parent[int(name)] = stand_in
        else:
            setattr(parent, name, stand_in)
    places = {f"{path}.number": jnp.asarray(own, jnp.int32) for path, own in numbers.items()}
    return lambda parameters: bind(model, {**parameters, **places})


def _child(module: Any, name: str) -> Any:
    return module[int(name)] if name.isdecimal() else getattr(module, name)
