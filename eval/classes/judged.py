"""What samples are judged by: a labelled data set, and what was held out of it."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..features.embedded import EMBEDDED
from ..image_set import ImageSet, ImageSetError
from ..image_sets import open_set
from ..labels import Labels, of_places, shared_classes

MAX_VALUES = 2**28
"""The most numbers that the training images may have together: they are held as float64."""


class Split(NamedTuple):
    """Images with their classes."""

    image: np.ndarray
    """uint8 [N, H, W, C]."""
    label: np.ndarray
    """Integers [N], places in `Judged.classes`."""


@dataclass(frozen=True, eq=False)
class Judged:
    """A data set of small images."""

    name: str
    """For messages and records."""
    train: Split
    heldout: Split
    """What nothing was trained on."""
    labels: Labels
    """Of the training images, as the data set numbers and names its classes."""
    channels: tuple[int, ...]
    """How many an image may have."""
    describe: Callable[[np.ndarray], np.ndarray]
    """uint8 [N, H, W, C] to what the judges see, float64 [N, P]."""
    settings: Mapping[str, Any] = field(default_factory=lambda: {"early_stopping": True})
    """Arguments of scikit-learn's MLPClassifier."""
    ink: bool = False
    """Images are ink on paper: 255 is drawn black."""

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Names, or numbers as text, in the order of the numbers."""
        numbers = np.unique(self.labels.number).tolist()
        return tuple(self.labels.names.get(number, str(number)) for number in numbers)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of all images."""
        _, height, width, _ = self.train.image.shape
        return height, width


def open_judged(data: str, heldout: str | None = None) -> Judged:
    """The data set that samples are held against.

    Args:
        data: "digits" or "patches", or a labelled set of images as `image_sets.open_set` takes it.
        heldout: another one; None: the data set's own held-out images, which a prepared set has in
            its split "validation".

    Raises:
        ImageSetError: one cannot be used, or there are no held-out images.
    """
    if data in EMBEDDED and not Path(data).exists():
        if heldout is not None:
            raise ImageSetError(f"--heldout is {heldout}, but the {data} have held-out images.")
        return embedded(data)
    train = open_set(data)
    if heldout is None and not (Path(data) / "dataset_info.json").is_file():
        raise ImageSetError(
            f"{data} holds nothing out; allowed: --heldout with images that nothing was trained on."
        )
    other = open_set(data, "validation") if heldout is None else open_set(heldout)
    if train.shape != other.shape:
        raise ImageSetError(
            f"{train.path} holds images of {train.shape}, but {other.path} of {other.shape}."
        )
    if train.num * int(np.prod(train.shape)) > MAX_VALUES:
        raise ImageSetError(
            f"{train.path} is too large for these judges ({train.num:,} images of {train.shape}); "
            "allowed: eval.fid with the features of a published network."
        )
    if train.labels is None:
        raise ImageSetError(f"{train.path} has no labels, which the judges learn.")
    return Judged(
        name=data,
        train=Split(train.read(), places(train, train.labels)),
        heldout=Split(other.read(), places(other, train.labels)),
        labels=train.labels,
        channels=(train.shape[2],),
        describe=values,
    )


@functools.cache
def embedded(name: str) -> Judged:
    """An embedded data set, a key of `EMBEDDED`."""
    known = EMBEDDED[name]
    train, heldout = (Split(*known.load(split)) for split in ("train", "heldout"))
    return Judged(
        name=name,
        train=train,
        heldout=heldout,
        labels=of_places(train.label, known.classes),
        channels=(1, 3) if train.image.shape[-1] == 1 else (3,),
        describe=known.describe,
        settings=known.settings,
        ink=name == "digits",
    )


def values(image_NxHxWxC: np.ndarray) -> np.ndarray:
    """All values from 0 to 1: uint8 [N, H, W, C] to float64 [N, H*W*C]."""
    return image_NxHxWxC.reshape(len(image_NxHxWxC), -1) / 255


def places(images: ImageSet, own: Labels) -> np.ndarray:
    """The classes of a set's images as places in the sorted classes of the data set, int64 [N].

    Raises:
        ImageSetError: they have no labels, or others than the data set.
    """
    if images.labels is None:
        raise ImageSetError(f"{images.path} has no labels (arr_1).")
    known = np.unique(own.number)
    shared = shared_classes(images.labels, own) or {}
    of_number = {theirs: int(np.searchsorted(known, ours)) for theirs, ours in shared.values()}
    for number in np.unique(images.labels.number).tolist():
        if number not in of_number:
            called = images.labels.names.get(number, str(number))
            others = ", ".join(own.names.get(k, str(k)) for k in known[:12].tolist())
            raise ImageSetError(
                f"{images.path}: a label is {called}, but the data have the classes {others}"
                f"{', ...' * (len(known) > 12)}."
            )
    return np.asarray([of_number[number] for number in images.labels.number.tolist()])
