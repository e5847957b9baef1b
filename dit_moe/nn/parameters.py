"""A model as a pure function of a flat dictionary of parameters.

Checkpoints, optimiser, EMA and conversion all speak of parameters by dotted path, such as
"groups.blocks.0.attention.qkv.kernel" (stacked over groups).
"""

from collections.abc import Callable, Mapping

import jax
from flax import nnx

from dit_moe.config import ModelConfig
from dit_moe.nn.dit import DiT

Parameters = dict[str, jax.Array]


def get_parameters(model: DiT) -> Parameters:
    """The model's parameters by dotted path."""
    return {path: variable[...] for path, variable in _variables(model).items()}


def set_parameters(model: DiT, parameters: Mapping[str, jax.typing.ArrayLike]) -> None:
    """Replaces all parameters of the model in place."""
    for path, variable in _variables(model).items():
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
    for path, variable in _variables(_abstract_model(config)).items():
        names = variable.get_metadata()["axes"]
        axes[path] = (None,) * (variable.ndim - len(names)) + names
    return axes


def functional(config: ModelConfig) -> Callable[[Parameters], DiT]:
    """A function from parameters to a model that computes with them; usable under jit and grad."""
    graphdef, state = nnx.split(_abstract_model(config))

    def bind(parameters: Parameters) -> DiT:
        flat = [
            (path, variable.replace(parameters[_dotted(path)]))
            for path, variable in nnx.to_flat_state(state)
        ]
        return nnx.merge(graphdef, nnx.from_flat_state(flat))

    return bind


def _abstract_model(config: ModelConfig) -> DiT:
    return nnx.eval_shape(lambda: DiT(config, nnx.Rngs(0)))


def _variables(model: DiT) -> dict[str, nnx.Variable]:
    return {
        _dotted(path): variable for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))
