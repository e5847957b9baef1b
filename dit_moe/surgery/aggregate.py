"""Aggregation of experts (Kim et al. 2021, Z-code M3): two sparse runs of one network become one
with the experts of both.

Experts, and what a router has for each of them, are put side by side; a matrix from experts to
experts becomes block-diagonal. All else is the mean of both, the unconditional expert too, so the
two should have a beginning in common. A token goes to twice as many experts, or to as many as
before. Either way a run that is aggregated with itself stays the function that it was: what its
router's weights change by is measured, and the routed experts' outputs are divided by it. Where no
factor does that, the runs are refused.
"""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import nnx

from dit_moe.autoencoder.latent_space import read_latent_space, same_latents
from dit_moe.config import BiasSettings, Config, ConfigError, ModelConfig, MoEConfig
from dit_moe.config.files import differences
from dit_moe.config.objective import other_meaning
from dit_moe.config.rules import describe
from dit_moe.data.classes import model_classes
from dit_moe.models.parameters import Parameters, abstract_parameters, places
from dit_moe.models.unpacking import check_whole
from dit_moe.moe.assignments import ExpertRanges
from dit_moe.moe.routers import build_router
from dit_moe.moe.routing import Conditioning
from dit_moe.nn.flat import bind, variables
from dit_moe.runs.loading import load_run, locate
from dit_moe.runs.weights import has_average
from dit_moe.runs.writer import InMemory, write_run

_MAY_DIFFER = ("model.label_dropout", "model.dtype", "model.remat")
_ROUTER = "feed_forward.router."
_OUTPUTS = re.compile(r"feed_forward\.(?:experts|unlike\.(\d+))\.[wb]_out")
_IMAGES = 4  # of random tokens, by which a router's weights are measured


def aggregate_runs(
    first: str | Path,
    second: str | Path,
    output: Path,
    *,
    keep_top_k: bool = False,
    ema: bool | None = None,
) -> Config:
    """Writes a run folder with the experts of two runs, and returns its config.

    Args:
      first: a run folder, open folder or hub name.
      second: another.
      output: a new folder.
      keep_top_k: tokens have as many experts as before, rather than twice as many.
      ema: the moving averages rather than the parameters; None: where there is one.

    Raises:
      ConfigError: the two do not fit, or cannot be aggregated in this way; the message says why.
      OSError: the output cannot be written.
    """
    folders = [locate(run) for run in (first, second)]
    runs = [load_run(folder, has_average(folder) if ema is None else ema) for folder in folders]
    check(runs[0].config, runs[1].config)
    spaces = [read_latent_space(folder) for folder in folders]
    if not same_latents(*spaces):
        raise ConfigError(f"{second} is of other latents than {first}; allowed: the same")
    names = [
        model_classes(run.config.data, run.config.model, folder).names
        for run, folder in zip(runs, folders, strict=True)
    ]
    if all(names) and names[0] != names[1]:
        raise ConfigError(f"{second} has other classes than {first}; allowed: the same, in order")
    config = aggregated(runs[0].config, runs[1].config, keep_top_k)
    source = join(runs[0].config.model, config.model, runs[0].parameters, runs[1].parameters)
    write_run(output, config, spaces[0], source)
    return config


def check(first: Config, second: Config) -> None:
    """Raises a ConfigError that says why two runs cannot be aggregated, if so."""
    for config, which in ((first, "first"), (second, "second")):
        check_whole(config.model, f"the {which} run")
    if not first.model.mixtures:
        raise ConfigError("model.moe is none in the first run; allowed: a mixture of experts")
    if any(moe.columns is not None for moe in first.model.mixtures):
        raise ConfigError("the runs to aggregate have moe.columns, of compression; allowed: none")
    if first.model.pregate is not None:
        raise ConfigError(
            "model.pregate is a router before the trunk in the first run; allowed: routers of the "
            "layers"
        )
    fields = [
        field
        for field in differences(first, second)
        if field.startswith("model.") and field not in _MAY_DIFFER
    ]
    if fields:
        raise ConfigError(
            f"the runs to aggregate differ in {', '.join(fields)}; allowed: the same network"
        )
    if (field := other_meaning(first.objective, second.objective)) is not None:
        raise ConfigError(f"the runs to aggregate differ in objective.{field}; allowed: the same")


def aggregated(first: Config, second: Config, keep_top_k: bool) -> Config:
    """The config of both together, with all settings of the first but its experts.

    Raises:
      ConfigError: the mixture does not allow as many.
    """

    def both(moe: MoEConfig | None) -> MoEConfig | None:
        if moe is None:
            return None
        router = moe.router
        times = 1 if keep_top_k or router.chooser == "nobody" else 2
        if isinstance(router, BiasSettings) and router.mean_experts is not None:
            router = dataclasses.replace(router, mean_experts=times * router.mean_experts)
        return dataclasses.replace(
            moe,
            router=router,
            num_experts=2 * moe.num_experts,
            top_k=times * moe.top_k,
            cheap_experts=2 * moe.cheap_experts,
            unlike=tuple(dataclasses.replace(g, number=2 * g.number) for g in moe.unlike),
        )

    old = first.model
    try:
        segments = tuple(dataclasses.replace(s, moe=both(s.moe)) for s in old.segments)
        model = dataclasses.replace(old, moe=both(old.moe), segments=segments)
    except pydantic.ValidationError as error:
        raise ConfigError(describe(error, "model of both runs")) from None
    return dataclasses.replace(first, name=f"{first.name}-with-{second.name}", model=model)


def join(old: ModelConfig, new: ModelConfig, first: Parameters, second: Parameters) -> InMemory:
    """The parameters of both together, as a source of a run folder.

    Args:
      old: of either run.
      new: of both together, from `aggregated`.
      first: parameters of the one.
      second: parameters of the other.

    Raises:
      ConfigError: a run with itself would not be what it was.
    """
    shapes = {path: p.shape for path, p in abstract_parameters(new).items()}
    grown = {place.prefix: place.moe for place in places(new)}
    mixtures = {place.prefix: place.moe for place in places(old)}
    factors = {
        prefix: _factor(prefix, old, moe, both, shapes, first)
        for (prefix, moe), both in zip(mixtures.items(), grown.values(), strict=True)
        if moe is not None and both is not None
    }

    def read(path: str, index: tuple[int, ...]) -> np.ndarray:
        a, b = (np.asarray(parameters[path][index]) for parameters in (first, second))
        prefix = next((p for p in mixtures if path.startswith(p)), "")
        joined = _side_by_side(a, b, shapes[path][len(index) :], mixtures.get(prefix))
        moe = grown.get(prefix)
        output = _OUTPUTS.fullmatch(path.removeprefix(prefix))
        if moe is not None and output is not None:
            group = moe.groups[0 if output[1] is None else 1 + int(output[1])]
            # The unconditional expert, which comes last, has weight 1.
            joined[: group.number] *= factors[prefix]
        return joined

    return InMemory(shapes, read)


def columns(moe: MoEConfig, which: int) -> np.ndarray:
    """Where the experts of the first run (0) or the second (1) lie among the scored ones of both:
    of every group those of the one before those of the other, then cheap ones likewise."""
    found, start = [], 0
    for size in (*(group.number for group in moe.groups), len(moe.cheap_experts)):
        found.append(2 * start + which * size + np.arange(size))
        start += size
    return np.concatenate(found)


def _side_by_side(
    a: np.ndarray, b: np.ndarray, shape: tuple[int, ...], moe: MoEConfig | None
) -> np.ndarray:
    """Both in an array of this shape: side by side where it is longer, their mean where not."""
    total, count = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for which, part in enumerate((a, b)):
        index = np.ix_(*(_places(n, m, which, moe) for n, m in zip(part.shape, shape, strict=True)))
        total[index] += part
        count[index] += 1
    return total / np.maximum(count, 1)


def _places(old: int, new: int, which: int, moe: MoEConfig | None) -> np.ndarray:
    """Where what an axis of one run holds lies on the axis of both."""
    if old == new:
        return np.arange(old)
    if moe is not None and old == moe.scored_experts and new == 2 * old:
        return columns(moe, which)
    if new == 2 * old:
        return which * old + np.arange(old)
    # The last is the unconditional expert, which both have in common.
    return np.append(which * (old - 1) + np.arange(old - 1), new - 1)


def _factor(
    prefix: str,
    model: ModelConfig,
    moe: MoEConfig,
    both: MoEConfig,
    shapes: dict[str, tuple[int, ...]],
    parameters: Parameters,
) -> float:
    """By what the experts' outputs are multiplied so that a run with itself is what it was.

    Measured on random tokens with the router of the first layer of a segment.

    Raises:
      ConfigError: there is no such factor.
    """
    start = f"{prefix}{_ROUTER}"
    own = {
        path.removeprefix(start): np.asarray(value[0])
        for path, value in parameters.items()
        if path.startswith(start)
    }
    twice = {
        name: _side_by_side(value, value, shapes[f"{start}{name}"][1:], moe)
        for name, value in own.items()
    }
    before = _weights(model, moe, own)
    weights = _weights(model, both, twice)
    after = weights[:, columns(moe, 0)] + weights[:, columns(moe, 1)]
    factor = float((before * after).sum() / max((after**2).sum(), 1e-30))
    if np.abs(factor * after - before).max() > 1e-4 * np.abs(before).max():
        raise ConfigError(
            f"a run with router {moe.router.name!r} and top_k {moe.top_k} that is aggregated with "
            f"itself to top_k {both.top_k} would not be what it was; allowed: "
            f"{'without' if both.top_k == moe.top_k else 'with'} --keep_top_k, or other runs"
        )
    gives = sorted(set(moe.cheap_experts) - {"zero"})
    if gives and abs(factor - 1) > 1e-4:
        raise ConfigError(
            f"moe.cheap_experts has {', '.join(gives)}, whose output cannot be multiplied by "
            f"{factor:.3g} as that of the others; allowed: zero"
        )
    return round(factor, 6)  # a ratio of small numbers, such as 1/2, but for what was lost


def _weights(model: ModelConfig, moe: MoEConfig, parameters: dict[str, np.ndarray]) -> np.ndarray:
    """The weight of every scored expert for random tokens, [T, E]."""
    tokens = _IMAGES * model.num_tokens
    router = build_router(moe, model.width, nnx.Rngs(0))
    assert isinstance(router, nnx.Module)
    if parameters.keys() != variables(router).keys():
        raise ConfigError(f"router {moe.router.name!r} has other parameters with more experts")
    router = bind(router, {name: jnp.asarray(value) for name, value in parameters.items()})
    x_TxD = jax.random.normal(jax.random.key(0), (tokens, model.width))
    shapes = moe.router.hands_on(moe)
    previous = {name: jnp.zeros((tokens, *shape)) for name, shape in shapes.items()}
    assert callable(router)
    routing = router(
        x_TxD, Conditioning(jnp.zeros(tokens, bool), model.num_tokens, previous=previous)
    )
    if routing.mixed:  # every expert has a part in every token
        return np.asarray(routing.scores)
    ranges = ExpertRanges.of(moe)
    weight_TxE = jnp.zeros((tokens, ranges.none)).at[routing.token, routing.expert]
    weight_TxE = weight_TxE.add(routing.weight, mode="drop")
    # Without the unconditional expert, which no router scores.
    return np.delete(np.asarray(weight_TxE), range(ranges.routed, ranges.stack), axis=1)
