"""Matrices of few bits: which, how many bits each, and by what method."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from dit_moe.config import ConfigError, ModelConfig, PackedConfig
from dit_moe.config.packed import BITS
from dit_moe.config.rules import RULES, PositiveInt
from dit_moe.models.parameters import places, stack_of
from dit_moe.models.unpacking import packable_paths, packed_parameters
from dit_moe.nn.packed import Packed
from dit_moe.surgery.compress.calibration import Calibration
from dit_moe.surgery.compress.correlations import Seen, Walk, check_seen
from dit_moe.surgery.compress.rounding import gptq, half_quadratic, nearest
from dit_moe.surgery.compress.steps import Done, Model, StepSettings


def _known(bits: int) -> int:
    if bits not in (0, *BITS):
        raise PydanticCustomError("bits", "allowed: 2 to 8, or 0 for whole matrices")
    return bits


Bits = Annotated[int, AfterValidator(_known)]
"""Of a weight, 2 to 8; 0: it stays as it is."""


@dataclass(frozen=True, config=RULES, kw_only=True)
class QuantiseSettings(StepSettings):
    """Bits of the matrices by what they are; what is not named here stays whole."""

    name: Literal["quantise"] = "quantise"
    bits: Bits = 4
    """Of experts, and of the feed-forward networks of dense blocks."""
    method: Literal["nearest", "hqq", "gptq"] = "hqq"
    """`nearest`: round to nearest. `hqq`: the zeros fitted, without data. `gptq`: by the inputs of
    each matrix, of experts those of their own tokens; what runs once an image by `hqq`."""
    group: PositiveInt = 64
    """Inputs that share a scale and a zero."""
    attention: Bits | None = None
    """Of attention; None: `bits`."""
    shared: Bits | None = None
    """Of the shared experts, which every token passes; None: `bits`."""
    modulation: Bits = 8
    """Of adaptive normalisation, which runs once an image."""

    @property
    def needs_calibration(self) -> bool:
        """GPTQ does."""
        return self.method == "gptq"


def quantise(model: Model, settings: QuantiseSettings, calibration: Calibration | None) -> Done:
    """Packs the matrices of a model; all else stays to the bit.

    Raises:
      ConfigError: `gptq` cannot see the experts' tokens, or weights are too large for scales.
    """
    network = model.config.model
    bits = bits_of(network, settings)
    if not bits:
        return Done(model, {"bits": None})
    walk = None
    if settings.method == "gptq":
        assert calibration is not None
        check_seen(network)
        walk = Walk(network, model.parameters, calibration.batches())
    found, tokens = _round(model, settings, bits, walk)
    parameters = {path: p for path, p in model.parameters.items() if path not in found}
    weights = 0
    for path, packed in found.items():
        parts = {k: np.asarray(p) for k, p in packed_parameters(path, packed).items()}
        if not all(np.isfinite(part).all() for part in parts.values()):
            raise ConfigError(
                f"{path} has weights too large for scales in float16; allowed: the model without "
                "what made them so"
            )
        parameters |= parts
        weights += np.prod(packed.shape) * packed.bits
    kinds = kinds_of(bits, settings.group)
    mean = weights / sum(np.prod(packed.shape) for packed in found.values())
    told: dict[str, Any] = {"bits": float(mean), "matrices": {k: bits[k] for k in sorted(bits)}}
    if walk is not None:
        told["tokens"] = tokens
    return Done(model.of(dataclasses.replace(network, packed=kinds), parameters), told)


def bits_of(network: ModelConfig, settings: QuantiseSettings) -> dict[str, int]:
    """The bits of every matrix that is packed, by path.

    Embeddings, patches in and out, routers, and what mixes or guesses are not among them.
    """
    found = {}
    for path in packable_paths(network):
        name = path.removeprefix(stack_of(path) or "")
        if ".router." in name:
            continue
        if ".shared." in name:
            number = settings.bits if settings.shared is None else settings.shared
        elif ".feed_forward." in name and name.endswith((".w_in", ".w_out")):
            number = settings.bits
        elif ".attention." in name:
            number = settings.bits if settings.attention is None else settings.attention
        elif name.endswith("modulation.kernel"):
            number = settings.modulation
        else:
            continue
        if number:
            found[path] = number
    return found


def kinds_of(bits: Mapping[str, int], group: int) -> tuple[PackedConfig, ...]:
    """What a config says of matrices with these bits, by path."""
    return tuple(
        PackedConfig(tuple(path for path in bits if bits[path] == number), number, group)
        for number in sorted(set(bits.values()))
    )


def _round(
    model: Model, settings: QuantiseSettings, bits: Mapping[str, int], walk: Walk | None
) -> tuple[dict[str, Packed], list[list[float]]]:
    """The packed matrices by path, and how many tokens each expert of the mixtures was shown."""
    parts: dict[str, list[Packed]] = {}
    tokens: list[list[float]] = []
    for place in places(model.config.model):
        own: dict[str, jax.Array] = {
            path.removeprefix(place.prefix): jnp.asarray(p[place.unit])
            for path, p in model.parameters.items()
            if path.startswith(place.prefix)
        }
        names = [name for name in own if place.prefix + name in bits]
        looked = [name for name in names if not name.startswith("modulation.")]
        seen = walk.look(place, own, looked) if walk else {}
        for name in names:
            packed = _packed(own[name], seen.get(name), bits[place.prefix + name], settings)
            parts.setdefault(place.prefix + name, []).append(jax.device_get(packed))
            own[name] = packed.weights()
        if walk:
            walk.advance(place, own)
            routed = seen.get("feed_forward.experts.w_in")
            tokens += [] if place.moe is None or routed is None else [routed.tokens.tolist()]
    found = {path: jax.tree.map(lambda *u: np.stack(u), *units) for path, units in parts.items()}
    for path in bits.keys() - found.keys():
        whole = jnp.asarray(model.parameters[path])
        found[path] = _packed(whole, None, bits[path], settings)
    return found, tokens


def _packed(w_DxG: jax.Array, seen: Seen | None, bits: int, settings: QuantiseSettings) -> Packed:
    if settings.method == "nearest":
        return nearest(w_DxG, bits, settings.group)
    if seen is None:
        return half_quadratic(w_DxG, bits, settings.group)
    return gptq(w_DxG, seen.blended(), bits, settings.group)
