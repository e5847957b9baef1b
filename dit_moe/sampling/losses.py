"""What samples are steered by beside measurements: losses that a user names by import path.

Only what the user names is imported and run: no run folder and no config says such a name.
"""

import dataclasses
import hashlib
import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dit_moe.config import ConfigError, ModelConfig, require
from dit_moe.diffusion.measurements import EARLIEST, Weighted

Function = Callable[[jax.Array, jax.Array], jax.Array]
"""From clean data [N, H, W, C] as the network sees them, and labels [N], to [N]: differentiable by
the data, each of its own example alone."""

_FIELDS = ("weight", "from", "to")


@dataclasses.dataclass(frozen=True)
class SteeringLoss:
    """A loss of a sum, and when it counts."""

    name: str
    """MODULE:FUNCTION."""
    function: Function
    weight: float
    window: tuple[float, float]
    """See `Weighted.window`."""
    source: str | None
    """SHA-256 of the module's file; None where it has none."""

    def of(self, y_N: jax.Array) -> Weighted:
        """The loss of images of these labels."""
        return Weighted(lambda x: self.function(x, y_N), self.weight, self.window)

    def description(self) -> dict[str, object]:
        """Ready for JSON."""
        kept = ("name", "weight", "window", "source")
        return {name: getattr(self, name) for name in kept}


def read_losses(texts: Sequence[str], model: ModelConfig) -> tuple[SteeringLoss, ...]:
    """Imports the losses that a user names, and tries each on two images without computing.

    Args:
      texts: each as MODULE:FUNCTION or MODULE:FUNCTION,weight=1,from=0,to=0.99.
      model: whose images they are for.

    Raises:
      ConfigError: there is no such function, or it is no such loss.
    """
    return tuple(_read(text, model) for text in texts)


def _read(text: str, model: ModelConfig) -> SteeringLoss:
    name, *fields = (part.strip() for part in text.split(","))
    values = _values(text, fields)
    weight, start, end = values["weight"], values["from"], values["to"]
    require(
        math.isfinite(weight) and weight >= 0 and 0 <= start <= end <= 1,
        f"steer_loss is {text!r}; allowed: a weight of 0 or more, and times of which 0 is data and "
        "1 is noise, from the lower to the higher one",
    )
    function, source = _imported(name)
    loss = SteeringLoss(name, function, weight, (start, end), source)
    _check(loss, model)
    return loss


def _values(text: str, fields: Sequence[str]) -> Mapping[str, float]:
    values = {"weight": 1.0, "from": 0.0, "to": EARLIEST}
    for field in fields:
        key, _, value = field.partition("=")
        try:
            values[key] = float(value) if key in _FIELDS else math.nan
        except ValueError:
            values[key] = math.nan
        require(
            not math.isnan(values[key]),
            f"steer_loss is {text!r}, where {field!r} is no field; allowed: "
            f"{', '.join(f'{known}=NUMBER' for known in _FIELDS)}",
        )
    return values


def _imported(name: str) -> tuple[Function, str | None]:
    path, _, attribute = name.partition(":")
    if not path or not attribute:
        raise ConfigError(
            f"steer_loss is {name!r}; allowed: MODULE:FUNCTION, such as my_losses:brightness of "
            "my_losses.py in this folder"
        )
    # As for python -m, which the installed program is not: modules of the folder it is called in.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(path)
        function: Any = getattr(module, attribute)
    except Exception as error:  # whatever the user's module does
        raise ConfigError(
            f"steer_loss is {name!r}, which cannot be imported: {type(error).__name__}: {error}; "
            "allowed: a module of this folder or an installed one, and a function in it"
        ) from error
    file = getattr(module, "__file__", None)
    return function, file and hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _check(loss: SteeringLoss, model: ModelConfig) -> None:
    shape = (2, *model.image_shape)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    try:
        found = jax.eval_shape(loss.function, images, jax.ShapeDtypeStruct((2,), jnp.int32))
        told = f"gives {getattr(found, 'dtype', '')} {list(getattr(found, 'shape', ()))}"
        fits = found.shape == (2,) and jnp.issubdtype(found.dtype, jnp.floating)
    except Exception as error:  # whatever the user's function does
        told, fits = f"fails: {type(error).__name__}: {error}", False
    require(
        fits,
        f"steer_loss is {loss.name!r}, which of images {list(shape)} and labels [2] {told}; "
        "allowed: a function of JAX that gives a floating-point number for each image, [2]",
    )
