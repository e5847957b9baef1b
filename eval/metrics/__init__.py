"""Distances between sets of features, in float64. They take arrays and know nothing of images."""

from .frechet import (
    FrechetInfinity,
    frechet_distance,
    frechet_distance_of_sets,
    frechet_infinity,
)
from .inception_score import InceptionScore, inception_score
from .kernel import KernelDistance, kernel_distance
from .manifold import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    precision_recall,
)
from .neighbours import nearest_distances

__all__ = [
    "DensityCoverage",
    "FrechetInfinity",
    "InceptionScore",
    "KernelDistance",
    "PrecisionRecall",
    "density_coverage",
    "frechet_distance",
    "frechet_distance_of_sets",
    "frechet_infinity",
    "inception_score",
    "kernel_distance",
    "nearest_distances",
    "precision_recall",
]
