"""Hidden neurons of experts away, equally many of each (SlimMoE, Li et al. 2025).

A distillation loss against the model itself has no gradient, so that importance is asked of the
denoising loss. With training between, a chain of smaller steps is better than one (docs).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic.dataclasses import dataclass

from dit_moe.config import ConfigError, ModelConfig
from dit_moe.config.rules import RULES, PositiveInt
from dit_moe.models.parameters import Parameters, functional
from dit_moe.surgery.compress.calibration import Calibration, Inputs
from dit_moe.surgery.compress.layers import Unit, network_of, units_of
from dit_moe.surgery.compress.steps import Done, Model, StepSettings
from dit_moe.surgery.interchangeable import check_sparse

_W_OUT = ".feed_forward.experts.w_out"


@dataclass(frozen=True, config=RULES, kw_only=True)
class SlimSettings(StepSettings):
    """Every expert keeps `hidden` neurons, the unconditional one too, since one width is stored for
    both; experts that have no more keep all. Shared ones and groups (`moe.unlike`), which have
    widths of their own, stay."""

    name: Literal["slim"] = "slim"
    hidden: PositiveInt
    by: Literal["loss", "fisher", "magnitude"] = "fisher"
    """What a neuron is worth. With c its factor, 1, and L the denoising loss of a batch of the
    calibration: `loss`: |sum of dL/dc| over batches (Taylor's first term), `fisher`: the sum of
    (dL/dc)^2; or the norm of its weights."""

    @property
    def needs_calibration(self) -> bool:
        """It asks for slopes of the loss."""
        return self.by != "magnitude"


def slim(model: Model, settings: SlimSettings, calibration: Calibration | None) -> Done:
    """Takes the neurons away that are worth least; of equal ones the first stay, in their order.

    Raises:
      ConfigError: the model has no experts, or such that cannot be slimmer.
    """
    network = model.config.model
    _check(network, settings)
    units = units_of(network, model.parameters)
    layers = [number for number, unit in enumerate(units) if unit.segment.moe is not None]
    if settings.by == "magnitude":
        worth = [neuron_norms(units[number]) for number in layers]
    else:
        assert calibration is not None
        worth = neuron_slopes(model, calibration, squared=settings.by == "fisher")
    slimmer = [
        _with_neurons(network, units[number], worth_ExF, settings.hidden)
        for number, worth_ExF in zip(layers, worth, strict=True)
    ]
    widths = [int(unit.moe.hidden_ratio * network.width) for unit in slimmer]
    if all(new is units[number] for number, new in zip(layers, slimmer, strict=True)):
        return Done(model, {"hidden": widths})
    for number, unit in zip(layers, slimmer, strict=True):
        units[number] = unit
    return Done(model.of(*network_of(network, model.parameters, units)), {"hidden": widths})


def _check(network: ModelConfig, settings: SlimSettings) -> None:
    check_sparse(network)
    ratio = settings.hidden / network.width
    if int(ratio * network.width) != settings.hidden or not (ratio * network.width).is_integer():
        raise ConfigError(
            f"hidden is {settings.hidden}, whose ratio to width {network.width} gives no whole "
            f"number again; allowed: such as {settings.hidden // 8 * 8 or 8}"
        )


def neuron_norms(unit: Unit) -> np.ndarray:
    """The norm of all weights that a neuron has: [E, F]."""
    w_in = unit.parameters[f"{unit.mixture}experts.w_in"]
    w_out = unit.parameters[f"{unit.mixture}experts.w_out"]
    e, f, _ = w_out.shape
    into_ExF = np.square(w_in.astype(np.float64)).sum(axis=1).reshape(e, -1, f).sum(axis=1)
    return np.sqrt(into_ExF + np.square(w_out.astype(np.float64)).sum(axis=2))


def neuron_slopes(model: Model, calibration: Calibration, *, squared: bool) -> list[np.ndarray]:
    """The slopes of the denoising loss in the neurons' factors, [E, F] of each MoE layer in order:
    the absolute value of their sum over batches, or the sum of their squares."""
    network = model.config.model
    parameters = jax.device_put(dict(model.parameters))
    inner, rest = {}, {}
    for path, value in parameters.items():
        (inner if path.endswith(_W_OUT) else rest)[path] = value

    def loss(inner: Parameters, rest: Parameters, inputs: Inputs) -> jax.Array:
        value = functional(network)({**inner, **rest})(inputs.x, inputs.t, inputs.y).value
        wanted = calibration.objective.target(inputs.clean, inputs.noise)
        return jnp.square(value[..., : wanted.shape[-1]] - wanted).mean()

    @jax.jit
    def slopes(inner: Parameters, rest: Parameters, inputs: Inputs) -> Parameters:
        gradient = jax.grad(loss)(inner, rest, inputs)
        # A factor of a neuron is one of its row of W_out.
        found = {path: (inner[path] * gradient[path]).sum(axis=-1) for path in inner}
        return {path: jnp.square(s) if squared else s for path, s in found.items()}

    sums = {path: np.zeros(value.shape[:-1]) for path, value in inner.items()}
    for inputs in calibration.batches():
        for path, found in jax.device_get(slopes(inner, rest, inputs)).items():
            sums[path] += found
    of_blocks = [
        sums[f"trunk.segments.{i}.blocks.{s.unit - 1}{_W_OUT}"]
        for i, s in enumerate(network.trunk)
        if s.moe is not None
    ]
    return [np.abs(layer_ExF) for segment in of_blocks for layer_ExF in segment]


def _with_neurons(network: ModelConfig, unit: Unit, worth_ExF: np.ndarray, hidden: int) -> Unit:
    """The unit whose experts keep so many neurons each."""
    f = worth_ExF.shape[1]
    if hidden >= f:
        return unit
    kept_ExK = np.sort(np.argsort(-worth_ExF, axis=1, kind="stable")[:, :hidden], axis=1)
    start = f"{unit.mixture}experts."
    own = {k: v for k, v in unit.parameters.items() if k.startswith(unit.mixture)}
    w_in = own[f"{start}w_in"]
    matrices = w_in.shape[-1] // f
    columns_ExG = np.concatenate([kept_ExK + f * i for i in range(matrices)], axis=1)
    own[f"{start}w_in"] = np.take_along_axis(w_in, columns_ExG[:, None], axis=2)
    own[f"{start}w_out"] = np.take_along_axis(own[f"{start}w_out"], kept_ExK[..., None], axis=1)
    if f"{start}b_in" in own:
        own[f"{start}b_in"] = np.take_along_axis(own[f"{start}b_in"], columns_ExG, axis=1)
    return unit.of(dataclasses.replace(unit.moe, hidden_ratio=hidden / network.width), own)
