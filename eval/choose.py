"""Which metrics are taken, and whether the sets allow it, before any feature is made."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dit_moe.config.sizes import parse_size, size_text

from .features import OUTPUTS, Extractor
from .image_set import ImageSet, ImageSetError
from .labels import Labels, shared_classes
from .metric_table import METRICS, Metric
from .references import Reference

_USUAL = ("fid", "sfid", "is", "pr")  # ADM's


def _reason_against(name: str, outputs: set[str], reference: Reference) -> str | None:
    """Why a metric cannot be taken, as the end of a sentence."""
    metric = METRICS[name]
    lacking = {*metric.statistics, *metric.keep} - outputs
    if lacking:
        return f"needs the features' output {min(lacking)!r}, which they lack"
    if reference.images is None:
        if metric.reference_kept:
            return "needs images, but the reference holds statistics only"
        lacking = set(metric.statistics) - reference.gaussian.keys()
        if lacking:
            return f"needs the reference's statistics of {min(lacking)!r}, which it lacks"
    return None


def choose(names: Sequence[str] | None, features: str, reference: Reference) -> list[str]:
    """The metrics that will be taken; None means ADM's as far as features and reference allow.

    Raises:
        ImageSetError: one is unknown or impossible; the message says why.
    """
    outputs = OUTPUTS[features]
    if names is None:
        return [n for n in _USUAL if not _reason_against(n, outputs, reference)]
    if not names:
        raise ImageSetError(f"--metrics is empty; allowed: {', '.join(METRICS)}.")
    for name in names:
        if name not in METRICS:
            raise ImageSetError(f"--metrics holds {name!r}; allowed: {', '.join(METRICS)}.")
        reason = _reason_against(name, outputs, reference)
        if reason:
            raise ImageSetError(f"--metrics holds {name!r}, which {reason}.")
    return list(dict.fromkeys(names))


def check(
    samples: ImageSet, reference: Reference, extractor: Extractor, chosen: Sequence[Metric]
) -> None:
    """Whether the sets fit each other, the network and the metrics; runs one image at most.

    Raises:
        ImageSetError: they do not.
    """
    _check_images(samples, reference.images, chosen, bool(reference.gaussian))
    _check_widths(samples, reference, extractor)


def about(extractor: Extractor) -> dict[str, Any]:
    """Which features these are, ready for JSON."""
    return {"name": extractor.name, **extractor.description}


def is_made_by(made_by: Mapping[str, Any], extractor: Extractor) -> bool:
    """Whether statistics are of these features (`Reference.made_by`)."""
    return made_by["features"] == json.loads(json.dumps(about(extractor)))


def _check_images(
    samples: ImageSet, images: ImageSet | None, chosen: Sequence[Metric], has_statistics: bool
) -> None:
    if samples.num < 2:
        raise ImageSetError(f"{samples.path} holds {samples.num} image, but 2 are needed.")
    if images is None:
        return
    if images.num < 2 and not has_statistics:
        raise ImageSetError(f"{images.path} holds {images.num} image, but 2 are needed.")
    if samples.shape[:2] != images.shape[:2]:
        raise ImageSetError(
            f"{samples.path} holds images of {samples.shape[0]}x{samples.shape[1]}, but "
            f"{images.path} of {images.shape[0]}x{images.shape[1]}; name a rule for both, such as "
            f"--resize adm:{size_text(parse_size(images.shape[:2]))}."
        )
    if any(metric.labels for metric in chosen):
        _check_classes(samples, images)


def _check_classes(samples: ImageSet, images: ImageSet) -> None:
    """Whether both tell which of their classes are the same."""
    for image_set in (samples, images):
        if image_set.labels is None:
            raise ImageSetError(f"{image_set.path} has no labels, which per_class needs.")
    assert samples.labels is not None
    assert images.labels is not None
    shared = shared_classes(samples.labels, images.labels)
    if shared is None:
        named, other = (samples, images) if samples.labels.names else (images, samples)
        raise ImageSetError(
            f"per_class cannot tell which classes are the same: those of {named.path} have names, "
            f"those of {other.path} numbers; call class folders by these numbers, or add "
            "class_names, the text of every label in order, to an .npz."
        )
    if not shared:
        raise ImageSetError(
            f"per_class finds no class that both sets have: {samples.path} has "
            f"{_some_classes(samples.labels)}, {images.path} has {_some_classes(images.labels)}; "
            "call the same classes by the same names or numbers."
        )


def _some_classes(labels: Labels) -> str:
    """The first few, for a message."""
    present = np.unique(labels.number)
    shown = [labels.names.get(number, str(number)) for number in present[:3].tolist()]
    return ", ".join(shown) + (", ..." if len(present) > 3 else "")


def _check_widths(samples: ImageSet, reference: Reference, extractor: Extractor) -> None:
    """Compares stored statistics with the features of one black image."""
    if not reference.gaussian:
        return
    if reference.made_by is not None and not is_made_by(reference.made_by, extractor):
        raise ImageSetError(
            f"{reference.path} holds statistics of other features than {extractor.name!r} with "
            f"these weights and settings: {json.dumps(reference.made_by['features'])}; give the "
            "reference's images, or statistics of the same features."
        )
    outputs = extractor(np.zeros((1, *samples.shape), np.uint8))
    for output, gaussian in reference.gaussian.items():
        if output in outputs and outputs[output].shape[1] != len(gaussian.mean):
            raise ImageSetError(
                f"{reference.path} holds statistics of {len(gaussian.mean)} features, but "
                f"{extractor.name!r} has {outputs[output].shape[1]} ({output}): they are of "
                "another network."
            )
