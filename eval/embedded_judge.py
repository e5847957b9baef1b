"""Judges samples of an embedded data set: distance from its pictures, and classes recognised."""

import functools
import warnings

import numpy as np
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from .features.embedded import EMBEDDED, EmbeddedExtractor
from .metrics import frechet_distance
from .statistics import SmallSetWarning, fit_gaussian

_CLASSIFIER_IMAGES = 5000


class EmbeddedJudge:
    """Judges samples of one of `features.embedded.EMBEDDED`."""

    def __init__(self, dataset: str):
        self._data = EMBEDDED[dataset]
        self.load = self._data.load
        self.extractor = EmbeddedExtractor(dataset)
        image_NxHxWxC, _ = self.load("train")
        self.reference = fit_gaussian(self.extractor(image_NxHxWxC)["pool"])

    def __call__(self, image_NxHxWxC: np.ndarray, label_N: np.ndarray) -> dict[str, float]:
        """Both numbers of uint8 images and the labels that were asked for.

        Returns:
          frechet: `distance`. recognised: the share of images that show the class of their label,
          by another kind of classifier than the network that yields the features.
        """
        with threadpool_limits(limits=1):
            right_N = self._classifier.predict(self._data.describe(image_NxHxWxC)) == label_N
        return {"frechet": self.distance(image_NxHxWxC), "recognised": float(right_N.mean())}

    def distance(self, image_NxHxWxC: np.ndarray) -> float:
        """The Fréchet distance of uint8 images from the training images."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SmallSetWarning)
            features = fit_gaussian(self.extractor(image_NxHxWxC)["pool"])
        return frechet_distance(features, self.reference)

    def heldout(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Held-out images and labels at random: they are stored class by class."""
        image_NxHxWxC, label_N = self.load("heldout")
        rows = np.random.default_rng(0).permutation(len(label_N))[:count]
        return image_NxHxWxC[rows], label_N[rows]

    @functools.cached_property
    def _classifier(self) -> SVC:
        image_NxHxWxC, label_N = self.load("train")
        rows = np.random.default_rng(0).permutation(len(label_N))[:_CLASSIFIER_IMAGES]
        with threadpool_limits(limits=1):
            return SVC(C=10).fit(self._data.describe(image_NxHxWxC[rows]), label_N[rows])
