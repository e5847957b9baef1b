"""A compressed model beside the one that it was made of: what it says, whom it chooses, what it
draws."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic.dataclasses import dataclass

from dit_moe.autoencoder.latent_space import read_latent_space
from dit_moe.config import ModelConfig
from dit_moe.config.rules import RULES
from dit_moe.models.parameters import Parameters, functional
from dit_moe.moe.assignments import ExpertRanges
from dit_moe.moe.routing import Routing
from dit_moe.runs.loading import Run, load_run, locate
from dit_moe.runs.weights import has_average
from dit_moe.sampling.run_sampler import RunSampler
from dit_moe.storage import images
from dit_moe.storage.files import new_folder
from dit_moe.storage.records import read_record, write_record
from dit_moe.surgery.compress.calibration import Calibration, calibrate, calibration_settings
from dit_moe.surgery.compress.record import read_compressed

FILE, PICTURE = "compared.json", "compared.png"
IMAGES, TIMES, SAMPLES = 16, 10, 8
"""How much is compared: images at each of so many times, and samples."""


@dataclass(frozen=True, config=RULES)
class Compared:
    """Kept as compared.json."""

    source: str
    """Where the original was found."""
    places: tuple[float, ...]
    """Of the times in the range of training, from noise to data."""
    error: tuple[float, ...]
    """At each time, the mean square of the prediction's difference over that of the prediction."""
    changed: tuple[tuple[float, ...] | None, ...]
    """For each MoE layer, at each time, the share of the original's choices of experts that are no
    longer made; None where the layer has other experts."""
    format: Literal[1] = 1


class Found(NamedTuple):
    """What the folder of a comparison holds."""

    compared: Compared
    picture: Path


def compared(workdir: Path, folder: Path) -> Found:
    """The comparison of a compressed folder, made into `folder` where that is not there yet.

    Samples are of the same seeds and classes; of latents, without the autoencoder.

    Raises:
      ConfigError: the original is no longer there or is another one, its data are not, or the
        samples of one of both cannot be drawn.
    """
    if not (folder / FILE).is_file():
        record = read_compressed(workdir)
        assert record is not None
        original = locate(record.source, "the compressed folder's source")
        with new_folder(folder) as target:
            _write(workdir, original, target)
    return Found(read_record(folder / FILE, Compared), folder / PICTURE)


def _write(workdir: Path, original: Path, target: Path) -> None:
    samplers = [_sampler(folder) for folder in (original, workdir)]
    runs = [load_run(folder, has_average(folder)) for folder in (original, workdir)]
    settings = calibration_settings(runs[0].config, images=IMAGES, times=TIMES, seed=1)
    calibration = calibrate(runs[0].config, settings, target)
    error, changed = compare(runs[0], runs[1], calibration)
    told = Compared(str(original), calibration.places, error, changed)
    write_record(target / FILE, told)
    drawn = [next(iter(sampler.batches())) for sampler in samplers]
    shown = [x if x.dtype == np.uint8 else images.false_colours(x) for x in drawn]
    titles = ["original"] * SAMPLES + ["compressed"] * SAMPLES
    images.grid(np.concatenate(shown), titles).save(target / PICTURE)


def _sampler(folder: Path) -> RunSampler:
    return RunSampler(
        folder,
        ema=has_average(folder),
        batch_size=SAMPLES,
        autoencoder=None if read_latent_space(folder) is None else "none",
        num_samples=SAMPLES,
        seed=0,
    )


def compare(
    original: Run, other: Run, calibration: Calibration
) -> tuple[tuple[float, ...], tuple[tuple[float, ...] | None, ...]]:
    """`error` and `changed` of `Compared`."""
    looks = [_look(run.config.model) for run in (original, other)]
    alike = [
        (a.num_experts, a.columns) == (b.num_experts, b.columns)
        for a, b in zip(original.config.model.mixtures, other.config.model.mixtures, strict=True)
    ]
    times = len(calibration.places)
    error, size = np.zeros(times), np.zeros(times)
    gone, chosen = np.zeros((len(alike), times)), np.zeros((len(alike), times))
    for inputs in calibration.batches():
        (a, of_a), (b, of_b) = (
            look(run.parameters, inputs.x, inputs.t, inputs.y)
            for look, run in zip(looks, (original, other), strict=True)
        )
        error[inputs.time] += float(jnp.square(a - b).sum())
        size[inputs.time] += float(jnp.square(a).sum())
        for layer, (mine, theirs) in enumerate(zip(of_a, of_b, strict=True)):
            if alike[layer]:
                gone[layer, inputs.time] += float((mine & ~theirs).sum())
                chosen[layer, inputs.time] += float(mine.sum())
    share = gone / np.maximum(chosen, 1)
    changed = [
        tuple(row.tolist()) if same else None for row, same in zip(share, alike, strict=True)
    ]
    return tuple((error / np.maximum(size, 1e-30)).tolist()), tuple(changed)


def _look(model: ModelConfig) -> Callable[..., tuple[jax.Array, list[jax.Array]]]:
    """Jitted: what a network predicts, and for each MoE layer [T, E] which experts tokens have."""
    build = functional(model)
    mixtures = [segment.moe for segment in model.trunk if segment.moe is not None]

    @jax.jit
    def look(
        parameters: Parameters, x: jax.Array, t_N: jax.Array, y_N: jax.Array
    ) -> tuple[jax.Array, list[jax.Array]]:
        found, tokens = build(parameters)(x, t_N, y_N), len(x) * model.num_tokens
        layers: list[jax.Array] = []
        for moe, routing in zip(mixtures, found.routing, strict=True):
            number = ExpertRanges.of(moe).none
            of_segment = jax.vmap(lambda r, number=number: _has(r, tokens, number))(routing)
            layers += list(of_segment)
        return found.value, layers

    return look


def _has(routing: Routing, tokens: int, experts: int) -> jax.Array:
    """Whether a token has an expert, with some weight: bool [T, E]."""
    has_TxE = jnp.zeros((tokens, experts), bool)
    return has_TxE.at[routing.token, routing.expert].max(routing.weight != 0, mode="drop")
