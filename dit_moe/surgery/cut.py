"""Experts cut out of a trained dense network by which of its hidden units are active (Read-ME, Cai
et al. 2024), with a router before the trunk that learns from overlaps which of them a token needs.

Every expert stands for a group of inputs, of classes or of times: its units are those that are most
active there (`masks`). Nothing is trained but the router, and no unit is changed: an expert and the
shared one together are the dense feed-forward without the units of the others, and with all units
in its mask they are the dense feed-forward.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.autoencoder.latent_space import read_latent_space, same_latents
from dit_moe.config import EXPERTS, Config, ConfigError, ModelConfig, MoEConfig
from dit_moe.data.pipeline import batches
from dit_moe.data.sources import build_sources
from dit_moe.diffusion.integrate import build_objective
from dit_moe.models.parameters import Parameters, abstract_parameters, places
from dit_moe.models.unpacking import check_whole
from dit_moe.runs.loading import load_run, locate
from dit_moe.runs.weights import has_average
from dit_moe.runs.writer import InMemory, write_run
from dit_moe.surgery.activity import activations
from dit_moe.surgery.masks import Units, choose_units, masks, part_of
from dit_moe.surgery.overlaps import Shown, distil
from dit_moe.surgery.upcycle import check_network

By = Literal["class", "time"]
BATCH = 32
"""Images at a time: all hidden units of a block are in memory for them."""
_EXPERTS, _SHARED = "feed_forward.experts.", "feed_forward.shared.experts."


def cut_run(
    dense: str | Path,
    config: Config,
    output: Path,
    *,
    by: By = "class",
    images: int = 1024,
    steps: int = 300,
    ema: bool | None = None,
) -> float:
    """Writes a sparse run folder made from a dense one.

    Args:
      dense: the run folder, open folder or hub name of the old model.
      config: of the new one; its data are what the old one is shown.
      output: a new folder.
      by: what the experts stand for: equal parts of the classes, by their numbers, or of the range
        of times.
      images: by which units are chosen.
      steps: of the router's training, each on `BATCH` more images.
      ema: the old model's moving average rather than its parameters; None: where there is one.

    Returns:
      The share of tokens that the router sends to the expert with most of their units, at last.

    Raises:
      ConfigError: the one cannot become the other; the message says why.
      OSError: the output cannot be written.
    """
    for name, value in (("images", images), ("steps", steps)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; allowed: 1 or more")
    folder = locate(dense)
    old = load_run(folder, has_average(folder) if ema is None else ema)
    check(old.config, config)
    space = read_latent_space(folder)
    shown = _shown(config, space)
    layers = [n for n, place in enumerate(places(config.model)) if place.moe is not None]
    activity_LxExF = _activity(old.config.model, config.model, old.parameters, shown, by, images)
    moe, width = config.model.mixtures[0], config.model.width
    sizes = (int(ratio * width) for ratio in (moe.shared_hidden_ratio, moe.hidden_ratio))
    permanent, hidden = sizes
    units = {n: choose_units(activity_LxExF[n], permanent, hidden) for n in layers}
    mask = {n: masks(own, activity_LxExF.shape[-1]) for n, own in units.items()}
    routed = distil(config, old.config, old.parameters, mask, (s.asked for s in shown), steps)
    write_run(
        output, config, space, cut(old.config.model, config.model, old.parameters, units, routed[0])
    )
    return routed.agreement


def check(old: Config, new: Config) -> None:
    """Raises a ConfigError that says why the experts of `new` cannot be cut out of `old`, if so."""
    check_whole(old.model, "the run to cut")
    if old.model.mixtures:
        raise ConfigError("the run to cut has mixtures of experts; allowed: a dense run")
    for name, model in (("config.model", new.model), ("the run to cut", old.model)):
        if model.segments:
            raise ConfigError(f"{name} has segments; allowed: one mixture for all layers, in moe")
    if old.model.pairs is not None:
        raise ConfigError("the run to cut is of pairs of images; allowed: one of single images")
    moe = new.model.moe
    if moe is None:
        raise ConfigError("config.model.moe is none; allowed: a mixture of experts")
    if new.model.pregate is None:
        raise ConfigError(
            "config.model.pregate is none; allowed: a router before the trunk, such as "
            "--config.model.pregate.heads=4"
        )
    check_network(old, new, "cut")
    _check_mixture(new.model, moe)


def _check_mixture(model: ModelConfig, moe: MoEConfig) -> None:
    """Refuses a mixture whose experts are no parts of a feed-forward."""
    plain = {
        "top_k": 1,
        "expert": model.mlp_activation,
        "cheap_experts": (),
        "unlike": (),
        "unconditional_expert": False,
        "shared_mix": "sum",
    }
    for field, allowed in plain.items():
        if (value := getattr(moe, field)) != allowed:
            raise ConfigError(
                f"config.model.moe.{field} is {value!r}; allowed: {allowed!r}, as experts are "
                "parts of the dense feed-forward, of which a token has one"
            )
    if moe.hidden_ratio + moe.shared_hidden_ratio > model.mlp_ratio:
        raise ConfigError(
            f"config.model.moe has hidden_ratio {moe.hidden_ratio:g} and shared_hidden_ratio "
            f"{moe.shared_hidden_ratio:g}; allowed: ratios that sum to {model.mlp_ratio:g} at "
            "most, as the dense feed-forward has no more units"
        )


class _Seen(NamedTuple):
    """What the network is asked, and the place of each image's time in its range."""

    asked: Shown
    place: np.ndarray


def _shown(config: Config, space: object) -> Iterator[_Seen]:
    """Noisy training data without end, at times that are spread evenly."""
    sources = build_sources(config.data, config.model)
    if not same_latents(space, sources[0].latent_space):  # pyright: ignore[reportArgumentType]
        raise ConfigError(
            "config.data are of other latents than the run to cut; allowed: data prepared with the "
            "same autoencoder and scaled alike"
        )
    objective = build_objective(config.objective)
    noised = jax.jit(objective.noised)
    rng = np.random.default_rng([config.seed, 0])
    stream = batches(sources, config.data, BATCH, config.seed)

    def seen() -> Iterator[_Seen]:
        for batch in stream:
            place_N = rng.random(BATCH).astype(np.float32)
            noise = rng.standard_normal(batch.x.shape).astype(np.float32)
            z, t_N = noised(jnp.asarray(batch.x), place_N, noise)
            yield _Seen(Shown(z, t_N, jnp.asarray(batch.label)), place_N)

    return seen()


def _activity(
    old: ModelConfig,
    new: ModelConfig,
    parameters: Parameters,
    shown: Iterator[_Seen],
    by: By,
    images: int,
) -> np.ndarray:
    """Mean size of every unit of every block in each expert's group of images: [L, E, F]."""

    @jax.jit
    def of_images(parameters: Parameters, asked: Shown) -> jax.Array:
        heard, _, _ = activations(old, parameters, *asked)
        return jnp.stack([size_NxSxF.mean(axis=1) for size_NxSxF in heard])

    groups = new.mixtures[0].num_experts
    total_LxExF, number_E = np.zeros((old.depth, groups, 1)), np.zeros(groups)
    for _ in range(-(-images // BATCH)):
        seen = next(shown)
        size_LxNxF = np.asarray(of_images(parameters, seen.asked), np.float64)
        share_N = np.asarray(seen.asked.y) / old.num_classes if by == "class" else seen.place
        of_NxE = np.eye(groups)[np.minimum((share_N * groups).astype(int), groups - 1)]
        total_LxExF = total_LxExF + np.einsum("lnf,ne->lef", size_LxNxF, of_NxE)
        number_E += of_NxE.sum(axis=0)
    if not number_E.all():
        empty = int(number_E.argmin())
        raise ConfigError(
            f"images is {images}, of which none is in part {empty + 1} of {groups} of the "
            f"{'classes' if by == 'class' else 'times'}; allowed: more, or fewer experts"
        )
    return total_LxExF / number_E[:, None]


def cut(
    old: ModelConfig,
    new: ModelConfig,
    parameters: Parameters,
    units: Mapping[int, Units],
    router: Mapping[str, np.ndarray],
) -> InMemory:
    """The parameters of a network of experts, as a source of a run folder.

    Args:
      old: the dense network.
      new: that with experts, which `check` allows.
      parameters: of the dense one.
      units: of the experts, by the number of the block.
      router: parameters of the router before the trunk, by dotted path.
    """
    shapes = {path: p.shape for path, p in abstract_parameters(new).items()}
    pairs = enumerate(zip(places(new), places(old), strict=True))
    blocks = {(place.prefix, place.unit): (n, before) for n, (place, before) in pairs}
    kind = EXPERTS[old.mlp_activation]

    def read(path: str, index: tuple[int, ...]) -> np.ndarray:
        if path in router:
            return router[path]
        if not index:
            return np.asarray(parameters[path])
        prefix = next(p for p, unit in blocks if path.startswith(p) and unit == index[0])
        number, before = blocks[prefix, index[0]]
        name = path.removeprefix(prefix)

        def of_old(name: str) -> np.ndarray:
            return np.asarray(parameters[f"{before.prefix}{name}"][before.unit])

        start = _SHARED if name.startswith(_SHARED) else _EXPERTS
        if number not in units or not name.startswith(start):
            return of_old(name)
        part, whole = name.removeprefix(start), of_old(_EXPERTS + name.removeprefix(start))[0]
        own = units[number].permanent[None] if start == _SHARED else units[number].own
        if part == "b_out":  # once: the shared expert has it, where there is one
            is_last = start == _SHARED or not len(units[number].permanent)
            return np.tile(whole * is_last, (len(own), 1))
        return np.stack([part_of(whole, part, row, kind) for row in own])

    return InMemory(shapes, read)
