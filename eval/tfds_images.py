"""Images of a prepared TFDS data set in array_record files, read without TensorFlow."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dit_moe import files
from eval.image_sets import ImageSet, ImageSetError, check_shape
from eval.labels import Labels, of_places


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
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImageSetError(
            f"{path} is a TFDS data set: pip install tensorflow-datasets array-record to read it."
        ) from error

    try:
        builder: Any = tfds.builder_from_directory(path)  # its stubs deny half of its methods
        splits = sorted(builder.info.splits)
        if split not in splits:
            raise ImageSetError(
                f"{path} has no split {split!r}; allowed: {', '.join(map(repr, splits))}."
            )
        features = set(builder.info.features or ())
        if "image" not in features:
            raise ImageSetError(f"{path} has no feature 'image', but {sorted(features)}.")
        source = builder.as_data_source(split)
        first = np.asarray(source[0]["image"]) if len(source) else np.zeros((0, 0, 3), np.uint8)
    except ImageSetError:
        raise
    except Exception as error:
        # Of other file formats, damaged files and unknown features.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageSetError(f"{path} cannot be read ({reason}).") from error
    if first.dtype != np.uint8:
        raise ImageSetError(f"{path}: the images are {first.dtype}, but must be uint8, 0 to 255.")
    check_shape(str(path), (len(source), *first.shape))

    def example(index: int, source: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        try:
            return source[index]
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ImageSetError(f"{path}: image {index} cannot be read ({reason}).") from error

    def image(index: int) -> np.ndarray:
        image_HxWxC = np.asarray(example(index, source)["image"])
        if image_HxWxC.shape != first.shape:
            raise ImageSetError(
                f"{path}: image {index} has shape {image_HxWxC.shape}, but image 0 has "
                f"{first.shape}; all images must be of one size."
            )
        return image_HxWxC

    def batches(size: int, start: int) -> Iterator[np.ndarray]:
        for begin in range(start, len(source), size):
            yield np.stack([image(i) for i in range(begin, min(begin + size, len(source)))])

    def labels() -> Labels | None:
        if "label" not in features:
            return None
        only_labels = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        label_N = np.asarray([example(i, only_labels)["label"] for i in range(len(source))])
        if label_N.ndim != 1 or not np.issubdtype(label_N.dtype, np.integer):
            raise ImageSetError(
                f"{path}: the labels are {label_N.dtype} {label_N.shape}, but must be an integer "
                "for every image."
            )
        if label_N.min() < 0:  # TFDS's mark of images without a label
            return None
        feature = builder.info.features["label"]
        known = isinstance(feature, tfds.features.ClassLabel) and feature.num_classes
        return of_places(label_N, feature.names if known else ())

    def content() -> str:
        digest = hashlib.sha256(split.encode())
        for file in sorted(path.iterdir()):
            if file.is_file():
                digest.update(f"{file.name}\0{files.sha256(file)}\n".encode())
        return digest.hexdigest()

    height, width, channels = first.shape
    return ImageSet(
        path=f"{path} ({split})",
        num=len(source),
        shape=(height, width, channels),
        make_batches=batches,
        make_labels=labels,
        make_sha256=content,
    )
