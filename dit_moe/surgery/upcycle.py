"""Sparse upcycling (Komatsuzaki et al. 2023): a trained model with one feed-forward network per
block becomes one with many experts, all of them copies of it.

Everything outside of the experts is copied. A router's weights of a token need not sum to 1, so the
experts' outputs are divided by what they sum to when the router has no preference: k/E for top_k.
The router starts fresh and small (a hundredth of its usual size), so that tokens spread over the
experts while the weights' sum is close to that. So, at step 0 and without noise,

- with top_k equal to num_experts under a softmax, the weights sum to 1 and the function is the old
  one up to rounding;
- otherwise it is near the old one: the routed output is off by as much as the sum is from k/E;
- the unconditional expert has weight 1: without a class the function is the old one.

A dense network can also be cut: its first hidden units become the shared expert, the rest the
routed ones. Cosine similarities as weights (ProMoE's `identity`) sum to nothing that is known
beforehand, so that router is refused, as are experts of another kind than the old network: GELU
cannot be written as SwiGLU.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from dit_moe.autoencoder.latent_space import read_latent_space
from dit_moe.config import (
    Config,
    ConfigError,
    ModelConfig,
    MoEConfig,
    PrototypeSettings,
    SigmoidTopKRouterConfig,
)
from dit_moe.models.block import group_size
from dit_moe.models.parameters import Parameters, abstract_parameters
from dit_moe.moe.routers import build_router
from dit_moe.nn.flat import variables
from dit_moe.runs.loading import load_run, locate
from dit_moe.runs.weights import has_average
from dit_moe.runs.writer import InMemory, write_run

_ROUTER_SCALE = 0.01
_EXPERTS, _SHARED = "feed_forward.experts.", "feed_forward.shared.experts."
_ROUTER = "feed_forward.router."
_LAST_OF_EXPERT = ("w_out", "b_out")


def upcycle_run(
    dense: str | Path, config: Config, output: Path, *, noise: float = 0.0, ema: bool | None = None
) -> None:
    """Writes a sparse run folder made from a dense one, or from one with a single expert.

    Args:
      dense: the run folder, open folder or hub name of the old model.
      config: of the new one.
      output: a new folder.
      noise: normal noise that is added to every matrix of the routed experts, each its own, in
        standard deviations of the matrix.
      ema: the old model's moving average rather than its parameters; None: where there is one.

    Raises:
      ConfigError: the one cannot become the other; the message says why.
      OSError: the output cannot be written.
    """
    if not 0 <= noise < float("inf"):
        raise ConfigError(f"noise is {noise}; allowed: 0 or more")
    folder = locate(dense)
    old = load_run(folder, has_average(folder) if ema is None else ema)
    check(old.config, config)
    shapes = {path: p.shape for path, p in abstract_parameters(config.model).items()}
    read = functools.partial(_read, old.config.model, old.parameters, config, shapes, noise)
    write_run(output, config, read_latent_space(folder), InMemory(shapes, read))


def check(old: Config, new: Config) -> None:
    """Raises a ConfigError that says why `old` cannot become `new`, if so."""
    moe = new.model.moe
    if moe is None:
        raise ConfigError("config.model.moe is none; allowed: a mixture of experts")
    source = old.model.moe
    if source is not None and (source.total_experts, source.router.name) != (1, "top_k"):
        raise ConfigError(
            f"the run to upcycle has {source.total_experts} experts per layer and router "
            f"{source.router.name!r}; allowed: a dense run, or a single expert and router 'top_k'"
        )
    free = ("image_size", "label_dropout", "moe", "dtype", "remat")
    for field in dataclasses.fields(ModelConfig):
        a, b = getattr(old.model, field.name), getattr(new.model, field.name)
        if field.name not in free and a != b:
            raise ConfigError(
                f"config.model.{field.name} is {b!r}; allowed: {a!r}, as in the run to upcycle"
            )
    # What the network's time means.
    for field in ("name", "time_scale", "timesteps"):
        a, b = getattr(old.objective, field, None), getattr(new.objective, field, None)
        if a != b:
            raise ConfigError(
                f"config.objective.{field} is {b!r}; allowed: {a!r}, as in the run to upcycle"
            )
    if _weight_sum(moe) == 0:
        assert isinstance(moe.router, PrototypeSettings)
        raise ConfigError(
            f"config.model.moe.router.activation is {moe.router.activation!r} with router "
            f"{moe.router.name!r}, whose weights sum to nothing that is known beforehand; "
            "allowed: softmax or sigmoid with router prototype, or router top_k"
        )
    if source is None:
        if new.model.mlp_activation != "gelu":
            raise ConfigError(
                f"config.model.mlp_activation is {new.model.mlp_activation!r}; allowed: 'gelu', as "
                "dense networks become gelu experts"
            )
        hidden = moe.hidden_ratio + moe.shared_hidden_ratio
        if moe.expert != "gelu" or hidden != new.model.mlp_ratio:
            raise ConfigError(
                f"config.model.moe has {moe.expert} experts with hidden_ratio {moe.hidden_ratio:g} "
                f"and shared_hidden_ratio {moe.shared_hidden_ratio:g}; allowed: gelu experts with "
                f"ratios that sum to {new.model.mlp_ratio:g}, as the dense network that they "
                "become"
            )
        return
    for field in ("expert", "hidden_ratio", "shared_hidden_ratio", "every"):
        a, b = getattr(source, field), getattr(moe, field)
        if a != b:
            raise ConfigError(
                f"config.model.moe.{field} is {b!r}; allowed: {a!r}, as in the run to upcycle"
            )


def _weight_sum(moe: MoEConfig) -> float:
    """What a token's weights sum to under a router without preference."""
    if isinstance(moe.router, SigmoidTopKRouterConfig):
        return moe.router.scale * (1.0 if moe.top_k > 1 else 0.5)
    if moe.router.name == "prototype_expert_choice":
        return 0.0  # a softmax over tokens, or cosines of whichever tokens an expert takes
    activation = moe.router.activation if moe.router.name == "prototype" else "softmax"
    return {
        "softmax": moe.top_k / moe.num_experts,
        "sigmoid": moe.top_k / 2,  # of cosines near 0
        "identity": 0.0,
    }[activation]


def _read(
    old: ModelConfig,
    parameters: Parameters,
    config: Config,
    shapes: dict[str, tuple[int, ...]],
    noise: float,
    path: str,
    index: tuple[int, ...],
) -> np.ndarray:
    """A group's piece of a parameter of the new model, or a whole one outside of the groups."""
    new, moe = config.model, config.model.moe
    assert moe is not None
    if not index:
        return np.asarray(parameters[path])
    _, _, position, name = path.split(".", 3)
    layer = index[0] * group_size(new) + int(position)
    old_group, old_position = divmod(layer, group_size(old))

    def of_old(name: str) -> np.ndarray:
        return np.asarray(parameters[f"groups.blocks.{old_position}.{name}"][old_group])

    if int(position) < group_size(new) - 1:
        return of_old(name)
    if name.startswith(_ROUTER):
        return _fresh_router(config, layer)[name.removeprefix(_ROUTER)]
    if name.startswith(_SHARED) and old.moe is None:
        width = int(moe.shared_hidden_ratio * new.width)
        part = name.removeprefix(_SHARED)
        return _cut(of_old(_EXPERTS + part), part, slice(width))
    if name.startswith(_EXPERTS):
        part = name.removeprefix(_EXPERTS)
        expert = of_old(name)
        if old.moe is None:
            start = int(moe.shared_hidden_ratio * new.width)
            expert = _cut(expert, part, slice(start, None))
            if part == "b_out" and start:
                expert = np.zeros_like(expert)  # the shared expert has it
        return _copies(expert, part, moe, shapes[path][1:], noise, (config.seed, layer))
    return of_old(name)


def _cut(expert: np.ndarray, part: str, units: slice) -> np.ndarray:
    """Some hidden units of a GELU network's parameter [1, ...]."""
    if part == "b_out":
        return expert
    return expert[:, :, units] if part == "w_in" else expert[:, units]


def _copies(
    expert: np.ndarray,
    part: str,
    moe: MoEConfig,
    shape: tuple[int, ...],
    noise: float,
    seed: tuple[int, int],
) -> np.ndarray:
    copies = np.array(np.broadcast_to(expert, shape), np.float32)
    if noise and part.startswith("w_"):
        rng = np.random.default_rng([*seed, part == "w_out"])
        copies += noise * expert.std() * rng.standard_normal(shape, np.float32)
    if part in _LAST_OF_EXPERT:
        copies[: moe.num_experts] /= _weight_sum(moe)
    return copies


def _fresh_router(config: Config, layer: int) -> dict[str, np.ndarray]:
    moe = config.model.moe
    assert moe is not None
    key = jax.random.fold_in(jax.random.key(config.seed), layer)
    router = build_router(moe, config.model.width, nnx.Rngs(params=key))
    assert isinstance(router, nnx.Module)
    # Prototypes are compared by their direction alone, so their size is kept.
    scale = _ROUTER_SCALE if moe.router.name in ("top_k", "sigmoid_top_k") else 1.0
    return {name: scale * np.asarray(variable[...]) for name, variable in variables(router).items()}
