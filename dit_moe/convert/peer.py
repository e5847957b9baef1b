"""What is known of a peer's code: its names, its constructor's arguments, its published models."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from dit_moe.config import (
    ConfigError,
    ModelConfig,
    MoEConfig,
    ObjectiveConfig,
    RectifiedFlowConfig,
)
from dit_moe.config.presets import SIZES
from dit_moe.convert.entries import Entry, gelu, swiglu
from dit_moe.convert.requirements import Requirements
from dit_moe.convert.shapes import Shapes

T = TypeVar("T")
Arguments = dict[str, Any]
Given = Mapping[str, Any]
"""Constructor arguments that came with a checkpoint."""


@dataclass(frozen=True)
class Layer:
    """An MoE layer in a peer's names."""

    router: str
    """The router's tensor [E, D], within a block."""
    routers: tuple[str, ...]
    """This package's names of the routers that it can be."""
    expert: Literal["gelu", "swiglu"]
    up_down: tuple[str, str] = ("fc1", "fc2")
    """The layers of a `gelu` expert."""
    shared: str | None = None
    """The shared expert."""
    must_share: bool = False
    """No layer is without a shared expert."""
    experts: str = "experts"
    """The list of the routed experts."""
    prototypes: bool = False
    """The router's rows are directions, not a matrix of a linear layer."""
    beside: Callable[[str, str, int], Iterator[Entry]] | None = None
    """What else the router has, from their name of the layer, our router's and the unit."""
    fixed: Callable[[MoEConfig], dict[str, np.ndarray]] | None = None
    """Tensors that are no parameters here, by name within the layer."""
    told_by: str | None = None
    """The end of a tensor's name that tells it from another peer's layer of the same router."""

    @property
    def name(self) -> str:
        """The layer within a block."""
        return self.router.partition(".")[0]

    @property
    def up(self) -> str:
        """An expert's tensor [hidden, D]."""
        return "gate_proj.weight" if self.expert == "swiglu" else f"{self.up_down[0]}.weight"

    def entries(self, moe: MoEConfig, block: str, ours: str, unit: int) -> Iterator[Entry]:
        """All tensors of a layer; `block` and `ours` are the places of theirs and ours."""
        theirs = f"{block}.{self.name}"
        place = "prototypes" if self.prototypes else "kernel"
        yield Entry(
            f"{block}.{self.router}",
            f"{ours}.router.{place}",
            (unit,),
            transpose=not self.prototypes,
        )
        if self.beside is not None:
            yield from self.beside(theirs, f"{ours}.router", unit)
        for e in range(moe.total_experts):
            yield from self._expert(f"{theirs}.{self.experts}.{e}", f"{ours}.experts", (unit, e))
        if moe.shared_hidden_ratio:
            yield from self._expert(f"{theirs}.{self.shared}", f"{ours}.shared.experts", (unit, 0))

    def _expert(self, theirs: str, ours: str, index: tuple[int, ...]) -> Iterator[Entry]:
        if self.expert == "swiglu":
            return swiglu(theirs, ours, index)
        return gelu(theirs, ours, index, self.up_down)


class Peer:
    """One family of networks; each derives from it, in a file of its own."""

    title: str
    """What its models are called."""
    layer: Layer | None = None
    """None: it is dense."""
    other_clock: bool = False
    """It runs from noise at time 0 to data at time 1, in a unit of 1; see clocks.py."""
    may_be_ddpm: bool = False
    """It was trained as a diffusion model, too."""
    dit_blocks: bool = True
    """Its blocks have DiT's positions and activation."""
    qk_norm_epsilon: float = 1e-5
    """Of normalised queries and keys."""
    normalised: Mapping[str, str] = {}
    """What the parts of an attention with normalised queries and keys are called, where these are
    not timm's names, by timm's."""

    def arguments(self, model: ModelConfig, require: Requirements) -> Arguments:
        """The constructor arguments that are its own, for a network that it has."""
        raise NotImplementedError

    def usual_names(self, tensors: Mapping[str, T]) -> dict[str, T]:
        """Tensors by the names that all other peers have for them."""
        usual = {f".attn.{theirs}.": f".attn.{timm}." for timm, theirs in self.normalised.items()}
        return _renamed(tensors, usual)

    def own_names(self, tensors: Mapping[str, T], model: ModelConfig) -> dict[str, T]:
        """The inverse of `usual_names`, for a network that was made of such tensors."""
        own = {f".attn.{timm}.": f".attn.{theirs}." for timm, theirs in self.normalised.items()}
        return _renamed(tensors, own if model.qk_norm else {})

    def sizes(self, shapes: Shapes) -> Mapping[str, tuple[int, int, int]]:
        """Depth, width and heads of the published models, by name."""
        del shapes
        return SIZES

    def blocks(self, shapes: Shapes) -> dict[str, Any]:
        """Activation and positions, as fields of `ModelConfig`."""
        del shapes
        return {"mlp_activation": "gelu", "position": "sincos"}

    def told(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of its own that shapes tell, from the network's fields."""
        del model
        return {}

    def router(self, num_experts: int, given: Given | None) -> tuple[int, dict[str, Any]]:
        """top_k and the router's settings: as the arguments say, or as published without any.

        Raises:
          ConfigError: an argument is missing.
        """
        raise NotImplementedError

    def setting(self, size: str | None, moe: Mapping[str, Any] | None) -> tuple[str, str]:
        """The end of a model's name, and the preset in whose setting it was trained."""
        raise NotImplementedError

    def flow(self, base: ObjectiveConfig, given: Given) -> ObjectiveConfig:
        """The objective of a network that predicts velocities; `base` is that of the setting.

        Raises:
          ConfigError: the arguments ask for another.
        """
        del base, given
        return RectifiedFlowConfig(time_scale=1000)


def _renamed(tensors: Mapping[str, T], parts: Mapping[str, str]) -> dict[str, T]:
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in parts.items():
            name = name.replace(old, new)
        if name in renamed:
            raise ConfigError(f"{name} is there twice, under two names of an attention's parts")
        renamed[name] = tensor
    return renamed


def mixture_of(given: Given) -> Given:
    """The arguments of ProMoE's code, and of what derives from it, that are the mixture's."""
    mixture = given.get("MoE_config") or {}
    if not isinstance(mixture, dict):
        raise ConfigError(f"MoE_config is {mixture!r} in --model_json; allowed: a JSON object")
    return mixture
