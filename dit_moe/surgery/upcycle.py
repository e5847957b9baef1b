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
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from dit_moe.autoencoder.latent_space import read_latent_space
from dit_moe.config import (
    EXPERTS,
    Config,
    ConfigError,
    ModelConfig,
    MoEConfig,
)
from dit_moe.config.objective import other_meaning
from dit_moe.models.parameters import Parameters, Place, abstract_parameters, places
from dit_moe.models.unpacking import check_whole
from dit_moe.moe.routers import build_router
from dit_moe.nn.flat import variables
from dit_moe.runs.loading import load_run, locate
from dit_moe.runs.weights import has_average
from dit_moe.runs.writer import InMemory, write_run

_EXPERTS, _SHARED = "feed_forward.experts.", "feed_forward.shared.experts."
_ROUTER, _GUESS = "feed_forward.router.", "guess."
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
    blocks = _blocks(old.config.model, config.model, shapes)
    network = config.model, config.seed
    # What is read is asked for path by path: a block's router comes up once for each of its own.
    router = functools.cache(functools.partial(_fresh_router, *network))
    read = functools.partial(_read, old.parameters, *network, shapes, noise, blocks, router)
    write_run(output, config, read_latent_space(folder), InMemory(shapes, read))


def check(old: Config, new: Config) -> None:
    """Raises a ConfigError that says why `old` cannot become `new`, if so."""
    check_whole(old.model, "the run to upcycle")
    for name, model in (("config.model", new.model), ("the run to upcycle", old.model)):
        if model.segments:
            raise ConfigError(f"{name} has segments; allowed: one mixture for all layers, in moe")
    if new.model.pregate is not None:
        raise ConfigError(
            "config.model.pregate is a router before the trunk; allowed: none, or the experts that "
            "--cut makes"
        )
    moe, source = new.model.moe, old.model.moe
    if moe is None:
        raise ConfigError("config.model.moe is none; allowed: a mixture of experts")
    _check_copies(moe)
    if source is not None:
        _check_source(source)
    check_network(old, new, "upcycle")
    _check_weights(moe)
    if source is None:
        _check_parts(new.model, moe)
        return
    for field in ("expert", "hidden_ratio", "shared_hidden_ratio", "shared_mix", "every"):
        a, b = getattr(source, field), getattr(moe, field)
        if a != b:
            raise ConfigError(
                f"config.model.moe.{field} is {b!r}; allowed: {a!r}, as in the run to upcycle"
            )


def _check_copies(moe: MoEConfig) -> None:
    """Refuses a mixture whose experts cannot all be copies of one network."""
    if moe.cheap_experts:
        raise ConfigError(
            f"config.model.moe.cheap_experts is {', '.join(moe.cheap_experts)}; allowed: none, as "
            "what they give is not what the run to upcycle computes"
        )
    if moe.columns is not None:
        raise ConfigError(f"config.model.moe.columns is {moe.columns}; allowed: none")
    if moe.unlike:
        kinds = ", ".join(group.kind for group in moe.unlike)
        raise ConfigError(
            f"config.model.moe.unlike has {kinds}; allowed: none, as all experts become copies of "
            "one network"
        )


def _check_source(source: MoEConfig) -> None:
    """Refuses an old mixture that is more than one feed-forward."""
    if (source.total_experts, source.router.name) != (1, "top_k"):
        raise ConfigError(
            f"the run to upcycle has {source.total_experts} experts per layer and router "
            f"{source.router.name!r}; allowed: a dense run, or a single expert and router 'top_k'"
        )
    if source.router.weight_sum(source) != 1:
        raise ConfigError(
            "the run to upcycle has a single expert beside cheap ones or with another gate than "
            "'softmax', whose weight is not 1; allowed: neither"
        )


def _check_weights(moe: MoEConfig) -> None:
    """Refuses a router of which it is not known what a token's weights sum to."""
    if moe.router.weight_sum(moe) is not None:
        return
    if moe.router.chooser == "nobody":
        raise ConfigError(
            f"config.model.moe.router.name is {moe.router.name!r}, whose experts see mixes of "
            "tokens, which the run to upcycle never saw; allowed: a router by which experts see "
            "tokens, such as 'top_k'"
        )
    field = "gate" if hasattr(moe.router, "gate") else "activation"
    raise ConfigError(
        f"config.model.moe.router.{field} is {getattr(moe.router, field, None)!r} with router "
        f"{moe.router.name!r}, whose weights sum to nothing that is known beforehand; allowed: "
        "softmax or sigmoid with router prototype, or router top_k"
    )


def check_network(old: Config, new: Config, way: str) -> None:
    """Raises a ConfigError where two runs differ in more than their feed-forwards.

    Args:
      old: of the run that there is.
      new: of what it should become.
      way: what is done to it, for the message.
    """
    free = ("image_size", "label_dropout", "moe", "pregate", "dtype", "remat")
    for field in dataclasses.fields(ModelConfig):
        a, b = getattr(old.model, field.name), getattr(new.model, field.name)
        if field.name not in free and a != b:
            raise ConfigError(
                f"config.model.{field.name} is {b!r}; allowed: {a!r}, as in the run to {way}"
            )
    if (field := other_meaning(old.objective, new.objective)) is not None:
        a, b = old.objective.meaning.get(field), new.objective.meaning.get(field)
        raise ConfigError(
            f"config.objective.{field} is {b!r}; allowed: {a!r}, as in the run to {way}"
        )


def _check_parts(model: ModelConfig, moe: MoEConfig) -> None:
    """Refuses a mixture whose experts are no parts of the dense network that they are cut from."""
    kind = model.mlp_activation
    if EXPERTS[kind].in_matrices > 1:
        raise ConfigError(
            f"config.model.mlp_activation is {kind!r}, whose gate cannot be cut here; allowed: "
            "'gelu' or 'silu'"
        )
    hidden = moe.hidden_ratio + moe.shared_hidden_ratio
    if moe.expert != kind or hidden != model.mlp_ratio:
        raise ConfigError(
            f"config.model.moe has {moe.expert} experts with hidden_ratio {moe.hidden_ratio:g} "
            f"and shared_hidden_ratio {moe.shared_hidden_ratio:g}; allowed: {kind} experts "
            f"with ratios that sum to {model.mlp_ratio:g}, as the dense network that they "
            "become"
        )
    if moe.shared_mix != "sum":
        raise ConfigError(
            f"config.model.moe.shared_mix is {moe.shared_mix!r}; allowed: 'sum', as the parts "
            "of a dense network are summed"
        )


class _Block(NamedTuple):
    """A block of the new model, and where it lies in both."""

    layer: int
    place: Place
    old: Place


_Blocks = dict[tuple[str, tuple[int, ...]], _Block]


def _blocks(old: ModelConfig, new: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> _Blocks:
    """The block of every piece of the new model's stacked parameters."""
    pairs = zip(places(new), places(old), strict=True)
    return {
        (path, (place.unit,)): _Block(layer, place, before)
        for layer, (place, before) in enumerate(pairs)
        for path in shapes
        if path.startswith(place.prefix)
    }


def _read(
    parameters: Parameters,
    new: ModelConfig,
    seed: int,
    shapes: dict[str, tuple[int, ...]],
    noise: float,
    blocks: _Blocks,
    router: Callable[[int], dict[str, np.ndarray]],
    path: str,
    index: tuple[int, ...],
) -> np.ndarray:
    """A unit's piece of a parameter of the new model, or a whole one that is not stacked."""
    moe = new.moe
    assert moe is not None
    if not index:
        return np.asarray(parameters[path])
    layer, place, old = blocks[path, index]
    name = path.removeprefix(place.prefix)

    def of_old(name: str) -> np.ndarray:
        return np.asarray(parameters[f"{old.prefix}{name}"][old.unit])

    if place.moe is None:
        return of_old(name)
    if name.startswith(_GUESS):
        return np.zeros(shapes[path][1:], np.float32)
    if name.startswith(_ROUTER):
        return router(layer)[name.removeprefix(_ROUTER)]
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
        return _copies(expert, part, moe, shapes[path][1:], noise, (seed, layer))
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
        weight_sum = moe.router.weight_sum(moe)
        assert weight_sum is not None  # see `check`
        copies[: moe.num_experts] /= weight_sum
    return copies


def _fresh_router(model: ModelConfig, seed: int, layer: int) -> dict[str, np.ndarray]:
    moe = model.moe
    assert moe is not None
    key = jax.random.fold_in(jax.random.key(seed), layer)
    router = build_router(moe, model.width, nnx.Rngs(params=key))
    assert isinstance(router, nnx.Module)
    scale = moe.router.fresh_scale
    return {name: scale * np.asarray(variable[...]) for name, variable in variables(router).items()}
