"""What samples are compared with: images, or stored statistics of their features."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dit_moe.storage import files

from . import npz_images
from .image_set import ImageSet, ImageSetError
from .image_sets import open_set
from .resize import Resize, resized
from .statistics import Gaussian

_PICKLES = (".pickle", ".pkl", ".pt", ".pth")
# Of pytorch-fid, EDM and ADM (pooled features), and of ADM alone (spatial features).
_STORED = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
_MADE_BY = "made_by"  # ours, which the others leave alone

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
    made_by: Mapping[str, Any] | None = None
    """What `write_reference` was told of the statistics; None where nothing says how they were
    made."""


def open_reference(
    path: str | Path, split: str = "train", resize: Resize | None = None
) -> Reference:
    """Opens images (see `image_sets.open_set`) or an `.npz` of statistics.

    Statistics are `mu` [D] and `sigma` [D, D], as pytorch-fid, EDM and ADM write them, and maybe
    `mu_s` and `sigma_s` of sFID and images `arr_0`, as in ADM's reference batches. What
    `write_reference` adds says by which network they were made.

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
        images = open_set(path, split, resize)
        return Reference(images.path, images.sha256, images, {})
    names = [_MADE_BY, *(name for pair in _STORED.values() for name in pair)]
    arrays = npz_images.read_arrays(path, names)
    gaussians = {
        output: _gaussian(path, arrays, mean, covariance)
        for output, (mean, covariance) in _STORED.items()
        if mean in arrays or covariance in arrays
    }
    has_images = npz_images.has_images(path) or not gaussians
    images = resized(npz_images.open_npz(path), resize) if has_images else None
    sha256 = images.sha256 if images is not None else files.sha256(path)
    made_by = _made_by(path, arrays[_MADE_BY]) if _MADE_BY in arrays else None
    return Reference(str(path), sha256, images, gaussians, made_by)


def write_reference(
    path: Path, gaussian: Mapping[str, Gaussian], made_by: Mapping[str, Any]
) -> None:
    """Writes statistics that pytorch-fid, ADM's evaluator and `open_reference` read.

    `mu` and `sigma` are those of pooled features, `mu_s` and `sigma_s` those of spatial ones where
    they are given, float64; `made_by` is the JSON of what they were made of.

    Args:
        path: ends in `.npz`.
        gaussian: by output of the feature network.
        made_by: "features" (the network's name and description), "images" and "num", ready for
            JSON.

    Raises:
        OSError: it cannot be written.
    """
    arrays: dict[str, Any] = {_MADE_BY: np.array(json.dumps(made_by, sort_keys=True))}
    for output, (mean, covariance) in _STORED.items():
        if output in gaussian:
            arrays |= {mean: gaussian[output].mean, covariance: gaussian[output].covariance}
    with files.atomic(path) as temporary:
        np.savez(temporary, **arrays)


def _made_by(path: Path, text: np.ndarray) -> Mapping[str, Any]:
    try:
        made_by = json.loads(text.item()) if text.dtype.kind == "U" and text.size == 1 else None
        if isinstance(made_by, dict) and isinstance(made_by["features"], dict):
            return made_by
    except (KeyError, RecursionError, ValueError):
        pass
    raise ImageSetError(
        f"{path}: {_MADE_BY} must be what eval.fid --save_reference writes: JSON with the features."
    )


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
