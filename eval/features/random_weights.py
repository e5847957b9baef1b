"""Random tensors in the layout of published weights, for tests and benchmarks of the networks.

Nothing else uses them: a distance between random features means nothing.
"""

from collections.abc import Mapping

import numpy as np


def random_tensors(layout: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors, the same everywhere for a seed, through which activations neither grow nor fade.

    Kernels are uniform with variance 2 / fan-in (He et al. 2015) and sum to 0 for every output, so
    that images, not the mean of their pixels, make the features. Scales and variances are in
    [0.8, 1.2], shifts and means in [-0.2, 0.2].

    Returns:
        float32 by name.
    """
    # RandomState: its stream is frozen for all versions of NumPy.
    rng = np.random.RandomState(seed)
    tensors = {}
    for name in sorted(layout):
        shape = layout[name]
        x = rng.random_sample(shape) * 2 - 1
        kernel = name.endswith("weight") and len(shape) > 1
        if kernel:
            axes = tuple(range(1, len(shape)))
            x = (x - x.mean(axes, keepdims=True)) * np.sqrt(6 / np.prod(shape[1:]))
        elif name.endswith(("weight", "running_var", "lambda1")):
            x = 1 + 0.2 * x
        else:
            x = 0.2 * x
        tensors[name] = x.astype(np.float32)
    return tensors
