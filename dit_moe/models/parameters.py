"""A model as a pure function of a flat dictionary of parameters.

Checkpoints, optimiser, EMA and conversion all speak of parameters by dotted path, such as
"groups.blocks.0.attention.qkv.kernel" (stacked over groups).
"""

from collections.abc import Callable, Mapping

import jax
from flax import nnx

from dit_moe.config import ModelConfig
from dit_moe.models.dit import DiT
from dit_moe.nn.flat import bind, variables

Parameters = dict[str, jax.Array]


def get_parameters(model: DiT) -> Parameters:
    """The model's parameters by dotted path."""
    return {path: variable[...] for path, variable in variables(model).items()}


def set_parameters(model: DiT, parameters: Mapping[str, jax.typing.ArrayLike]) -> None:
    """Replaces all parameters of the model in place."""
    for path, variable in variables(model).items():
        variable[...] = jax.numpy.asarray(parameters[path])


def init_parameters(config: ModelConfig, key: jax.Array) -> Parameters:
    """Fresh parameters; pure, so it can be jitted with sharded outputs."""
    return get_parameters(DiT(config, nnx.Rngs(params=key)))


def abstract_parameters(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of all parameters, without memory for them."""
    return jax.eval_shape(lambda: init_parameters(config, jax.random.key(0)))


def logical_axes(config: ModelConfig) -> dict[str, tuple[str | None, ...]]:
    """The logical name of every axis of every parameter; a leading group axis is None."""
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
