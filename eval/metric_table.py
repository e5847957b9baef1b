"""The table of metrics: what each needs, and how it is computed from what was collected."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from . import metrics as m
from .collect import Collected, kept_rows
from .image_set import ImageSetError
from .labels import Labels, shared_classes
from .statistics import Gaussian, SmallSetWarning

PAIRWISE_REFERENCE = 10_000  # as in ADM's reference batches
_FEW = 2048
_SPLIT_SIZE = 5000  # of the Inception Score


@dataclass
class Sets:
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
        """The Gaussian of the "samples" or the "reference"; made once, as its root is costly."""
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

    compute: Callable[[Sets], dict[str, Any]]
    help: str
    rows: dict[str, str]
    """Lines of the table: entry of the result -> its title, where {FD} is the distance's name."""
    best: Literal["lowest", "highest"] | None
    """Which number in the first of these is that of the best samples; None: no one is."""
    statistics: tuple[str, ...] = ()
    """Outputs whose Gaussians are compared."""
    keep: tuple[str, ...] = ()
    """Outputs whose features are kept, of all samples."""
    reference_kept: str = ""
    """Whose pooled features are kept of the reference: "", "some" or "all"."""
    labels: bool = False


def _frechet(sets: Sets, output: str) -> dict[str, Any]:
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


def _inception_score(sets: Sets) -> dict[str, Any]:
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


def _precision_recall(sets: Sets) -> dict[str, Any]:
    k = 3
    return m.precision_recall(*_pairwise(sets), k)._asdict() | {"k": k}


def _density_coverage(sets: Sets) -> dict[str, Any]:
    k = 5
    return m.density_coverage(*_pairwise(sets), k)._asdict() | {"k": k}


def _kernel_distance(sets: Sets) -> dict[str, Any]:
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


def _frechet_infinity(sets: Sets) -> dict[str, Any]:
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


def _per_class(sets: Sets) -> dict[str, Any]:
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


def _nearest(sets: Sets) -> dict[str, Any]:
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


def _pool(sets: Sets) -> tuple[np.ndarray, np.ndarray]:
    return sets.samples.features["pool"], sets.reference.features["pool"]


def _pairwise(sets: Sets) -> tuple[np.ndarray, np.ndarray]:
    """Those of `_pool`, with the limited reference also where another metric needs all of it."""
    f_NxD, real_MxD = _pool(sets)
    return f_NxD, real_MxD[kept_rows(len(real_MxD), sets.pairwise_reference)]


METRICS = {
    "fid": Metric(
        lambda sets: _frechet(sets, "pool"),
        "Fréchet distance of pooled features",
        {"value": "{FD}"},
        best="lowest",
        statistics=("pool",),
    ),
    "sfid": Metric(
        lambda sets: _frechet(sets, "spatial"),
        "Fréchet distance of spatial Inception features",
        {"value": "sFID"},
        best="lowest",
        statistics=("spatial",),
    ),
    "is": Metric(
        _inception_score,
        "Inception Score, mean over splits of 5,000",
        {"value": "Inception Score"},
        best="highest",
        keep=("logits",),
    ),
    "pr": Metric(
        _precision_recall,
        "precision and recall, k = 3",
        {"precision": "precision", "recall": "recall"},
        best="highest",
        keep=("pool",),
        reference_kept="some",
    ),
    "dc": Metric(
        _density_coverage,
        "density and coverage, k = 5",
        {"density": "density", "coverage": "coverage"},
        best="highest",
        keep=("pool",),
        reference_kept="some",
    ),
    "kid": Metric(
        _kernel_distance,
        "kernel distance, mean over 100 subsets of 1,000",
        {"value": "kernel distance (KID)", "std": "  its spread over subsets"},
        best="lowest",
        keep=("pool",),
        reference_kept="some",
    ),
    "fid_infinity": Metric(
        _frechet_infinity,
        "fid extrapolated to infinitely many samples",
        {"value": "{FD} at infinity"},
        best="lowest",
        statistics=("pool",),
        keep=("pool",),
    ),
    "per_class": Metric(
        _per_class,
        "fid of every class, where both sets have labels",
        {"mean": "{FD} of a class, mean"},
        best="lowest",
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
        best=None,
        keep=("pool",),
        reference_kept="all",
    ),
}
