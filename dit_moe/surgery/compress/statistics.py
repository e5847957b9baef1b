"""Sums over the calibration of what the MoE layers of a model do.

They are kept after every time, so that what was stopped goes on, and are shared by all that ask the
same of the same model and inputs.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dit_moe.models.watched import Measure, watched
from dit_moe.runs.fingerprint import digest
from dit_moe.runs.tensor_files import read_safetensors, write_safetensors
from dit_moe.storage.files import atomic
from dit_moe.surgery.compress.calibration import Calibration
from dit_moe.surgery.compress.steps import Model

Sums = dict[str, np.ndarray]
"""Arrays float64 by name."""

_SEEN, _DONE = "seen.", "times_done"


def layer_sums(
    model: Model, calibration: Calibration, name: str, measure: Measure, *, by_time: bool = False
) -> list[Sums]:
    """What a measure finds in every MoE layer in order, summed over the inputs.

    Args:
      model: whose network it is.
      calibration: what the network is shown.
      name: of the measure and all that it depends on, by which the sums are kept.
      measure: see `models.watched`.
      by_time: sums of each time apart, with a leading axis of the times from noise to data.
    """
    file = None
    if calibration.folder is not None:
        of = f"{_digest(model)[:16]}-{calibration.digest[:16]}"
        file = calibration.folder / f"{name}{'-by-time' * by_time}-{of}.safetensors"
    done, sums = (0, []) if file is None else _read(file)
    parameters, look = jax.device_put(dict(model.parameters)), _look(model, measure)
    bar = tqdm(total=len(calibration.places), initial=done, unit="time", desc=name, leave=False)
    with bar:
        for time in range(done, len(calibration.places)):
            found: list[Sums] = []
            for inputs in calibration.batches(time):
                seen = look(parameters, inputs.x, inputs.t, inputs.y)
                seen = [_layers(jax.device_get(of_segment)) for of_segment in seen]
                found = _added(found, [layer for segment in seen for layer in segment])
            if by_time:
                found = [{name: x[None] for name, x in layer.items()} for layer in found]
            sums = _joined(sums, found) if by_time else _added(sums, found)
            if file is not None:
                _write(file, time + 1, sums)
            bar.update()
    return sums


def _digest(model: Model) -> str:
    """SHA-256 of the parameters and of the network that computes with them."""
    network = json.dumps(dataclasses.asdict(model.config.model), sort_keys=True, default=str)
    return hashlib.sha256(f"{digest(dict(model.parameters))} {network}".encode()).hexdigest()


def _look(model: Model, measure: Measure) -> Callable[..., list[dict[str, jax.Array]]]:
    """The jitted function from parameters and inputs to what is found, by segment."""

    def named(*seen: Any) -> dict[str, jax.Array]:
        return {f"{_SEEN}{name}": value for name, value in measure(*seen).items()}

    @jax.jit
    def look(
        parameters: dict[str, jax.Array], x: jax.Array, t_N: jax.Array, y_N: jax.Array
    ) -> list[dict[str, jax.Array]]:
        network = watched(model.config.model, parameters, named)
        return [
            {k.removeprefix(_SEEN): v for k, v in r.metrics.items() if k.startswith(_SEEN)}
            for r in network(x, t_N, y_N).routing
        ]

    return look


def _layers(of_segment: dict[str, np.ndarray]) -> list[Sums]:
    """The layers of a segment apart."""
    number = len(next(iter(of_segment.values())))
    wide = {name: np.asarray(value, np.float64) for name, value in of_segment.items()}
    return [{name: value[layer] for name, value in wide.items()} for layer in range(number)]


def _added(sums: list[Sums], more: list[Sums]) -> list[Sums]:
    if not sums:
        return more
    return [{k: a[k] + b[k] for k in a} for a, b in zip(sums, more, strict=True)]


def _joined(sums: list[Sums], more: list[Sums]) -> list[Sums]:
    if not sums:
        return more
    return [{k: np.append(a[k], b[k], axis=0) for k in a} for a, b in zip(sums, more, strict=True)]


def _read(file: Path) -> tuple[int, list[Sums]]:
    """How many times were done, and the sums over them."""
    if not file.is_file():
        return 0, []
    tensors = {name: np.asarray(tensor) for name, tensor in read_safetensors(file).items()}
    done = int(tensors.pop(_DONE)[0])
    sums: list[Sums] = []
    for key in sorted(tensors, key=lambda key: int(key.partition(".")[0])):
        layer, _, name = key.partition(".")
        sums += [{}] * (int(layer) + 1 - len(sums))
        sums[int(layer)] = {**sums[int(layer)], name: tensors[key]}
    return done, sums


def _write(file: Path, done: int, sums: list[Sums]) -> None:
    tensors = {
        f"{i}.{name}": value for i, layer in enumerate(sums) for name, value in layer.items()
    }
    with atomic(file) as temporary:
        write_safetensors(temporary, {**tensors, _DONE: np.array([done])}, form="dit_moe")
