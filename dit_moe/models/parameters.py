"""A model as a pure function of a flat dictionary of parameters.

Checkpoints, optimiser, EMA and conversion all speak of parameters by dotted path, such as
"trunk.segments.0.blocks.0.attention.qkv.kernel" (stacked over the units of segment 0).
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from flax import nnx

from dit_moe.config import ModelConfig, MoEConfig
from dit_moe.models.dit import DiT
from dit_moe.nn.flat import bind, variables

Parameters = dict[str, jax.Array]

_STACK = re.compile(r"trunk\.segments\.\d+\.")


class Place(NamedTuple):
    """Where the parameters of one block lie: at `unit` of the stacks whose paths begin so."""

    prefix: str
    """Such as "trunk.segments.0.blocks.1."."""
    unit: int
    """Which of the segment's."""
    moe: MoEConfig | None
    """The block's mixture; None where its feed-forward is dense."""


def places(config: ModelConfig) -> Iterator[Place]:
    """The place of every block, in order."""
    for number, segment in enumerate(config.trunk):
        for unit in range(segment.repeats):
            for block in range(segment.unit):
                moe = segment.moe if block == segment.unit - 1 else None
                yield Place(f"trunk.segments.{number}.blocks.{block}.", unit, moe)


def router_prefixes(config: ModelConfig) -> list[str]:
    """What the paths of the routers' parameters begin with: of the one before the trunk, or for
    every segment with mixtures."""
    if config.pregate is not None:
        return ["trunk.pregate.router."]
    return [
        f"trunk.segments.{number}.blocks.{segment.unit - 1}.feed_forward.router."
        for number, segment in enumerate(config.trunk)
        if segment.moe is not None
    ]


def stack_of(path: str) -> str | None:
    """The prefix of the segment whose units a parameter is stacked over; None: not stacked."""
    match = _STACK.match(path)
    return match and match[0]


def get_parameters(model: DiT) -> Parameters:
    """The model's parameters by dotted path."""
    return {path: variable[...] for path, variable in variables(model).items()}


def init_parameters(config: ModelConfig, key: jax.Array) -> Parameters:
    """Fresh parameters; pure, so it can be jitted with sharded outputs."""
    return get_parameters(DiT(config, nnx.Rngs(params=key)))


def abstract_parameters(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of all parameters, without memory for them."""
    return jax.eval_shape(lambda: init_parameters(config, jax.random.key(0)))


def logical_axes(config: ModelConfig) -> dict[str, tuple[str | None, ...]]:
    """The logical name of every axis of every parameter; the leading axis of a stack is None."""
    axes = {}
    for path, variable in variables(_abstract_model(config)).items():
        names = variable.get_metadata()["axes"]
        axes[path] = (None,) * (variable.ndim - len(names)) + names
    return axes


def functional(config: ModelConfig) -> Callable[[Parameters], DiT]:
    """A function from parameters to a model that computes with them; usable under jit and grad."""
    model = _abstract_model(config)
    return lambda parameters: bind(model, parameters)


def _abstract_model(config: ModelConfig) -> DiT:
    return nnx.eval_shape(lambda: DiT(config, nnx.Rngs(0)))
