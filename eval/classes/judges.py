"""Two classifiers, trained on the training images of a data set, that judge images.

One yields features, the other says which class an image shows. They are of different kinds so
that an image which fools one is not thereby right for the other. Both are deterministic on a
given machine; other linear algebra libraries may change the features in their last digits.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import RidgeClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from ..features.embedded import fit_network, penultimate
from .judged import Judged

_EXACT = 5000
"""The most images of which an exact kernel machine is trained in seconds."""
_CENTRES = 2000


@dataclass(frozen=True)
class Judges:
    """The trained pair; make it with `train`."""

    network: MLPClassifier
    machine: Any
    classifier: str
    """What the machine is."""

    @property
    def description(self) -> str:
        """What the features are."""
        widths = [*(len(x) for x in self.network.coefs_), self.network.coefs_[-1].shape[1]]
        return "second hidden layer (64 ReLU) of a scikit-learn MLPClassifier " + "-".join(
            map(str, widths)
        )

    def features(self, x_NxP: np.ndarray) -> np.ndarray:
        """Penultimate activations, float64 [N, 64], of what `Judged.describe` makes of images."""
        return penultimate(self.network, x_NxP)

    def classify(self, x_NxP: np.ndarray) -> np.ndarray:
        """The class, as a place [N], that each image shows."""
        return self.machine.predict(x_NxP)


def train(data: Judged) -> Judges:
    """Trains both: a second for the digits, a minute for 60,000 images of 28x28."""
    x_NxP, label_N = data.describe(data.train.image), data.train.label
    with threadpool_limits(limits=1):
        machine, classifier = _machine(x_NxP)
        machine.fit(x_NxP, label_N)
    return Judges(fit_network(x_NxP, label_N, data.settings), machine, classifier)


def _machine(x_NxP: np.ndarray) -> tuple[Any, str]:
    """A kernel machine that is not yet trained, exact where there are few images."""
    if len(x_NxP) <= _EXACT:
        return SVC(C=10), "scikit-learn SVC, RBF kernel, C=10"
    kernel = Nystroem(
        gamma=1 / (x_NxP.shape[1] * x_NxP.var()), n_components=_CENTRES, random_state=0
    )
    return make_pipeline(kernel, RidgeClassifier(alpha=1e-3)), (
        f"scikit-learn RidgeClassifier on an RBF kernel by Nystroem's {_CENTRES} images"
    )
