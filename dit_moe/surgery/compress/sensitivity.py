"""What matrices lose by few bits, measured or guessed, by which a budget is shared out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import ConfigError, ModelConfig
from dit_moe.models.parameters import Place, functional, places
from dit_moe.surgery.compress.calibration import Calibration
from dit_moe.surgery.compress.correlations import Walk, check_seen
from dit_moe.surgery.compress.statistics import layer_sums
from dit_moe.surgery.compress.steps import Model
from dit_moe.surgery.compress.worth import count_use

By = Literal["error", "use", "first", "outliers", "importance", "random"]
"""`error`: how much the prediction changes when this matrix alone has so many bits. The others
guess that a matrix loses by its size times its worth, and a quarter of it with each further bit.
Worth is: `use`, the share of the tokens that pass the expert, of shared and unconditional ones all;
`first`, how many blocks follow, its own one too; `outliers`, the largest weight over the mean one
of an input, of the input where that is most; `importance`, how far the block's feed-forward turns
the tokens; `random`, a lot."""


class Item(NamedTuple):
    """A matrix of one expert of one block, whose bits are asked for."""

    path: str
    at: tuple[int, ...]
    """In the leading axes of the stack: unit, expert."""
    block: int
    """Number of its block."""


def items_of(network: ModelConfig, paths: Mapping[str, int]) -> list[Item]:
    """The matrices of these paths one by one.

    Args:
      network: whose they are.
      paths: of stacks in the trunk, with how many experts each has.
    """
    found = []
    for block, place in enumerate(places(network)):
        for path, number in paths.items():
            if path.startswith(place.prefix):
                found += [Item(path, (place.unit, expert), block) for expert in range(number)]
    return found


def losses(
    model: Model,
    items: Sequence[Item],
    choices: Sequence[int],
    by: By,
    calibration: Calibration | None,
    rounded: Callable[[jax.Array, int], jax.Array],
) -> np.ndarray:
    """What every matrix loses with every number of bits: [I, B], comparable among them.

    Args:
      model: a whole one.
      items: its matrices.
      choices: the numbers of bits.
      by: how it is found.
      calibration: what the network is shown, where it is asked.
      rounded: from a matrix [D, G] and bits to what is left of it.

    Raises:
      ConfigError: the measure cannot be taken of this model.
    """
    if by == "error":
        assert calibration is not None
        return measured(model, items, choices, calibration, rounded).sum(axis=-1)
    worth_I = _WORTHS[by](model, items, calibration)
    sizes_I = np.array([np.prod(model.parameters[item.path].shape[-2:]) for item in items])
    return (worth_I * sizes_I)[:, None] * 4.0 ** -np.array(choices)


def measured(
    model: Model,
    items: Sequence[Item],
    choices: Sequence[int],
    calibration: Calibration,
    rounded: Callable[[jax.Array, int], jax.Array],
) -> np.ndarray:
    """The mean square of how the prediction changes, time by time: [I, B, times].

    Every matrix costs a pass over the calibration for every number of bits.
    """
    build, whole = functional(model.config.model), jax.device_put(dict(model.parameters))
    look = jax.jit(lambda p, x, t, y: build(p)(x, t, y).value)
    compare = jax.jit(lambda p, x, t, y, known: jnp.square(look(p, x, t, y) - known).mean())
    rows = [(i.x, i.t, i.y, i.time) for i in calibration.batches()]
    known = [look(whole, *row[:3]) for row in rows]
    images_T = np.bincount([time for *_, time in rows], [len(x) for x, *_ in rows])
    found = np.zeros((len(items), len(choices), len(images_T)))
    for number, item in enumerate(items):
        for choice, bits in enumerate(choices):
            stack = whole[item.path]
            changed = {
                **whole,
                item.path: stack.at[item.at].set(rounded(stack[item.at], bits)),
            }
            for (x, t_N, y_N, time), value in zip(rows, known, strict=True):
                share = len(x) / images_T[time]
                found[number, choice, time] += share * compare(changed, x, t_N, y_N, value)
    return found


def _by_use(model: Model, items: Sequence[Item], calibration: Calibration | None) -> np.ndarray:
    assert calibration is not None
    network = model.config.model
    check_seen(network, "by is 'use'", "another measure, such as by=error")
    if any(moe.unlike for moe in network.mixtures):
        raise ConfigError(
            "by is 'use', but the model's moe.unlike has groups of experts; allowed: another "
            "measure, such as by=error"
        )
    sums = iter(layer_sums(model, calibration, "use", count_use, by_time=True))
    tokens = calibration.settings.images * len(calibration.places) * network.num_tokens
    shares: dict[int, np.ndarray] = {}
    for block, place in enumerate(places(network)):
        if place.moe is not None:
            shares[block] = next(sums)["use"].sum(axis=0) / tokens
            shares[block][place.moe.num_experts :] = 1.0  # guidance multiplies what it errs by
    return np.array(
        [
            shares[i.block][i.at[1]]
            if ".feed_forward.experts." in i.path and i.block in shares
            else 1.0
            for i in items
        ]
    )


def _by_place(model: Model, items: Sequence[Item], _: Calibration | None) -> np.ndarray:
    return np.array([model.config.model.depth - item.block for item in items], float)


def _by_outliers(model: Model, items: Sequence[Item], _: Calibration | None) -> np.ndarray:
    return np.array([outlier_score(model.parameters[i.path][i.at]) for i in items])


def outlier_score(w_DxG: np.ndarray) -> float:
    """The largest weight over the mean one of an input, of the input where that is most
    (QuantMoE-Bench, Li et al. 2024)."""
    size_DxG = np.abs(w_DxG)
    return float((size_DxG.max(axis=1) / np.maximum(size_DxG.mean(axis=1), 1e-30)).max())


def _by_importance(
    model: Model, items: Sequence[Item], calibration: Calibration | None
) -> np.ndarray:
    assert calibration is not None
    turn = turns(model, calibration)
    return np.array([turn[item.block] for item in items])


def turns(model: Model, calibration: Calibration) -> list[float]:
    """For each block 1 less the mean cosine of tokens before and after its feed-forward is added,
    under the gate."""
    walk = Walk(model.config.model, model.parameters, calibration.batches())
    found = []
    for place in places(model.config.model):
        own = own_parameters(model.parameters, place)
        found.append(1 - walk.cosine(place, own))
        walk.advance(place, own)
    return found


def own_parameters(parameters: Mapping[str, np.ndarray], place: Place) -> dict[str, jax.Array]:
    """Those of one block, by the path within it."""
    return {
        path.removeprefix(place.prefix): jnp.asarray(p[place.unit])
        for path, p in parameters.items()
        if path.startswith(place.prefix)
    }


def _by_lot(model: Model, items: Sequence[Item], calibration: Calibration | None) -> np.ndarray:
    del model, calibration
    return np.random.default_rng(0).permutation(len(items)) + 1.0


_WORTHS = {
    "use": _by_use,
    "first": _by_place,
    "outliers": _by_outliers,
    "importance": _by_importance,
    "random": _by_lot,
}
