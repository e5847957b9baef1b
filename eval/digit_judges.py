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

FEATURES = "second hidden layer (64 ReLU) of a scikit-learn MLPClassifier 64-128-64-10"
CLASSIFIER = "scikit-learn SVC, RBF kernel, C=10"


def pixels(image_NxHxWxC: np.ndarray) -> np.ndarray:
    """Grey values float64 [N, H*W] from 0 (paper) to 1 (full ink) of uint8 images of any C."""
    return image_NxHxWxC.mean(-1).reshape(len(image_NxHxWxC), -1) / 255


@dataclass(frozen=True)
class Judges:
    """The trained pair; make it with `train`."""

    network: MLPClassifier
    machine: SVC

    def features(self, x_NxP: np.ndarray) -> np.ndarray:
        """Penultimate activations, float64 [N, 64], of `pixels`."""
        h_NxD = x_NxP
        for w, b in zip(self.network.coefs_[:-1], self.network.intercepts_[:-1], strict=True):
            h_NxD = np.maximum(h_NxD @ w + b, 0)
        return h_NxD

    def classify(self, x_NxP: np.ndarray) -> np.ndarray:
        """The digit, int32 [N], that each row of `pixels` shows."""
        return self.machine.predict(x_NxP)


def train() -> Judges:
    """Trains both on the 1,397 real training images; about a second."""
    image_NxHxWxC, label_N = digits.load("train")
    x_NxP = pixels(image_NxHxWxC)
    network = MLPClassifier(hidden_layer_sizes=(128, 64), max_iter=500, random_state=0)
    # The matrices are small: more threads are slower, far slower on a busy machine, and the order
    # of their sums would depend on the number of cores.
    with threadpool_limits(limits=1):
        return Judges(network.fit(x_NxP, label_N), SVC(C=10).fit(x_NxP, label_N))
