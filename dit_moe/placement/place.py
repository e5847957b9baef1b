"""Places the experts of a run on devices: from what it was seen to choose to another order."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import jax
import numpy as np

from dit_moe.analysis.analyse import Opened, open_run
from dit_moe.analysis.counts import Counts
from dit_moe.config import ConfigError, ModelConfig
from dit_moe.models.parameters import places
from dit_moe.moe.assignments import ExpertRanges
from dit_moe.placement.cocluster import cocluster, local_share
from dit_moe.placement.decided import Decided, decided
from dit_moe.placement.record import ARRAYS, FILE, By, LayerPlacement, Placement, Way
from dit_moe.plan.memory import itemsize
from dit_moe.runs.loading import locate
from dit_moe.runs.model_folder import write_model
from dit_moe.storage.files import new_folder
from dit_moe.storage.records import write_record
from dit_moe.surgery.permutation import check_order_free, permuted


class Solved(NamedTuple):
    """Where tokens and experts lie, in each MoE layer."""

    rows: tuple[np.ndarray, ...]
    """[R, G] shares of groups of tokens on devices; alike in all layers where images stay whole."""
    experts: tuple[np.ndarray, ...]
    """[E] int: the device of each routed expert."""
    fitted: float


class Placed(NamedTuple):
    """A placement and what it was made of."""

    record: Placement
    run: Opened
    fit: Counts
    solved: Solved


def rooms_of(model: ModelConfig, devices: int) -> list[np.ndarray]:
    """How many routed experts each device has room for in each MoE layer: [G] int.

    Devices have equal parts of the stack, in which the unconditional expert is the last.

    Raises:
      ConfigError: the mesh cannot split the experts so.
    """
    numbers = [moe.num_experts for moe in model.mixtures]
    if devices < 2 or any(number % devices for number in numbers):
        told = " and ".join(str(number) for number in dict.fromkeys(numbers))
        raise ConfigError(
            f"devices is {devices} with {told} experts; allowed: 2 or more, a divisor of their "
            "number"
        )
    rooms = []
    for moe in model.mixtures:
        ranges = ExpertRanges.of(moe)
        each = -(-ranges.stack // devices)
        rooms.append(np.clip(ranges.routed - each * np.arange(devices), 0, each))
    return rooms


def tables(counts: Counts, numbers: Sequence[int], by: By) -> list[np.ndarray]:
    """Assignments of groups of tokens to routed experts, [R, E] of each layer.

    Args:
      counts: of decisions.
      numbers: of the routed experts of each layer.
      by: groups are the classes, or places within parts of the time range.
    """
    if by == "label":
        found_LxRxE = counts.by_class()
    else:
        layers, *_, e = counts.position_time_LxBxSxE.shape
        found_LxRxE = counts.position_time_LxBxSxE.reshape(layers, -1, e)
    return [table[:, :number] for table, number in zip(found_LxRxE, numbers, strict=True)]


def solve(counts: Counts, rooms: Sequence[np.ndarray], by: By, seed: int) -> Solved:
    """Places what was counted.

    Whole images lie at one place in all layers. Tokens by position may lie elsewhere in each, and
    in each part of the time range as many on every device.

    Raises:
      ConfigError: groups cannot be spread evenly.
    """
    found = tables(counts, [int(room_G.sum()) for room_G in rooms], by)
    if by == "label":
        clusters = cocluster(found, np.zeros(len(found[0]), int), rooms, seed=seed)
        rows, experts = (clusters.rows,) * len(rooms), clusters.experts
    else:
        _, bins, positions, _ = counts.position_time_LxBxSxE.shape
        stratum_R = np.repeat(np.arange(bins), positions)
        layers = [
            cocluster([table], stratum_R, [room_G], seed=seed)
            for table, room_G in zip(found, rooms, strict=True)
        ]
        rows = tuple(layer.rows for layer in layers)
        experts = tuple(layer.experts[0] for layer in layers)
    return Solved(rows, experts, _mean_share(found, _shares(found, rows, experts)))


def judge(
    counts: Counts, model: ModelConfig, solved: Solved, rooms: Sequence[np.ndarray], by: By
) -> Way:
    """What a placement does for what was counted, other images best."""
    found = tables(counts, [int(room_G.sum()) for room_G in rooms], by)
    share_L = _shares(found, solved.rows, solved.experts)
    travelling = _travelling(counts, found, share_L)
    if by == "position":  # tokens go to their groups' devices first, and what they got back
        travelling += len(rooms) * counts.position_NxSxLxE.shape[1] * (1 - 1 / len(rooms[0]))
    return Way(
        by=by,
        fitted=solved.fitted,
        local=_mean_share(found, share_L),
        bytes=2 * travelling * model.width * itemsize(model),
        busiest=_busiest(found, solved.experts, len(rooms[0])),
        together=_together(counts, solved.experts),
    )


def unplaced(counts: Counts, model: ModelConfig, rooms: Sequence[np.ndarray]) -> Way:
    """The same of experts in the order of the run, and images anywhere: of their assignments 1 in
    as many as there are devices stays."""
    devices = len(rooms[0])
    found = tables(counts, [int(room_G.sum()) for room_G in rooms], "label")
    experts = tuple(np.repeat(np.arange(devices), room_G) for room_G in rooms)
    return Way(
        by="label",
        fitted=1 / devices,
        local=1 / devices,
        bytes=2
        * _travelling(counts, found, [1 / devices] * len(rooms))
        * model.width
        * itemsize(model),
        busiest=_busiest(found, experts, devices),
        together=_together(counts, experts),
    )


def place(
    workdir: str | Path,
    batch_size: int,
    *,
    devices: int,
    by: By = "label",
    classes: Sequence[int | str] = (),
    **asked: object,
) -> Placed:
    """Places the experts of a run.

    Args:
      workdir: a run folder, an exported folder or a name on the Hugging Face hub.
      batch_size: images per pass.
      devices: along the mesh's axis "expert".
      by: how tokens are grouped; see `record.By`.
      classes: of the images, by label or by name.
      asked: more for `analysis.analyse.open_run`, of one kind of inputs.

    Raises:
      ConfigError: the run or a setting cannot be used.
    """
    run = open_run(workdir, batch_size, classes=classes, **asked)
    model = run.config.model
    check_order_free(model)
    rooms = rooms_of(model, devices)
    counts = decided(run, batch_size)
    seed = run.settings.seed
    solved = {way: solve(counts.fit, rooms, way, seed) for way in get_args(By)}
    record = Placement(
        name=run.config.name,
        source=str(workdir),
        step=run.step,
        settings=run.settings,
        devices=devices,
        before=unplaced(counts.held_out, model, rooms),
        ways=tuple(judge(counts.held_out, model, s, rooms, way) for way, s in solved.items()),
        by=by,
        layers=_layers(counts, model, solved[by], by),
    )
    return Placed(record, run, counts.fit, solved[by])


def _layers(
    counts: Decided, model: ModelConfig, solved: Solved, by: By
) -> tuple[LayerPlacement, ...]:
    blocks = [block for block, place in enumerate(places(model)) if place.moe]
    found = tables(counts.held_out, [len(device_E) for device_E in solved.experts], by)
    share_L = _shares(found, solved.rows, solved.experts)
    return tuple(
        LayerPlacement(block, tuple(np.argsort(device_E, kind="stable").tolist()), share)
        for block, device_E, share in zip(blocks, solved.experts, share_L, strict=True)
    )


def _shares(
    found: Sequence[np.ndarray], rows: Sequence[np.ndarray], experts: Sequence[np.ndarray]
) -> list[float]:
    """The local share of each layer."""
    layers = zip(found, rows, experts, strict=True)
    return [local_share([table], rows_RxG, [device_E]) for table, rows_RxG, device_E in layers]


def _mean_share(found: Sequence[np.ndarray], share_L: Sequence[float]) -> float:
    weight_L = [max(float(table.sum()), 1e-9) for table in found]
    return float(np.average(share_L, weights=weight_L))


def _travelling(counts: Counts, found: Sequence[np.ndarray], share_L: Sequence[float]) -> float:
    """Assignments of an image that leave its devices, over all layers."""
    images = counts.visits_B.sum()
    layers = zip(found, share_L, strict=True)
    return sum(float(table.sum()) * (1 - share) for table, share in layers) / images


def _busiest(found: Sequence[np.ndarray], experts: Sequence[np.ndarray], devices: int) -> float:
    loads = [
        np.bincount(device_E, weights=table.sum(axis=0), minlength=devices)
        for table, device_E in zip(found, experts, strict=True)
    ]
    return float(np.mean([load_G.max() / max(load_G.mean(), 1e-9) for load_G in loads]))


def _together(counts: Counts, experts: Sequence[np.ndarray]) -> float | None:
    same = total = 0.0
    for both_ExE, a_E, b_E in zip(
        counts.coactivation_LxExE, experts[:-1], experts[1:], strict=True
    ):
        both = both_ExE[: len(a_E), : len(b_E)]
        same += float(both[a_E[:, None] == b_E].sum())
        total += float(both.sum())
    return same / max(total, 1.0) if len(experts) > 1 else None


def write(placed: Placed, workdir: str | Path, output: Path) -> None:
    """Writes an open folder of the model with its experts in the new order, placement.json, and
    placement.npz with the tables that it was made of; whole or not at all.

    Args:
      placed: what `place` found.
      workdir: of the run.
      output: a new folder.
    """
    run, record = placed.run, placed.record
    orders = [np.asarray(layer.order) for layer in record.layers]
    with new_folder(output) as target:
        arrays = {path: np.asarray(v) for path, v in jax.device_get(run.parameters).items()}
        moved = permuted(run.config.model, arrays, orders)
        write_model(
            target,
            locate(workdir),
            run.config,
            moved,
            step=run.step,
            ema=run.settings.parameters == "ema",
            name=output.name,
            more=f"\nExperts are ordered for {record.devices} devices (`{FILE}`).\n",
        )
        write_record(target / FILE, record)
        np.savez_compressed(
            target / ARRAYS,
            position_time_LxBxSxE=placed.fit.position_time_LxBxSxE,
            label_LxYxE=placed.fit.by_class(),
            coactivation_LxExE=placed.fit.coactivation_LxExE,
            tokens_LxRxG=np.stack(placed.solved.rows),
        )
