"""What samples are compared with: images, or stored statistics of their features."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dit_moe.storage import files

from . import npz_images
from .image_set import ImageSet, ImageSetError
from .image_sets import open_set
from .statistics import Gaussian

_PICKLES = (".pickle", ".pkl", ".pt", ".pth")
# Of pytorch-fid, EDM and ADM (pooled features), and of ADM alone (spatial features).
_STORED = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}

_BEYOND = 1e100  # squares and sums of what is below are finite
_ROUNDING = 1e-6  # of eigenvalues, relative to the largest; float32 statistics are within it


@dataclass(frozen=True)
class Reference:
    """Images, stored statistics, or, as in ADM's reference batches, both."""

    path: str
    sha256: str
    images: ImageSet | None
    gaussian: dict[str, Gaussian]
    """By output of the feature network, where stored. They count before those of the images: ADM
    stores statistics of the whole data set beside 10,000 images."""


def open_reference(path: str | Path, split: str = "train") -> Reference:
    """Opens images (see `image_sets.open_set`) or an `.npz` of statistics.

    Statistics are `mu` [D] and `sigma` [D, D], as pytorch-fid, EDM and ADM write them, and maybe
    `mu_s` and `sigma_s` of sFID and images `arr_0`, as in ADM's reference batches.

    Raises:
        ImageSetError: missing, damaged, of a wrong shape, or a pickle.
    """
    path = Path(path)
    if path.suffix.lower() in _PICKLES:
        raise ImageSetError(
            f"{path} is a pickle, which is refused because reading it can execute code; where you "
            "trust it, load it and store one network's statistics by numpy.savez('ref.npz', "
            "mu=stats['fid']['mu'], sigma=stats['fid']['sigma'])."
        )
    if not (path.is_file() and zipfile.is_zipfile(path) and npz_images.is_npz(path)):
        images = open_set(path, split)
        return Reference(images.path, images.sha256, images, {})
    arrays = npz_images.read_arrays(path, [name for pair in _STORED.values() for name in pair])
    gaussians = {
        output: _gaussian(path, arrays, mean, covariance)
        for output, (mean, covariance) in _STORED.items()
        if mean in arrays or covariance in arrays
    }
    images = npz_images.open_npz(path) if npz_images.has_images(path) or not gaussians else None
    sha256 = images.sha256 if images is not None else files.sha256(path)
    return Reference(str(path), sha256, images, gaussians)


def _gaussian(path: Path, arrays: dict[str, np.ndarray], mean: str, covariance: str) -> Gaussian:
    for name in (mean, covariance):
        if name not in arrays:
            raise ImageSetError(f"{path} has statistics without {name}.")
        if not np.issubdtype(arrays[name].dtype, np.floating):
            raise ImageSetError(f"{path}: {name} is {arrays[name].dtype}, but must be real.")
        if not (np.abs(arrays[name].astype(np.float64)) < _BEYOND).all():  # nor is NaN
            raise ImageSetError(
                f"{path}: {name} holds values that are not finite, or beyond any feature's "
                f"({_BEYOND:g})."
            )
    mean_D = arrays[mean].astype(np.float64)
    covariance_DxD = arrays[covariance].astype(np.float64)
    if mean_D.ndim != 1 or not len(mean_D) or covariance_DxD.shape != (len(mean_D), len(mean_D)):
        raise ImageSetError(
            f"{path}: {mean} and {covariance} have shapes {mean_D.shape} and "
            f"{covariance_DxD.shape}, but must be (D,) and (D, D) with D >= 1."
        )
    if not np.allclose(covariance_DxD, covariance_DxD.T, rtol=1e-5, atol=1e-8):
        raise ImageSetError(f"{path}: {covariance} is not symmetric, so it is no covariance.")
    covariance_DxD = (covariance_DxD + covariance_DxD.T) / 2
    value_D = np.linalg.eigvalsh(covariance_DxD)
    if value_D.min() < -_ROUNDING * np.abs(value_D).max():
        raise ImageSetError(
            f"{path}: {covariance} has the eigenvalue {value_D.min():.3g}, but a covariance has "
            f"none below 0 (its largest is {value_D.max():.3g})."
        )
    return Gaussian(mean_D, covariance_DxD)
