"""What benchmarks of quality share: distance from the training pictures of an embedded data set."""

import warnings

import numpy as np

from eval.features.embedded import EMBEDDED, EmbeddedExtractor
from eval.metrics import frechet_distance
from eval.statistics import SmallSetWarning, fit_gaussian


class EmbeddedJudge:
    """Judges samples of `eval.features.embedded`'s digits or patches."""

    def __init__(self, dataset: str):
        self.load = EMBEDDED[dataset].load
        self.extractor = EmbeddedExtractor(dataset)
        image_NxHxWxC, _ = self.load("train")
        self.reference = fit_gaussian(self.extractor(image_NxHxWxC)["pool"])

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
