"""What experts a run was seen to choose: counts of some images, and of others to check with."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from dit_moe.analysis.analyse import Opened, empty_counts
from dit_moe.analysis.counts import Counts
from dit_moe.analysis.visits import Visit, sampling_bins, sampling_visits, training_visits
from dit_moe.config import ConfigError


class Decided(NamedTuple):
    """Counts of two halves of the images, each of all classes."""

    fit: Counts
    held_out: Counts


def decided(run: Opened, batch_size: int) -> Decided:
    """Shows the network its inputs, of one kind, and counts the halves apart.

    Images with the null label are left out.

    Args:
      run: whose settings name one kind of inputs.
      batch_size: images per pass.

    Raises:
      ConfigError: the halves have not all classes.
    """
    settings = run.settings
    classes, images = len(settings.classes), settings.num_images
    if images < 2 * classes:
        raise ConfigError(
            f"num_images is {images} with {classes} classes; allowed: {2 * classes} or more, as "
            "half of them are held out"
        )
    label_N = np.resize(np.asarray(settings.classes, np.int32), images)
    bin_V, grid = np.arange(settings.time_bins), run.config.model.grid
    if run.source is None:
        bin_V = sampling_bins(run.config.objective, settings)
    else:
        patch = run.config.model.patch_size
        grid = run.source.shape[0] // patch, run.source.shape[1] // patch
    half = images // 2
    parts = (slice(0, half), slice(half, images))
    found = Decided(
        *(empty_counts(run.config.model, label_N[own], settings, bin_V, grid) for own in parts)
    )
    with jax.set_mesh(run.mesh):
        for visit in _visits(run, label_N, batch_size):
            for counts, own in zip(found, parts, strict=True):
                here = (visit.image >= own.start) & (visit.image < own.stop)
                if here.any():
                    seen = jax.tree.map(lambda array, here=here: array[:, here], visit.seen)
                    counts.add(seen, visit.image[here] - own.start, visit.time[here])
    return found


def _visits(run: Opened, label_N: np.ndarray, batch_size: int) -> Iterator[Visit]:
    if run.source is None:
        return sampling_visits(
            run.config, run.parameters, label_N, run.settings, batch_size, run.mesh
        )
    return training_visits(
        run.config, run.parameters, run.source, label_N, 0, run.settings, batch_size, run.mesh
    )
