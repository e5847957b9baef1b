"""Samples drawn from a run as they are judged, without files of images.

The one place where the evaluator meets a model: it asks for images and gets arrays.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.runs.checkpoints import Checkpoints
from dit_moe.runs.open_folder import is_published
from dit_moe.sampling.run_sampler import RunSampler
from dit_moe.sampling.sample_set import write_sample_set
from dit_moe.training.judging import StateSamples

from . import npz_images
from .image_set import ImageSet, ImageSetError, check_shape
from .labels import of_places


def open_run(
    workdir: Path, *, batch_size: int, save: Path | None = None, **settings: Any
) -> tuple[ImageSet, dict[str, Any]]:
    """A set whose images are drawn when they are read. Image i is the same whenever it is read.

    Args:
        workdir: the run folder.
        batch_size: images per pass over all devices; rounded up, and then `batch_size` of what is
            returned, it is what `ImageSet.batches` must be asked for.
        save: folder for the images; None: they are drawn again whenever they are read.
        settings: as for `run_sampler.RunSampler`.

    Returns:
        The set, and everything that is needed to draw it again, ready for JSON.

    Raises:
        dit_moe.config.ConfigError: the run or a setting cannot be used.
        ImageSetError: the run's samples are not pictures.
    """
    sampler = RunSampler(workdir, batch_size=batch_size, **settings)
    if sampler.image_shape is None:
        raise ImageSetError(f"{workdir} draws latents; give their --autoencoder.")

    drawn = sampler.identity
    if save is not None:
        folder = save / f"guidance_{sampler.request.guidance.scale:g}"
        return npz_images.open_npz(write_sample_set(sampler, folder)[0]), drawn

    return _image_set(f"samples of {workdir}", sampler.image_shape, sampler), drawn


def checkpoint_digests(workdir: Path) -> dict[int, str]:
    """The steps of a run's checkpoints, each with a digest of all that it holds.

    Raises:
        ConfigError: it is no run.
    """
    if is_published(workdir):
        raise ConfigError(f"workdir is {str(workdir)!r}, an exported folder; allowed: a run.")
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.digests()


def image_set(samples: StateSamples) -> ImageSet:
    """The same of the state of a run that trains."""
    return _image_set(samples.name, samples.image_shape, samples)


def _image_set(
    path: str, shape: tuple[int, int, int], sampler: RunSampler | StateSamples
) -> ImageSet:
    def batches(size: int, start: int) -> Iterator[np.ndarray]:
        del size  # the sampler's own
        assert start % sampler.batch_size == 0
        return sampler.batches(start)

    request, classes = sampler.request, sampler.classes
    identity = json.dumps(sampler.identity, sort_keys=True).encode()
    return ImageSet(
        path=path,
        num=request.num_samples,
        shape=check_shape(path, (request.num_samples, *shape)),
        make_batches=batches,
        make_labels=lambda: of_places(request.labels(), classes.names, classes.numbers),
        make_sha256=lambda: hashlib.sha256(identity).hexdigest(),
    )
