"""Features of images, for distances between sets of images."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

OUTPUTS = {
    "inception": {"pool", "spatial", "logits"},
    "dinov2": {"pool"},
    "digits": {"pool", "logits"},
    "patches": {"pool", "logits"},
}
"""What every feature network yields, by its name; known without making it ready."""


class Extractor(Protocol):
    """A feature network."""

    @property
    def name(self) -> str:
        """Short: "inception", "dinov2"."""
        ...

    @property
    def description(self) -> dict[str, Any]:
        """Everything that its numbers depend on, ready for JSON."""
        ...

    def __call__(self, image_NxHxWxC: np.ndarray, /) -> dict[str, np.ndarray]:
        """float32 [N, D] by output, such as "pool", of uint8 images, C of 1 or 3."""
        ...


def load_extractor(name: str, weights: str | Path | None, batch_size: int = 64) -> Extractor:
    """Makes a feature network ready. See `extractor.Extractor` for its use.

    Args:
        name: "inception" (FID, sFID, Inception Score) or "dinov2" (FD-DINOv2), with published
            weights; "digits" or "patches", small classifiers that are trained here.
        weights: the `.pth` or `.safetensors` file; `python -m eval.features.weights` tells where it
            is published. None for "digits" and "patches".
        batch_size: images per pass over all local devices; rounded up to a multiple of their
            number.

    Raises:
        WeightsError: the file is missing, damaged, or not of this network; or it is needed and not
            given, or given and not needed.
        ValueError: the name or the batch size is not allowed.
    """
    # JAX and scikit-learn start here: a command's --help need not wait.
    from ..features.weights import WeightsError  # else `weights` would be the module
    from . import embedded, extractor

    if name in embedded.EMBEDDED:
        if weights is not None:
            raise WeightsError(f"--weights is {weights}, but features {name!r} need none.")
        return embedded.EmbeddedExtractor(name)
    if weights is None:
        raise WeightsError(
            f"--weights is missing; features {name!r} need the published weights, and python -m "
            "eval.features.weights tells where they are."
        )
    return extractor.load(name, Path(weights), batch_size)
