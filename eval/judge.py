"""Answers `python -m eval.fid`: from what is asked to a file of numbers and a table."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_moe.config import ConfigError

from . import sweep
from .choose import about, choose
from .evaluate import evaluate, reference_statistics
from .features import Extractor, load_extractor
from .follow import follow
from .image_set import ImageSet
from .image_sets import open_set
from .output import as_json, write
from .references import Reference, open_reference, write_reference
from .resize import Resize, parse, resized
from .result_table import table
from .run_samples import open_run

_Judge = Callable[[ImageSet, int], dict[str, Any]]
"""From images and how many are read at once to a result of `evaluate`."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What images are judged by, and where the numbers go."""

    reference: Path
    output: Path | None
    """None: only the statistics of the reference are wanted."""
    features: str
    """One of `features.OUTPUTS`."""
    weights: Path | None
    """Of the features; None where they need none."""
    metrics: Sequence[str] | None
    """None: see `choose`."""
    batch_size: int
    """Images per pass of the feature network."""
    split: str
    """Of TFDS data sets."""
    pairwise_reference: int
    """See `evaluate`."""
    cache: Path
    save_reference: Path | None = None
    """Where the reference's statistics go, too."""
    resize: str | None = None
    """See `resize.parse`; None: all images are of one size."""


@dataclasses.dataclass(frozen=True)
class RunSamples:
    """Images that a run draws as they are judged, once for every guidance scale."""

    workdir: Path
    scales: Sequence[float]
    """Empty: the one of the run's config."""
    save: Path | None
    """Folder for the images; None: they are not kept."""
    settings: Mapping[str, Any]
    """As for `run_samples.open_run`; the scale of "guidance" is not read."""
    follow: bool = False
    """Whether all its checkpoints are judged, those to come too."""


def judge(request: Request, judged: Path | RunSamples | None) -> str:
    """Judges, writes, and returns the table.

    Args:
        request: what is asked.
        judged: a set of images (see `image_sets.open_set`), or samples of a run; None where only
            the reference's statistics are wanted.

    Raises:
        ConfigError: for the user to mend.
        OSError: a file cannot be written.
    """
    samples = judged if isinstance(judged, Path) else None
    _check(request, samples)
    resize = None if request.resize is None else parse(request.resize)
    images = open_set(samples, request.split, resize) if samples else None
    reference = open_reference(request.reference, request.split, resize)
    # Before the network is loaded.
    chosen = choose(request.metrics, request.features, reference) if judged else []
    extractor = load_extractor(request.features, request.weights, batch_size=request.batch_size)

    for path in filter(None, (request.output, request.save_reference)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error.strerror or error}).") from error
    told = []
    if request.save_reference is not None:
        told = [_save_reference(request, request.save_reference, reference, extractor, chosen)]
    if judged is not None:
        told = [_judge(request, judged, images, reference, extractor, chosen, resize), *told]
    return "\n".join(told)


def _save_reference(
    request: Request, path: Path, reference: Reference, extractor: Extractor, chosen: Sequence[str]
) -> str:
    gaussian = reference_statistics(
        reference,
        extractor,
        chosen,
        cache=request.cache,
        batch_size=4 * request.batch_size,
        pairwise_reference=request.pairwise_reference,
    )
    assert reference.images is not None
    num = reference.images.num
    made_by = {"features": about(extractor), "images": reference.sha256, "num": num}
    write_reference(path, gaussian, made_by)
    width = max(len(each.mean) for each in gaussian.values())
    few = f" These are few for {width:,} features: distances from them are biased up."
    return f"Statistics of {num:,} reference images: {path}.{few * (num <= width)}"


def _judge(
    request: Request,
    judged: Path | RunSamples,
    images: ImageSet | None,
    reference: Reference,
    extractor: Extractor,
    chosen: Sequence[str],
    resize: Resize | None,
) -> str:

    def judge_images(images: ImageSet, batch_size: int) -> dict[str, Any]:
        result = evaluate(
            images,
            reference,
            extractor,
            chosen,
            cache=request.cache,
            batch_size=batch_size,
            pairwise_reference=request.pairwise_reference,
        )
        if resize is not None:
            result["resize"] = str(resize)
            result["notes"].append(f"Images of another size were resized by {resize}.")
        return result

    if isinstance(judged, RunSamples):
        identity = {
            "reference": reference.sha256,
            "features": extractor.description,
            "metrics": chosen,
            "pairwise_reference": request.pairwise_reference,
        }
        return _judge_run(request, judged, judge_images, identity, resize)
    assert images is not None
    assert request.output is not None
    # Four: the network prepares one while it computes another.
    result = judge_images(images, 4 * request.batch_size)
    write(request.output, as_json(result))
    return table(result)


def _check(request: Request, samples: Path | None) -> None:
    for name in ("batch_size", "pairwise_reference"):
        if getattr(request, name) < 1:
            raise ConfigError(f"--{name} is {getattr(request, name)}, but must be at least 1.")
    resolved = [os.path.realpath(path) for path in (samples, request.reference) if path]
    outputs = {
        "output": (request.output, ".json"),
        "save_reference": (request.save_reference, ".npz"),
    }
    for name, (output, suffix) in outputs.items():
        if output is None:
            continue
        if output.is_dir():
            raise ConfigError(f"--{name} is {output}, which is a folder, but must name a file.")
        if output.suffix != suffix:
            raise ConfigError(f"--{name} is {output}, but must end in {suffix}.")
        if os.path.realpath(output) in resolved:
            raise ConfigError(
                f"--{name} is {output}, but must not be the samples or the reference."
            )


def _judge_run(
    request: Request,
    run: RunSamples,
    judge_images: _Judge,
    identity: Mapping[str, Any],
    resize: Resize | None,
) -> str:
    assert request.output is not None

    def judge_drawn(images: ImageSet, drawn: dict[str, Any]) -> dict[str, Any]:
        result = judge_images(images, drawn["batch_size"])
        result["samples"]["drawn"] = drawn
        return result

    def judge_step(step: int) -> dict[str, Any]:
        ((images, drawn),) = _sets(request, run, checkpoint=str(step))
        return judge_drawn(resized(images, resize), drawn)

    if run.follow:
        asked = {**run.settings, "scales": run.scales, "resize": request.resize, **identity}
        return follow(run.workdir, judge_step, request.output, asked)
    parts = request.output.with_name(f"{request.output.name}.parts")
    sets = ((resized(images, resize), drawn) for images, drawn in _sets(request, run))
    results = sweep.judge_sets(sets, judge_drawn, parts, identity)
    if len(results) == 1:
        write(request.output, as_json(results[0]))
        sweep.finish(parts)
        return table(results[0])
    write(request.output, as_json({"by_guidance_scale": results}))
    picture = request.output.with_suffix(".png")
    sweep.plot(results, picture, "guidance scale", sweep.scales_of(results))
    sweep.finish(parts)
    return f"{sweep.table(results)}\n\nThe plot: {picture}"


def _sets(
    request: Request, run: RunSamples, **given: Any
) -> Iterator[tuple[ImageSet, dict[str, Any]]]:
    """The samples of each scale, one at a time: each holds the model's parameters."""
    scales = sorted(set(run.scales)) or [None]
    for scale in scales:
        if scale is not None and not 0 <= scale < math.inf:
            raise ConfigError(
                f"--guidance_scale has {scale}, but must be 0 or more (1: no guidance)."
            )
    for scale in scales:
        guidance = {**run.settings["guidance"], "scale": scale}
        settings = {**run.settings, "guidance": guidance, **given}
        yield open_run(run.workdir, batch_size=request.batch_size, save=run.save, **settings)
