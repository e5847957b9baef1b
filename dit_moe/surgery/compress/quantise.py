"""Matrices of few bits: by what method, and where a budget is given, how many bits each."""

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from dit_moe.config import ConfigError
from dit_moe.config.packed import BITS, Nested
from dit_moe.config.rules import RULES, Listed, PositiveFloat, PositiveInt, require
from dit_moe.models.parameters import places
from dit_moe.models.unpacking import packable_paths, packed_parameters
from dit_moe.nn.packed import Packed
from dit_moe.nn.packed_forms import PackedForm
from dit_moe.nn.packed_parts import PackedParts
from dit_moe.nn.packed_planes import PackedPlanes
from dit_moe.surgery.compress.allocation import allocate
from dit_moe.surgery.compress.bits import (
    Bits,
    apart,
    bits_of,
    is_feed_forward,
    is_modulation,
    kinds_of,
    mean_bits,
    spread,
)
from dit_moe.surgery.compress.calibration import Calibration
from dit_moe.surgery.compress.correlations import Seen, Walk, check_seen
from dit_moe.surgery.compress.rounding import gptq, half_quadratic, nearest
from dit_moe.surgery.compress.sensitivity import By, items_of, losses, own_parameters
from dit_moe.surgery.compress.steps import Done, Model, StepSettings


def _known(bits: int) -> int:
    if bits not in (0, *BITS):
        raise PydanticCustomError("bits", "allowed: 2 to 8, or 0 for whole matrices")
    return bits


Width = Annotated[int, AfterValidator(_known)]
"""Bits of a weight, 2 to 8; 0: it stays as it is."""


@dataclass(frozen=True, config=RULES, kw_only=True)
class QuantiseSettings(StepSettings):
    """Bits of the matrices by what they are, of feed-forward ones perhaps by a budget; what is not
    named here stays whole."""

    name: Literal["quantise"] = "quantise"
    bits: Width = 4
    """Of experts, and of the feed-forward networks of dense blocks."""
    method: Literal["nearest", "hqq", "gptq"] = "hqq"
    """`nearest`: round to nearest. `hqq`: the zeros fitted, without data. `gptq`: by the inputs of
    each matrix, of experts those of their own tokens; what runs once an image by `hqq`."""
    group: PositiveInt = 64
    """Inputs that share a scale and a zero."""
    attention: Width | None = None
    """Of attention; None: `bits`."""
    shared: Width | None = None
    """Of the shared experts, which every token passes; None: `bits`."""
    modulation: Width = 8
    """Of adaptive normalisation, which runs once an image."""
    budget: PositiveFloat | None = None
    """Mean bits of a weight of experts, shared ones included, and of dense blocks' feed-forward
    networks, in place of `bits` and `shared`: each matrix of each expert has its own."""
    choices: Listed[Annotated[int, Field(ge=BITS[0], le=BITS[-1])]] = (2, 3, 4, 6)
    """What they may have under the budget."""
    by: By = "error"
    """Who gets more; see `sensitivity`."""
    nested: Nested | None = None
    """What has `bits` can be read at fewer, down to `least`: see `PackedConfig`."""
    least: Annotated[int, Field(ge=BITS[0], le=BITS[-1])] = 2
    """As few bits as may be read of what is nested."""

    def __post_init__(self) -> None:
        if self.budget is None:
            return
        require(
            self.nested is None,
            f"nested is {self.nested!r} with a budget; allowed: one of them",
        )
        require(
            self.shared is None,
            f"shared is {self.shared} with a budget, of which shared experts have their part; "
            "allowed: none",
        )
        least, most = min(self.choices, default=0), max(self.choices, default=0)
        require(
            least <= self.budget <= most,
            f"budget is {self.budget}; allowed: {least} to {most}, the least and most of choices",
        )

    @property
    def needs_calibration(self) -> bool:
        """GPTQ does, and some measures of who gets more."""
        asks = self.budget is not None and self.by in ("error", "use", "importance")
        return asks or self.method == "gptq"


def quantise(model: Model, settings: QuantiseSettings, calibration: Calibration | None) -> Done:
    """Packs the matrices of a model; all else stays to the bit.

    Raises:
      ConfigError: `gptq` cannot see the experts' tokens, the measure of who gets more bits cannot
        be taken, or weights are too large for scales.
    """
    bits = spread(model.config.model, bits_of(model.config.model, settings))
    if settings.budget is not None:
        bits |= _shared_out(model, settings, calibration)
    if not bits:
        return Done(model, {"bits": None})
    model, bits = apart(model, bits)
    network, walk = model.config.model, None
    if settings.method == "gptq":
        assert calibration is not None
        check_seen(network, "method is 'gptq'", "method=hqq or method=nearest")
        walk = Walk(network, model.parameters, calibration.batches())
    found, tokens = _round(model, settings, bits, walk)
    parameters = {path: p for path, p in model.parameters.items() if path not in found}
    for path, packed in found.items():
        parts = {k: np.asarray(p) for k, p in packed_parameters(path, packed).items()}
        if not all(np.isfinite(part).all() for part in parts.values()):
            raise ConfigError(
                f"{path} has weights too large for scales in float16; allowed: the model without "
                "what made them so"
            )
        parameters |= parts
    told: dict[str, Any] = {"bits": mean_bits(network, bits), "matrices": _told(bits)}
    if walk is not None:
        told["tokens"] = tokens
    kinds = kinds_of(bits, settings.group, settings.nested, settings.least)
    return Done(model.of(dataclasses.replace(network, packed=kinds), parameters), told)


def _shared_out(model: Model, settings: QuantiseSettings, calibration: Calibration | None) -> Bits:
    """The bits of the feed-forward matrices by the budget."""
    assert settings.budget is not None
    packable = packable_paths(model.config.model)
    shapes = {path: model.parameters[path].shape for path in packable if is_feed_forward(path)}
    items = items_of(model.config.model, {path: shape[1] for path, shape in shapes.items()})
    method = nearest if settings.method == "nearest" else half_quadratic
    choices = sorted(set(settings.choices))
    error_IxB = losses(
        model,
        items,
        choices,
        settings.by,
        calibration,
        lambda w, bits: method(w, bits, settings.group).weights(),
    )
    size_I = np.array([np.prod(shapes[item.path][-2:]) for item in items])
    bits_I = allocate(error_IxB, size_I, choices, int(settings.budget * size_I.sum()))
    found = {path: np.zeros(shape[:2], int) for path, shape in shapes.items()}
    for item, number in zip(items, bits_I, strict=True):
        found[item.path][item.at] = number
    return found


def _told(bits: Bits) -> dict[str, Any]:
    """By path one number where all are equal, else all of them."""
    return {
        path: int(bits[path].max()) if np.ptp(bits[path]) == 0 else bits[path].tolist()
        for path in sorted(bits)
    }


def _round(
    model: Model, settings: QuantiseSettings, bits: Bits, walk: Walk | None
) -> tuple[dict[str, PackedForm], list[list[float]]]:
    """The packed matrices by path, and how many tokens each expert of the mixtures was shown."""
    parts: dict[str, list[PackedForm]] = {}
    tokens: list[list[float]] = []
    for place in places(model.config.model):
        own = own_parameters(model.parameters, place)
        names = [name for name in own if place.prefix + name in bits]
        looked = [name for name in names if not name.startswith("modulation.")]
        seen = walk.look(place, own, looked) if walk else {}
        for name in names:
            number = bits[place.prefix + name][place.unit]
            packed = _packed(name, own[name], seen.get(name), number, settings)
            parts.setdefault(place.prefix + name, []).append(jax.device_get(packed))
            own[name] = packed.weights()
        if walk:
            walk.advance(place, own)
            routed = seen.get("feed_forward.experts.w_in")
            tokens += [] if place.moe is None or routed is None else [routed.tokens.tolist()]
    found = {path: jax.tree.map(lambda *u: np.stack(u), *units) for path, units in parts.items()}
    for path in bits.keys() - found.keys():
        whole = jnp.asarray(model.parameters[path])
        found[path] = _packed(path, whole, None, bits[path], settings)
    return found, tokens


def _packed(
    name: str, w_DxG: jax.Array, seen: Seen | None, bits: np.ndarray, settings: QuantiseSettings
) -> PackedForm:
    """A matrix, or a stack of experts' of which each has its bits; equal ones are done at once."""
    h_DxD = None if seen is None else seen.blended()
    if np.ptp(bits) == 0:
        number = int(bits.max())
        nested = settings.nested == "planes" and not is_modulation(name)
        planes = max(number - settings.least, 0) if nested else 0
        base = _alike(w_DxG, h_DxD, number - planes, settings)
        return PackedPlanes.of(w_DxG, base, planes) if planes else base
    numbers = sorted(set(bits.tolist()), reverse=True)
    members = [np.flatnonzero(bits == number) for number in numbers]
    parts = [
        _alike(w_DxG[own], None if h_DxD is None else h_DxD[own], number, settings)
        for number, own in zip(numbers, members, strict=True)
    ]
    return PackedParts.of(parts, members)


def _alike(
    w_DxG: jax.Array, h_DxD: jax.Array | None, bits: int, settings: QuantiseSettings
) -> Packed:
    if settings.method == "nearest":
        return nearest(w_DxG, bits, settings.group)
    if h_DxD is None:
        return half_quadratic(w_DxG, bits, settings.group)
    return gptq(w_DxG, h_DxD, bits, settings.group)
