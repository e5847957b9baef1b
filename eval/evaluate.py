"""Judges a set of images by the usual metrics on the features of a network."""

import importlib.metadata
import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import metrics as m
from .collect import Collected, Extractor, collect, kept_rows, key
from .image_sets import ImageSet, ImageSetError
from .labels import Labels, shared_classes
from .references import Reference
from .statistics import Gaussian, SmallSetWarning

PAIRWISE_REFERENCE = 10_000  # as in ADM's reference batches
_FEW = 2048
_SPLIT_SIZE = 5000  # of the Inception Score


@dataclass
class _Sets:
    """All that a metric may look at. Labels and features are there if it asked for them."""

    samples: Collected
    reference: Collected
    stored: dict[str, Gaussian]
    sample_labels: Labels | None
    reference_labels: Labels | None
    pairwise_reference: int = PAIRWISE_REFERENCE
    notes: list[str] = field(default_factory=list)
    _made: dict[str, Gaussian] = field(default_factory=dict)

    def gaussian(self, of: str, output: str) -> Gaussian:
        """Of the "samples" or the "reference"; made once, as its root is costly."""
        if of == "reference" and output in self.stored:
            return self.stored[output]
        name = f"{of}/{output}"
        if name not in self._made:
            collected = self.samples if of == "samples" else self.reference
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SmallSetWarning)  # `_frechet` notes it
                self._made[name] = collected.accumulator[output].gaussian()
        return self._made[name]


@dataclass(frozen=True)
class Metric:
    """One entry of `METRICS`."""

    compute: Callable[[_Sets], dict[str, Any]]
    help: str
    rows: dict[str, str]
    """Lines of the table: entry of the result -> its title, where {FD} is the distance's name."""
    statistics: tuple[str, ...] = ()
    """Outputs whose Gaussians are compared."""
    keep: tuple[str, ...] = ()
    """Outputs whose features are kept, of all samples."""
    reference_kept: str = ""
    """Whose pooled features are kept of the reference: "", "some" or "all"."""
    labels: bool = False


def _frechet(sets: _Sets, output: str) -> dict[str, Any]:
    a, b = sets.gaussian("samples", output), sets.gaussian("reference", output)
    width = len(a.mean)
    counts = {"samples": sets.samples.num}
    if output not in sets.stored:
        counts["reference images"] = sets.reference.num
    for what, num in counts.items():
        if num <= width or num < _FEW:
            sets.notes.append(
                f"{num:,} {what} are too few for {width:,} features ({output}): the Fréchet "
                "distance is biased up; published ones use 50,000."
            )
    return {"value": m.frechet_distance(a, b), "features": output}


def _inception_score(sets: _Sets) -> dict[str, Any]:
    split_size = _SPLIT_SIZE
    logit_NxK = sets.samples.features["logits"]
    order = "as stored"
    if _is_by_class(sets.sample_labels) and len(logit_NxK) > split_size:
        order = "shuffled, seed 0"
        logit_NxK = np.random.RandomState(0).permutation(logit_NxK)
        sets.notes.append(
            "The samples are stored class by class, so that consecutive splits of the Inception "
            "Score would see few classes each: they were shuffled for it (seed 0)."
        )
    score = m.inception_score(logit_NxK, split_size)
    if len(logit_NxK) % split_size:
        sets.notes.append(
            f"The last split of the Inception Score has {len(logit_NxK) % split_size:,} images, "
            f"not {split_size:,}; small splits lower it."
        )
    return {"value": score.mean, "std": score.std, "split_size": split_size, "order": order}


def _is_by_class(labels: Labels | None) -> bool:
    """Whether images of several classes are stored one class after the other."""
    if labels is None:
        return False
    num_runs = 1 + int(np.count_nonzero(np.diff(labels.number)))
    return num_runs > 1 and num_runs == len(np.unique(labels.number))


def _precision_recall(sets: _Sets) -> dict[str, Any]:
    k = 3
    return m.precision_recall(*_pairwise(sets), k)._asdict() | {"k": k}


def _density_coverage(sets: _Sets) -> dict[str, Any]:
    k = 5
    return m.density_coverage(*_pairwise(sets), k)._asdict() | {"k": k}


def _kernel_distance(sets: _Sets) -> dict[str, Any]:
    seed = 2020
    result = m.kernel_distance(*_pairwise(sets), seed=seed)
    return {
        "value": result.mean,
        "std": result.std,
        "num_subsets": result.num_subsets,
        "subset_size": result.subset_size,
        "kernel": "(x . y / D + 1)^3",
        "seed": seed,
    }


def _frechet_infinity(sets: _Sets) -> dict[str, Any]:
    seed = 0
    f_NxD = sets.samples.features["pool"]
    result = m.frechet_infinity(f_NxD, sets.gaussian("reference", "pool"), seed=seed)
    if result.size[0] <= f_NxD.shape[1]:
        sets.notes.append(
            f"The extrapolation to infinitely many samples starts at {result.size[0]:,} images in "
            f"{f_NxD.shape[1]:,} dimensions, where the bias is not linear in 1 / N."
        )
    return {
        "value": result.value,
        "slope": result.slope,
        "sizes": result.size,
        "distances": result.distance,
        "seed": seed,
    }


def _per_class(sets: _Sets) -> dict[str, Any]:
    f_NxD, real_MxD = _pool(sets)
    labels_N, labels_M = sets.sample_labels, sets.reference_labels
    assert labels_N is not None
    assert labels_M is not None
    shared = shared_classes(labels_N, labels_M) or {}
    distances: dict[str, float] = {}
    for name, (i, j) in shared.items():
        f_KxD, real_KxD = f_NxD[labels_N.number == i], real_MxD[labels_M.number == j]
        if min(len(f_KxD), len(real_KxD)) >= 2:
            distances[name] = m.frechet_distance_of_sets(f_KxD, real_KxD)
    if not distances:
        raise ImageSetError(
            "per_class needs a class with 2 images among the samples and in the reference."
        )
    for what, labels in (("samples", labels_N), ("reference", labels_M)):
        if num_others := len(np.unique(labels.number)) - len(distances):
            sets.notes.append(
                f"per_class leaves {num_others:,} classes of the {what} out, which have no 2 "
                "images in both sets."
            )
    sets.notes.append(
        "Fréchet distances of single classes are biased up by their few images: compare them only "
        "with those of as many images."
    )
    return {
        "mean": float(np.mean(list(distances.values()))),
        "num_classes": len(distances),
        "by_class": distances,
    }


def _nearest(sets: _Sets) -> dict[str, Any]:
    distance_N, index_N = m.nearest_distances(*_pool(sets))
    order_N = np.argsort(distance_N, kind="stable")[:20]
    return {
        "smallest": float(distance_N[order_N[0]]),
        "median": float(np.median(distance_N)),
        "num_exact": int((distance_N == 0).sum()),
        "closest": [
            {"sample": int(i), "reference": int(index_N[i]), "distance": float(distance_N[i])}
            for i in order_N
        ],
    }


def _pool(sets: _Sets) -> tuple[np.ndarray, np.ndarray]:
    return sets.samples.features["pool"], sets.reference.features["pool"]


def _pairwise(sets: _Sets) -> tuple[np.ndarray, np.ndarray]:
    """As `_pool`, with the limited reference also where another metric needs all of it."""
    f_NxD, real_MxD = _pool(sets)
    return f_NxD, real_MxD[kept_rows(len(real_MxD), sets.pairwise_reference)]


METRICS = {
    "fid": Metric(
        lambda sets: _frechet(sets, "pool"),
        "Fréchet distance of pooled features",
        {"value": "{FD}"},
        statistics=("pool",),
    ),
    "sfid": Metric(
        lambda sets: _frechet(sets, "spatial"),
        "Fréchet distance of spatial Inception features",
        {"value": "sFID"},
        statistics=("spatial",),
    ),
    "is": Metric(
        _inception_score,
        "Inception Score, mean over splits of 5,000",
        {"value": "Inception Score"},
        keep=("logits",),
    ),
    "pr": Metric(
        _precision_recall,
        "precision and recall, k = 3",
        {"precision": "precision", "recall": "recall"},
        keep=("pool",),
        reference_kept="some",
    ),
    "dc": Metric(
        _density_coverage,
        "density and coverage, k = 5",
        {"density": "density", "coverage": "coverage"},
        keep=("pool",),
        reference_kept="some",
    ),
    "kid": Metric(
        _kernel_distance,
        "kernel distance, mean over 100 subsets of 1,000",
        {"value": "kernel distance (KID)", "std": "  its spread over subsets"},
        keep=("pool",),
        reference_kept="some",
    ),
    "fid_infinity": Metric(
        _frechet_infinity,
        "fid extrapolated to infinitely many samples",
        {"value": "{FD} at infinity"},
        statistics=("pool",),
        keep=("pool",),
    ),
    "per_class": Metric(
        _per_class,
        "fid of every class, where both sets have labels",
        {"mean": "{FD} of a class, mean"},
        keep=("pool",),
        reference_kept="all",
        labels=True,
    ),
    "nearest": Metric(
        _nearest,
        "distance of samples to the nearest reference image, to find copies",
        {
            "smallest": "nearest reference, smallest",
            "median": "nearest reference, median",
            "num_exact": "exact copies of the reference",
        },
        keep=("pool",),
        reference_kept="all",
    ),
}
_USUAL = ("fid", "sfid", "is", "pr")  # ADM's
_PACKAGES = ("numpy", "scipy", "scikit-learn", "jax")
_OUTPUTS_OF = {
    "inception": {"pool", "spatial", "logits"},
    "dinov2": {"pool"},
    "digits": {"pool", "logits"},
    "patches": {"pool", "logits"},
}


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
    outputs = _OUTPUTS_OF[features]
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
    _check(samples, reference, chosen)
    _check_widths(samples, reference, extractor)

    statistics = sorted({output for metric in chosen for output in metric.statistics})
    keep = sorted({output for metric in chosen for output in metric.keep})
    folder = cache / f"samples-{key(samples, extractor, statistics, keep)}"
    of_reference, max_kept = Collected(), None
    wanted = {metric.reference_kept for metric in chosen}
    if images is not None:
        max_kept = None if "all" in wanted else pairwise_reference
        reference_keep = ["pool"] if wanted & {"some", "all"} else []
        missing = [output for output in statistics if output not in reference.gaussian]
        if missing or reference_keep:
            # All statistics at once: they are cheap, and other metrics may be asked for later.
            compared = {output for metric in METRICS.values() for output in metric.statistics}
            compared &= _OUTPUTS_OF[extractor.name] - reference.gaussian.keys()
            missing = sorted(compared)
            arguments = images, extractor, missing, reference_keep
            of_reference = collect(
                *arguments,
                cache / f"reference-{key(*arguments, max_kept)}",
                max_kept,
                batch_size,
                "reference",
            )
    of_samples = collect(samples, extractor, statistics, keep, folder, None, batch_size, "samples")

    sets = _Sets(of_samples, of_reference, reference.gaussian, None, None, pairwise_reference)
    needs_labels = any(metric.labels for metric in chosen)
    if needs_labels or "is" in names:
        sets.sample_labels = samples.labels
    if needs_labels and images is not None:
        sets.reference_labels = images.labels
    if reference.gaussian:
        sets.notes.append(
            "The reference's statistics were read from a file, which does not say by which network "
            "and resizing they were made: they must be those of the samples."
        )
    try:
        values = {name: METRICS[name].compute(sets) for name in names}
    except ValueError as error:
        raise ImageSetError(str(error)) from error  # too few images
    _check_finite(values)
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
                min(images.num, pairwise_reference) if images and "some" in wanted else 0
            ),
        },
        "features": {"name": extractor.name, **extractor.description},
        "notes": list(dict.fromkeys(sets.notes)),
        "versions": {p: importlib.metadata.version(p) for p in _PACKAGES},
    }


def _check_finite(values: dict[str, dict[str, Any]]) -> None:
    """Features or stored statistics may be finite and yet too large; raises ImageSetError."""
    for metric, entries in values.items():
        for name, value in entries.items():
            numbers = value if isinstance(value, list) else [value]
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise ImageSetError(
                    f"{metric} ({name}) is not finite: the features, or the reference's stored "
                    "statistics, are beyond what can be computed with; they are damaged or of "
                    "another kind."
                )


def _check(samples: ImageSet, reference: Reference, chosen: Sequence[Metric]) -> None:
    """What can be known before any feature is made; raises ImageSetError."""
    images = reference.images
    if samples.num < 2:
        raise ImageSetError(f"{samples.path} holds {samples.num} image, but 2 are needed.")
    if images is None:
        return
    if images.num < 2 and not reference.gaussian:
        raise ImageSetError(f"{images.path} holds {images.num} image, but 2 are needed.")
    if samples.shape[:2] != images.shape[:2]:
        raise ImageSetError(
            f"{samples.path} holds images of {samples.shape[0]}x{samples.shape[1]}, but "
            f"{images.path} of {images.shape[0]}x{images.shape[1]}; resize one set as the other, "
            "as by python -m dit_moe.data.prepare --autoencoder none --image_size "
            f"{images.shape[0]}."
        )
    if any(metric.labels for metric in chosen):
        _check_classes(samples, images)


def _check_classes(samples: ImageSet, images: ImageSet) -> None:
    """Whether both tell which of their classes are the same; raises ImageSetError."""
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
    """Compares stored statistics with the features of one black image; raises ImageSetError."""
    if not reference.gaussian:
        return
    outputs = extractor(np.zeros((1, *samples.shape), np.uint8))
    for output, gaussian in reference.gaussian.items():
        if output in outputs and outputs[output].shape[1] != len(gaussian.mean):
            raise ImageSetError(
                f"{reference.path} holds statistics of {len(gaussian.mean)} features, but "
                f"{extractor.name!r} has {outputs[output].shape[1]} ({output}): they are of "
                "another network."
            )


def title_of(title: str, result: dict[str, Any]) -> str:
    """An entry of `Metric.rows` with the name of the result's distance: only Inception's is FID."""
    features = result["features"]["name"]
    return title.format(FD="FID" if features == "inception" else f"Fréchet distance ({features})")


def table(result: dict[str, Any]) -> str:
    """The result of `evaluate` for people: aligned lines, then the notes."""
    reference = result["reference"]
    what = f"{reference['num']:,} images" if reference["num"] else "stored statistics"
    lines = [("samples", f"{result['samples']['num']:,} images"), ("reference", what)]
    for name, values in result["metrics"].items():
        for entry, title in METRICS[name].rows.items():
            value = values[entry]
            text = f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
            lines.append((title_of(title, result), text))
    left, right = (max(len(line[i]) for line in lines) for i in range(2))
    text = [f"{title:<{left}}  {value:>{right}}" for title, value in lines]
    text.insert(2, "-" * (left + 2 + right))
    return "\n".join([*text, *([""] if result["notes"] else []), *result["notes"]])
