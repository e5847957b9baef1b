"""Images of a prepared TFDS data set in array_record files, read without TensorFlow."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dit_moe.data.array_records import RecordError, Records
from dit_moe.data.tfds_folder import TfdsFolder
from dit_moe.storage import files
from dit_moe.storage.colours import on_white
from dit_moe.storage.pictures import ImageError, read_picture

from .image_set import ImageSet, ImageSetError, check_shape
from .labels import Labels, of_places
from .resize import Resize


def open_tfds(path: Path, split: str, resize: Resize | None = None) -> ImageSet:
    """The feature `image` of a split in its stored order, with the feature `label` if it is there.

    Raises:
        ImageSetError: the files are not array_record or damaged, the split or the image is missing,
            or images are not uint8.
    """
    opened = _opened(path, split, resize)
    return ImageSet(
        path=f"{path} ({split})",
        num=len(opened.records),
        shape=opened.shape,
        make_batches=opened.batches,
        make_labels=opened.labels,
        make_sha256=opened.content,
    )


@dataclass(frozen=True)
class _Split:
    """One split, whose first image was read."""

    path: Path
    folder: TfdsFolder
    split: str
    records: Records
    stored: tuple[int, ...]
    """(H, W, C) of all images."""
    shape: tuple[int, int, int]
    """The same as they are judged, without alpha."""
    resize: Resize | None

    def batches(self, size: int, start: int) -> Iterator[np.ndarray]:
        num = len(self.records)
        for begin in range(start, num, size):
            yield np.stack([self._image(i) for i in range(begin, min(begin + size, num))])

    def _image(self, index: int) -> np.ndarray:
        try:
            image_HxWxC = _pixels(self.folder, self.records[index], self.resize)
        except (RecordError, ImageError) as error:
            raise ImageSetError(f"{self.path}: image {index} cannot be read ({error}).") from error
        if image_HxWxC.shape != self.stored:
            raise ImageSetError(
                f"{self.path}: image {index} has shape {image_HxWxC.shape}, but image 0 has "
                f"{self.stored}; all images must be of one size: name a rule by --resize, or cut "
                "them by python -m dit_moe.data.prepare --autoencoder none, and give its output."
            )
        return image_HxWxC

    def labels(self) -> Labels | None:
        if "label" not in self.folder.fields:
            return None
        records, feature = self.folder.records(self.split, ["label"]), self.folder.fields["label"]
        try:
            label_N = np.asarray([records[i]["label"] for i in range(len(records))])
        except RecordError as error:
            raise ImageSetError(f"{self.path}: a label cannot be read ({error}).") from error
        if label_N.ndim != 1 or not np.issubdtype(label_N.dtype, np.integer):
            raise ImageSetError(
                f"{self.path}: the labels are {label_N.dtype} {label_N.shape}, but must be an "
                "integer for every image."
            )
        if label_N.min() < 0:  # TFDS's mark of images without a label
            return None
        return of_places(label_N, getattr(feature, "names", ()))

    def content(self) -> str:
        digest = hashlib.sha256(self.split.encode())
        for file in sorted(self.path.iterdir()):
            if file.is_file():
                digest.update(f"{file.name}\0{files.sha256(file)}\n".encode())
        return digest.hexdigest()


def _opened(path: Path, split: str, resize: Resize | None) -> _Split:
    try:
        folder = TfdsFolder(path)
        if split not in folder.splits:
            splits = sorted(folder.splits)
            raise ImageSetError(
                f"{path} has no split {split!r}; allowed: {', '.join(map(repr, splits))}."
            )
        if "image" not in folder.fields:
            raise ImageSetError(f"{path} has no feature 'image', but {folder.field_names}.")
        records = folder.records(split, ["image"])
        empty = np.zeros((0, 0, 3), np.uint8)
        first = _pixels(folder, records[0], resize) if len(records) else empty
    except ImageSetError:
        raise
    except Exception as error:
        # Of other file formats, damaged files and unknown features.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageSetError(f"{path} cannot be read ({reason}).") from error
    if first.dtype != np.uint8:
        raise ImageSetError(f"{path}: the images are {first.dtype}, but must be uint8, 0 to 255.")
    shown = check_shape(str(path), (len(records), *first.shape))
    return _Split(path, folder, split, records, first.shape, shown, resize)


def _pixels(folder: TfdsFolder, example: dict[str, Any], resize: Resize | None) -> np.ndarray:
    """uint8 [H, W, C] of a file or an array, resized if it is to be; raises ImageError."""
    image_HxWxC = _read(folder, example)
    if resize is None or image_HxWxC.dtype != np.uint8 or image_HxWxC.ndim != 3:
        return image_HxWxC  # or to be refused
    return resize(on_white(image_HxWxC[None])[0])


def _read(folder: TfdsFolder, example: dict[str, Any]) -> np.ndarray:
    image = example["image"]
    if not isinstance(image, bytes):
        return np.asarray(image)
    image_HxWx3 = np.asarray(read_picture(image).convert("RGB"))
    return image_HxWx3[..., :1] if folder.fields["image"].shape[-1] == 1 else image_HxWx3
