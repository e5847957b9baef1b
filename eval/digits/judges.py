"""Two classifiers of handwritten digits, trained on the real training split, that judge images.

One yields features, the other says which digit an image shows. They are of different kinds so
that an image which fools one is not thereby right for the other. Both are deterministic on a
given machine; other linear algebra libraries may change the features in their last digits.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from dit_moe.data import digits

from ..features.embedded import EMBEDDED, penultimate
from ..features.embedded import grey as pixels

FEATURES = "second hidden layer (64 ReLU) of a scikit-learn MLPClassifier 64-128-64-10"
CLASSIFIER = "scikit-learn SVC, RBF kernel, C=10"


@dataclass(frozen=True)
class Judges:
    """The trained pair; make it with `train`."""

    network: MLPClassifier
    machine: SVC

    def features(self, x_NxP: np.ndarray) -> np.ndarray:
        """Penultimate activations, float64 [N, 64], of `pixels`."""
        return penultimate(self.network, x_NxP)

    def classify(self, x_NxP: np.ndarray) -> np.ndarray:
        """The digit, int32 [N], that each row of `pixels` shows."""
        return self.machine.predict(x_NxP)


def train() -> Judges:
    """Trains both on the 1,397 real training images; about a second."""
    image_NxHxWxC, label_N = digits.load("train")
    with threadpool_limits(limits=1):
        machine = SVC(C=10).fit(pixels(image_NxHxWxC), label_N)
    return Judges(EMBEDDED["digits"].fit(), machine)
