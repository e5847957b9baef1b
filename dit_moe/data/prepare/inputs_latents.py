"""Ready-made latents as an input, as two public codes write them.

fast-DiT (chuanyangjin/fast-DiT): folders NAME_features and NAME_labels with N.npy in each, [1, c,
h, w] and [1]: one draw from the posterior of a picture or of its mirror image, times the scaling
factor. EDM2 (NVlabs/edm2, dataset_tool.py encode): a folder or zip with dataset.json, as EDM's of
pictures, and .npy files [2 c, h, w]: mean and standard deviation of the posterior, unscaled, of
pictures whose black was 0 and white 1 where others have -1 and 1.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dit_moe.config import ConfigError
from dit_moe.data import edm_labels
from dit_moe.data.picture_files import Files, FilesError, Listing, printable
from dit_moe.data.picture_folders import list_folder
from dit_moe.data.picture_zips import Zip, list_zip
from dit_moe.data.prepare.input import (
    UNCONDITIONAL,
    Entry,
    Input,
    Latents,
    Posterior,
    listing_digest,
)
from dit_moe.data.prepare.shards import MAX_CLASSES
from dit_moe.storage.npz import parse_npy
from dit_moe.storage.pictures import ImageError

_SUFFIX = ".npy"
_LEAST = -30.0
"""The least log-variance, as the autoencoders clamp theirs: nothing is added to the mean."""
_FOLDERS = ("features", "labels")

_Shape = tuple[int, int, int]


@dataclass(frozen=True)
class _FastDiTReader:
    files: Files
    shape: _Shape

    def read(self, entry: Entry) -> tuple[Posterior, int]:
        assert entry.label is not None
        array = _read(self.files, entry.key)
        if array.ndim == 4 and len(array) == 1:
            array = array[0]
        mean = _channels_last(array, self.shape)
        return Posterior(mean, np.full_like(mean, _LEAST)), entry.label


@dataclass(frozen=True)
class _EDM2Reader:
    files: Files
    shape: _Shape

    def read(self, entry: Entry) -> tuple[Posterior, int]:
        assert entry.label is not None
        height, width, channels = self.shape
        both = _channels_last(_read(self.files, entry.key), (height, width, 2 * channels))
        mean, std = np.split(both, 2, axis=-1)
        if (std < 0).any():
            raise ImageError("standard deviations below 0")
        log_variance = 2 * np.log(np.maximum(std, np.exp(_LEAST / 2)))
        return Posterior(mean, log_variance), entry.label


def is_fast_dit(path: Path) -> bool:
    """Whether a folder has its two."""
    return path.is_dir() and all(_ending(path, end) is not None for end in _FOLDERS)


def is_edm2(path: Path) -> bool:
    """Whether a folder looks like it."""
    if not (path / edm_labels.NAME).is_file():
        return False
    return next(path.glob("*/img-mean-std-*.npy"), None) is not None


def open_fast_dit(path: Path, *, follow_links: bool = False) -> Input:
    """Lists fast-DiT's two folders; see `inputs.open_input`."""
    folders = [_ending(path, end) if path.is_dir() else None for end in _FOLDERS]
    if None in folders:
        raise ConfigError(
            f"input {str(path)!r} has not one folder whose name ends in features and one whose "
            "name ends in labels; allowed: these, with N.npy in each"
        )
    listing = _listed(path, partial(list_folder, follow_links=follow_links))
    features, labels = (
        {name.partition("/")[2]: name for name in listing.names if name.startswith(f"{folder}/")}
        for folder in folders
    )
    if unpaired := sorted(set(features) ^ set(labels)):
        raise ConfigError(
            f"input {str(path)!r} has {printable(unpaired[0])!r} in one of its folders alone "
            f"({len(unpaired):,} such files); allowed: a label for every latent, by its name"
        )
    names = sorted(features, key=_by_number)
    progress = tqdm(names, desc="reading labels", unit="file", delay=2, leave=False)
    entries = [
        Entry(features[name], _label(path, listing.files, labels[name])) for name in progress
    ]
    classes = tuple(map(str, range(max((e.label or 0 for e in entries), default=-1) + 1)))
    shape = _first_shape(path, listing.files, entries, leading=(1,))
    digest = listing_digest([classes, *entries])
    reader = _FastDiTReader(listing.files, shape)
    ignored = len(listing.names) - len(features) - len(labels)
    latents = Latents(shape, scaled=True)
    return Input("fast_dit", entries, classes, digest, reader, ignored, latents=latents)


def open_edm2(path: Path, *, follow_links: bool = False) -> Input:
    """Lists EDM2's latents; see `inputs.open_input`."""
    in_folder = partial(list_folder, follow_links=follow_links)
    listing = _listed(path, in_folder if path.is_dir() else list_zip)
    names = [name for name in listing.names if name.endswith(_SUFFIX)]
    if edm_labels.NAME not in listing.names or not names:
        raise ConfigError(
            f"input {str(path)!r} has no {edm_labels.NAME} or no {_SUFFIX} files; allowed: what "
            "EDM2's dataset_tool.py encode writes"
        )
    try:
        label = edm_labels.read(listing.files, names)
    except FilesError as error:
        raise ConfigError(f"input {str(path)!r}: {error}") from None
    entries = [Entry(name, 0 if label is None else label[name]) for name in names]
    count = max((label or {}).values(), default=-1) + 1
    classes = UNCONDITIONAL if label is None else tuple(map(str, range(count)))
    height, width, both = _first_shape(path, listing.files, entries)
    if both % 2:
        raise ConfigError(
            f"input {str(path)!r} has latents of {both} channels; allowed: an even number, means "
            "and standard deviations"
        )
    prefix = [listing.files.prefix] if isinstance(listing.files, Zip) else []
    digest = listing_digest([classes, *prefix, *entries, *listing.contents])
    shape = height, width, both // 2
    reader = _EDM2Reader(listing.files, shape)
    ignored = listing.loose + len(listing.names) - len(entries) - 1
    latents = Latents(shape, scaled=False, pixel_range=(0.0, 1.0))
    return Input("edm2", entries, classes, digest, reader, ignored, latents=latents)


def _ending(path: Path, end: str) -> str | None:
    """The one visible folder whose name ends so."""
    found = [p.name for p in path.iterdir() if p.name.endswith(end) and p.is_dir()]
    return found[0] if len(found) == 1 and not found[0].startswith(".") else None


def _listed(path: Path, list_files: Callable[[Path], Listing]) -> Listing:
    try:
        return list_files(path)
    except FilesError as error:
        raise ConfigError(f"input {error}") from None


def _by_number(name: str) -> tuple[int, str]:
    stem = name.removesuffix(_SUFFIX)
    return (int(stem) if re.fullmatch(r"\d{1,18}", stem) else -1, name)


def _read(files: Files, name: str) -> np.ndarray:
    """An array of real numbers; raises ImageError."""
    content = files.read(name)
    try:
        array = parse_npy(content)
    except ValueError as error:
        raise ImageError(f"not an array ({error})") from None
    if array.dtype.kind not in "fiu":
        raise ImageError(f"numbers of type {array.dtype}")
    return array


def _channels_last(array: np.ndarray, shape: _Shape) -> np.ndarray:
    """[c, h, w] as float32 [h, w, c]."""
    if array.ndim != 3 or array.transpose(1, 2, 0).shape != shape:
        raise ImageError(f"shape {array.shape}, unlike the first")
    return array.transpose(1, 2, 0).astype(np.float32)


def _label(path: Path, files: Files, name: str) -> int:
    try:
        array = _read(files, name)
        if array.size == 1 and array.dtype.kind in "iu" and 0 <= array.item() < MAX_CLASSES:
            return int(array.item())
        found = f"{array.dtype} {array.shape}" if array.size != 1 else f"{array.item()}"
    except ImageError as error:
        found = str(error)
    raise ConfigError(
        f"input {str(path)!r} has in {printable(name)!r} {found}; allowed: one whole number from 0 "
        f"to {MAX_CLASSES - 1:,}"
    )


def _first_shape(
    path: Path, files: Files, entries: list[Entry], leading: tuple[int, ...] = ()
) -> _Shape:
    """[h, w, c] of the first latent, which all others must have."""
    if not entries:
        return 0, 0, 0  # refused as an input without images
    key = entries[0].key
    try:
        shape = _read(files, key).shape
    except ImageError as error:
        raise ConfigError(f"input {str(path)!r}: {printable(key)!r} is {error}") from None
    shape = shape[len(leading) :] if shape[: len(leading)] == leading and len(shape) > 3 else shape
    if len(shape) != 3 or 0 in shape:
        raise ConfigError(
            f"input {str(path)!r} has in {printable(key)!r} an array of shape {shape}; allowed: "
            "channels, height and width"
        )
    return shape[1], shape[2], shape[0]
