"""Images of a prepared TFDS data set in array_record files, read without TensorFlow."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dit_moe.storage import files
from dit_moe.storage.pictures import ImageError, read_picture

from .image_sets import ImageSet, ImageSetError, check_shape
from .labels import Labels, of_places


def is_data_set(path: Path) -> bool:
    """Whether a folder is that of one version of a TFDS data set."""
    return (path / "dataset_info.json").is_file() and (path / "features.json").is_file()


def open_tfds(path: Path, split: str) -> ImageSet:
    """The feature `image` of a split in its stored order, with the feature `label` if it is there.

    Raises:
        ImageSetError: tensorflow_datasets is not installed, the files are not array_record or
            damaged, the split or the image is missing, or images are not uint8.
    """
    try:
        from dit_moe.data.array_records import RecordError
        from dit_moe.data.tfds_folder import TfdsFolder
    except ImportError as error:
        raise ImageSetError(
            f"{path} is a TFDS data set: pip install tensorflow-datasets array-record to read it."
        ) from error

    try:
        folder = TfdsFolder(path)
        if split not in folder.splits:
            splits = sorted(folder.splits)
            raise ImageSetError(
                f"{path} has no split {split!r}; allowed: {', '.join(map(repr, splits))}."
            )
        if "image" not in folder.fields:
            raise ImageSetError(f"{path} has no feature 'image', but {folder.field_names}.")
        source = folder.records(split, ["image"])
        channels = folder.fields["image"].shape[-1]
        first = _pixels(source[0], channels) if len(source) else np.zeros((0, 0, 3), np.uint8)
    except ImageSetError:
        raise
    except Exception as error:
        # Of other file formats, damaged files and unknown features.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageSetError(f"{path} cannot be read ({reason}).") from error
    if first.dtype != np.uint8:
        raise ImageSetError(f"{path}: the images are {first.dtype}, but must be uint8, 0 to 255.")
    check_shape(str(path), (len(source), *first.shape))

    def image(index: int) -> np.ndarray:
        try:
            image_HxWxC = _pixels(source[index], channels)
        except (RecordError, ImageError) as error:
            raise ImageSetError(f"{path}: image {index} cannot be read ({error}).") from error
        if image_HxWxC.shape != first.shape:
            raise ImageSetError(
                f"{path}: image {index} has shape {image_HxWxC.shape}, but image 0 has "
                f"{first.shape}; all images must be of one size: cut them by python -m "
                "dit_moe.data.prepare --autoencoder none, and give its output."
            )
        return image_HxWxC

    def batches(size: int, start: int) -> Iterator[np.ndarray]:
        for begin in range(start, len(source), size):
            yield np.stack([image(i) for i in range(begin, min(begin + size, len(source)))])

    def labels() -> Labels | None:
        if "label" not in folder.fields:
            return None
        records, feature = folder.records(split, ["label"]), folder.fields["label"]
        try:
            label_N = np.asarray([records[i]["label"] for i in range(len(records))])
        except RecordError as error:
            raise ImageSetError(f"{path}: a label cannot be read ({error}).") from error
        if label_N.ndim != 1 or not np.issubdtype(label_N.dtype, np.integer):
            raise ImageSetError(
                f"{path}: the labels are {label_N.dtype} {label_N.shape}, but must be an integer "
                "for every image."
            )
        if label_N.min() < 0:  # TFDS's mark of images without a label
            return None
        return of_places(label_N, getattr(feature, "names", ()))

    def content() -> str:
        digest = hashlib.sha256(split.encode())
        for file in sorted(path.iterdir()):
            if file.is_file():
                digest.update(f"{file.name}\0{files.sha256(file)}\n".encode())
        return digest.hexdigest()

    height, width, num_channels = first.shape
    return ImageSet(
        path=f"{path} ({split})",
        num=len(source),
        shape=(height, width, num_channels),
        make_batches=batches,
        make_labels=labels,
        make_sha256=content,
    )


def _pixels(example: dict[str, Any], channels: int | None) -> np.ndarray:
    """uint8 [H, W, C] of a file or an array; raises ImageError."""
    image = example["image"]
    if not isinstance(image, bytes):
        return np.asarray(image)
    image_HxWx3 = np.asarray(read_picture(image).convert("RGB"))
    return image_HxWx3[..., :1] if channels == 1 else image_HxWx3
