"""Opens sets of images, which are then read a batch at a time from whatever they are stored in.

`open_set` knows four forms by what the path holds: an `.npz` file (`npz_images`), a folder or a zip
of image files (`image_files`), and a TFDS data set (`tfds_images`).
"""

import hashlib
import zipfile
from pathlib import Path

from . import image_files, npz_images
from .features.embedded import EMBEDDED
from .image_set import ImageSet, ImageSetError
from .labels import of_places
from .resize import Resize, resized, resized_content


def open_set(path: str | Path, split: str = "train", resize: Resize | None = None) -> ImageSet:
    """Opens a set of images without reading the pixels.

    Args:
        path: an `.npz` file, a folder or a zip of images, or a folder of a TFDS data set; "digits"
            or "patches", where no file is called so, for the held-out split of that embedded set.
        split: of a TFDS data set; the others have none.
        resize: brings all images to one size; None refuses sets of several.

    Raises:
        ImageSetError: missing, of no known form, empty, or of a wrong type; or a TFDS data set
            where tensorflow_datasets is not installed.
    """
    if str(path) in EMBEDDED and not Path(path).exists():
        return resized(_embedded(str(path)), resize)
    path = Path(path)
    if not path.exists():
        raise ImageSetError(f"{path} does not exist.")
    if path.is_dir():
        if (path / "dataset_info.json").is_file() and (path / "features.json").is_file():
            return resized_content(_tfds(path, split, resize), resize)
        return resized_content(image_files.open_folder(path, resize), resize)
    if not path.is_file():  # opening a pipe might never end
        raise ImageSetError(f"{path} is neither a file nor a folder.")
    if not zipfile.is_zipfile(path):
        raise ImageSetError(
            f"{path} is no set of images, or it was cut short; allowed: an .npz file, a folder or "
            "a zip of images, a folder of a TFDS data set."
        )
    if npz_images.is_npz(path):
        return resized(npz_images.open_npz(path), resize)
    return resized_content(image_files.open_zip(path, resize), resize)


def _embedded(name: str) -> ImageSet:
    embedded = EMBEDDED[name]
    image_NxHxWxC, label_N = embedded.load("heldout")
    num, height, width, channels = image_NxHxWxC.shape
    return ImageSet(
        path=f"{name} (held-out)",
        num=num,
        shape=(height, width, channels),
        make_batches=lambda size, start: (
            image_NxHxWxC[first : first + size] for first in range(start, num, size)
        ),
        make_labels=lambda: of_places(label_N, embedded.classes),
        make_sha256=lambda: hashlib.sha256(image_NxHxWxC.tobytes()).hexdigest(),
    )


def _tfds(path: Path, split: str, resize: Resize | None) -> ImageSet:
    try:
        from .tfds_images import open_tfds
    except ImportError as error:
        raise ImageSetError(
            f"{path} is a TFDS data set: pip install tensorflow-datasets array-record to read it."
        ) from error
    return open_tfds(path, split, resize)
