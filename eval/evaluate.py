"""Judges a set of images by the usual metrics on the features of a network."""

import importlib.metadata
import math
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .choose import about, check, choose
from .collect import Collected, collect, key
from .features import OUTPUTS, Extractor
from .image_set import ImageSet, ImageSetError
from .metric_table import METRICS, PAIRWISE_REFERENCE, Metric, Sets
from .references import Reference
from .statistics import Gaussian, SmallSetWarning

_PACKAGES = ("numpy", "scipy", "scikit-learn", "jax")


def evaluate(
    samples: ImageSet,
    reference: Reference,
    extractor: Extractor,
    names: Sequence[str] | None = None,
    *,
    cache: Path,
    batch_size: int = 256,
    pairwise_reference: int = PAIRWISE_REFERENCE,
) -> dict[str, Any]:
    """Judges samples against a reference.

    Nothing is drawn at random but from fixed seeds. An evaluation that is stopped goes on when it
    is asked for again; the reference's features and statistics stay in the cache, those of the
    samples go once they are judged.

    Args:
        samples: any set of images; a generator can make them as they are read (`ImageSet`).
        reference: see `references.open_reference`.
        extractor: the network whose features are compared.
        names: keys of `METRICS`; see `choose`.
        cache: folder for the reference and for progress.
        batch_size: images read and handed to the network at once; see `collect`.
        pairwise_reference: how many reference images, evenly spaced, pr, dc and kid compare with.

    Returns:
        Plain numbers and strings, ready for JSON: "metrics" by name with their settings,
        "samples", "reference", "features" (network, weights, resizing), "notes" that a reader must
        know, and "versions".

    Raises:
        ImageSetError: a set cannot be used, or a metric is impossible with these sets.
        OSError: the cache cannot be written.
    """
    names = choose(names, extractor.name, reference)
    chosen = [METRICS[name] for name in names]
    images = reference.images
    check(samples, reference, extractor, chosen)

    of_reference = _collect_reference(
        reference, extractor, chosen, cache, batch_size, pairwise_reference
    )
    statistics = sorted({output for metric in chosen for output in metric.statistics})
    keep = sorted({output for metric in chosen for output in metric.keep})
    folder = cache / f"samples-{key(samples, extractor, statistics, keep)}"
    of_samples = collect(samples, extractor, statistics, keep, folder, None, batch_size, "samples")

    sets = Sets(of_samples, of_reference, reference.gaussian, None, None, pairwise_reference)
    needs_labels = any(metric.labels for metric in chosen)
    if needs_labels or "is" in names:
        sets.sample_labels = samples.labels
    if needs_labels and images is not None:
        sets.reference_labels = images.labels
    values = _compute(names, sets, known=reference.made_by is not None)
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "metrics": values,
        "samples": {
            "path": samples.path,
            "sha256": samples.sha256,
            "num": samples.num,
            "image_shape": list(samples.shape),
        },
        "reference": {
            "path": reference.path,
            "sha256": reference.sha256,
            "num": images.num if images is not None else None,
            "stored_statistics": sorted(reference.gaussian),
            "num_pairwise": (
                min(images.num, pairwise_reference)
                if images and any(metric.reference_kept == "some" for metric in chosen)
                else 0
            ),
        },
        "features": about(extractor),
        "notes": list(dict.fromkeys(sets.notes)),
        "versions": {p: importlib.metadata.version(p) for p in _PACKAGES},
    }


def reference_statistics(
    reference: Reference,
    extractor: Extractor,
    names: Sequence[str],
    *,
    cache: Path,
    batch_size: int,
    pairwise_reference: int = PAIRWISE_REFERENCE,
) -> dict[str, Gaussian]:
    """The statistics of a reference's images, by output; `evaluate` goes on with what is collected.

    Args:
        reference: as of `evaluate`, like the following.
        extractor: the network.
        names: the metrics that will be taken; none is needed.
        cache: folder for what is collected.
        batch_size: images read at once.
        pairwise_reference: how many images' features the metrics need.

    Raises:
        ImageSetError: it holds statistics already, or fewer than two images.
    """
    if reference.images is None or reference.gaussian:
        raise ImageSetError(
            f"{reference.path} holds statistics already; allowed with --save_reference: images."
        )
    if reference.images.num < 2:
        raise ImageSetError(f"{reference.path} holds 1 image, but 2 are needed.")
    chosen = [METRICS[name] for name in {*names, "fid"}]
    collected = _collect_reference(
        reference, extractor, chosen, cache, batch_size, pairwise_reference
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallSetWarning)  # the command tells
        return {name: each.gaussian() for name, each in collected.accumulator.items()}


def _collect_reference(
    reference: Reference,
    extractor: Extractor,
    chosen: Sequence[Metric],
    cache: Path,
    batch_size: int,
    pairwise_reference: int,
) -> Collected:
    """What the metrics need of the reference's images; nothing where it has none or none is due."""
    wanted = {metric.reference_kept for metric in chosen}
    keep = ["pool"] if wanted & {"some", "all"} else []
    due = {output for metric in chosen for output in metric.statistics} - reference.gaussian.keys()
    if reference.images is None or not (due or keep):
        return Collected()
    # All statistics at once: they are cheap, and other metrics may be asked for later.
    compared = {output for metric in METRICS.values() for output in metric.statistics}
    statistics = sorted(compared & OUTPUTS[extractor.name] - reference.gaussian.keys())
    max_kept = None if "all" in wanted else pairwise_reference
    arguments = reference.images, extractor, statistics, keep
    folder = cache / f"reference-{key(*arguments, max_kept)}"
    return collect(*arguments, folder, max_kept, batch_size, "reference")


def _compute(names: Sequence[str], sets: Sets, *, known: bool) -> dict[str, dict[str, Any]]:
    """The metrics by name; notes go to the sets. Stored statistics may be known to fit."""
    if sets.stored and not known:
        sets.notes.append(
            "The reference's statistics were read from a file, which does not say by which network "
            "and resizing they were made: they must be those of the samples."
        )
    try:
        values = {name: METRICS[name].compute(sets) for name in names}
    except ValueError as error:
        raise ImageSetError(str(error)) from error  # too few images
    _check_finite(values)
    return values


def _check_finite(values: dict[str, dict[str, Any]]) -> None:
    """Features or stored statistics may be finite and yet too large."""
    for metric, entries in values.items():
        for name, value in entries.items():
            numbers = value if isinstance(value, list) else [value]
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise ImageSetError(
                    f"{metric} ({name}) is not finite: the features, or the reference's stored "
                    "statistics, are beyond what can be computed with; they are damaged or of "
                    "another kind."
                )
