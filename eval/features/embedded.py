"""Features without downloads: classifiers trained here on the data sets that the package brings.

They tell samples of one embedded data set from another; their numbers are no FID.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from dit_moe.data import digits, patches

from ..image_set import ImageSetError


@dataclass(frozen=True)
class Embedded:
    """A data set, how its images are shown to a classifier, and how that is trained."""

    load: Callable[[Any], tuple[np.ndarray, np.ndarray]]
    image_size: int
    inputs: str
    describe: Callable[[np.ndarray], np.ndarray]
    """uint8 [N, H, W, C] to float64 [N, P]."""
    settings: Mapping[str, Any]
    """Arguments of scikit-learn's MLPClassifier."""
    classes: tuple[str, ...] = ()
    """Names; empty where they are the numbers."""

    def fit(self) -> MLPClassifier:
        """The classifier, trained on the training split."""
        image_NxHxWxC, label_N = self.load("train")
        return fit_network(self.describe(image_NxHxWxC), label_N, self.settings)


def fit_network(
    x_NxP: np.ndarray, label_N: np.ndarray, settings: Mapping[str, Any]
) -> MLPClassifier:
    """A classifier whose second hidden layer has 64 units, trained on numbers [N, P].

    Args:
        x_NxP: real.
        label_N: integers [N].
        settings: arguments of scikit-learn's MLPClassifier.
    """
    network = MLPClassifier((128, 64), random_state=0, **settings)
    # The matrices are small: more threads are slower, far slower on a busy machine, and the
    # order of their sums would depend on the number of cores.
    with threadpool_limits(limits=1):
        return network.fit(x_NxP, label_N)


def grey(image_NxHxWxC: np.ndarray) -> np.ndarray:
    """Grey values float64 [N, H*W] from 0 to 1 of uint8 images of any C."""
    return image_NxHxWxC.mean(-1).reshape(len(image_NxHxWxC), -1) / 255


def _blocks(image_NxHxWxC: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of red, green and blue in 4x4 blocks: colour and texture."""
    n, height, width, channels = image_NxHxWxC.shape
    x = image_NxHxWxC.repeat(3 // channels, axis=3) / 255
    x = x.reshape(n, height // 4, 4, width // 4, 4, 3)
    return np.concatenate([x.mean((2, 4)), x.std((2, 4))], -1).reshape(n, -1)


EMBEDDED = {
    "digits": Embedded(digits.load, digits.IMAGE_SIZE, "grey values", grey, {"max_iter": 500}),
    "patches": Embedded(
        patches.load,
        patches.IMAGE_SIZE,
        "mean and standard deviation of each colour in 4x4 blocks",
        _blocks,
        {"early_stopping": True},
        patches.CLASSES,
    ),
}


def penultimate(network: MLPClassifier, x_NxP: np.ndarray) -> np.ndarray:
    """The last hidden layer, float64 [N, D]."""
    h_NxD = x_NxP
    for weight, bias in zip(network.coefs_[:-1], network.intercepts_[:-1], strict=True):
        h_NxD = np.maximum(h_NxD @ weight + bias, 0)
    return h_NxD


class EmbeddedExtractor:
    """A classifier of an embedded data set as a feature network; trained when first used.

    Deterministic on a given machine; other linear algebra libraries may change the last digits.
    """

    def __init__(self, name: str):
        """Takes a key of `EMBEDDED`."""
        self.name = name
        self._data = EMBEDDED[name]

    @property
    def description(self) -> dict[str, Any]:
        """What was trained on what, and the SHA-256 of the trained weights."""
        side = self._data.image_size
        digest = hashlib.sha256()
        for x in (*self._network.coefs_, *self._network.intercepts_):
            digest.update(np.ascontiguousarray(x).data)
        return {
            "network": f"scikit-learn MLPClassifier trained on the train split of the {self.name}",
            "weights_sha256": digest.hexdigest(),
            "inputs": self._data.inputs,
            "pool": "last hidden layer (64 ReLU)",
            "resize": f"none; images are {side}x{side}",
        }

    @functools.cached_property
    def _network(self) -> MLPClassifier:
        return self._data.fit()

    def __call__(self, image_NxHxWxC: np.ndarray, /) -> dict[str, np.ndarray]:
        """float32 "pool" [N, 64] and "logits" [N, classes] of uint8 images, C of 1 or 3.

        Raises:
            ImageSetError: the images have another size than the data set's.
        """
        side = self._data.image_size
        if image_NxHxWxC.shape[1:3] != (side, side):
            raise ImageSetError(
                f"The images have shape {image_NxHxWxC.shape}, but features {self.name!r} need "
                f"[N, {side}, {side}, 1 or 3]."
            )
        x_NxP = self._data.describe(image_NxHxWxC)
        h_NxD = penultimate(self._network, x_NxP)
        logit_NxK = h_NxD @ self._network.coefs_[-1] + self._network.intercepts_[-1]
        return {"pool": h_NxD.astype(np.float32), "logits": logit_NxK.astype(np.float32)}
