"""From images to what metrics need: statistics of features, and features where they are needed."""

import contextlib
import hashlib
import json
import os
import time
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dit_moe.storage import files

from .features import Extractor
from .image_set import ImageSet, ImageSetError
from .statistics import GaussianAccumulator

_SAVE_EVERY = 60.0  # seconds: what a crash costs at most
_DAMAGED = (  # what reading a damaged .npz raises
    EOFError,
    LookupError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass
class Collected:
    """What was taken from a set of images."""

    num: int = 0
    """Images so far."""
    accumulator: dict[str, GaussianAccumulator] = field(default_factory=dict)
    """By output of the extractor."""
    features: dict[str, np.ndarray] = field(default_factory=dict)
    """float32 [K, D] by output: those of the images whose features are kept, in order."""


def default_cache() -> Path:
    """Where progress and references are kept unless the user says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dit_moe" / "eval"


def collect(
    images: ImageSet,
    extractor: Extractor,
    statistics: Sequence[str],
    keep: Sequence[str],
    folder: Path,
    max_kept: int | None = None,
    batch_size: int = 256,
    title: str = "images",
) -> Collected:
    """Runs a set through a feature network, with a progress bar. Goes on where it was stopped.

    Args:
        images: the set.
        extractor: the network.
        statistics: outputs whose mean and covariance are taken, in flat memory.
        keep: outputs whose features are kept.
        folder: where progress is stored, every minute, on Ctrl-C and at the end, always after a
            whole batch. It is of this set, network, statistics and keep alone: see `key`.
        max_kept: keep only those of `kept_rows(images.num, max_kept)`.
        batch_size: images that are read and handed to the network at once. Several of its own
            batches are best: it prepares one while it computes another.
        title: of the progress bar.

    Returns:
        The same to the bit, whether or not it was stopped in between, if the network is.

    Raises:
        ImageSetError: an image cannot be used, the network lacks an output, features are not
            finite, or another process is collecting in `folder`.
        OSError: the folder cannot be written.
    """
    progress = _Progress(folder, images.num, keep)
    if progress.collected.num < images.num:
        busy = ImageSetError(
            f"{folder} is in use by another evaluation of {images.path}; wait until it ends."
        )
        with files.lock(folder / "lock", busy):
            progress = _Progress(folder, images.num, keep)  # the other one may just have ended
            progress.clear()
            try:
                _go_on(progress, images, extractor, statistics, max_kept, batch_size, title)
            except KeyboardInterrupt:
                progress.save()
                raise
            progress.save()
    collected = progress.collected
    if collected.num != images.num:
        raise ImageSetError(f"{images.path} holds {collected.num} images, not {images.num}.")
    parts = progress.parts.values()
    collected.features = {name: np.concatenate([part[name] for part in parts]) for name in keep}
    return collected


def kept_rows(num: int, max_kept: int | None) -> np.ndarray:
    """The numbers of the images whose features are kept: all, or `max_kept` evenly spaced."""
    if max_kept is None or max_kept >= num:
        return np.arange(num)
    return np.arange(max_kept) * num // max_kept


def key(
    images: ImageSet,
    extractor: Extractor,
    statistics: Sequence[str],
    keep: Sequence[str],
    max_kept: int | None = None,
) -> str:
    """Hexadecimal name of what `collect` makes of these arguments: by content, not by path."""
    content = {
        "images": images.sha256,
        "features": extractor.description,
        "statistics": sorted(statistics),
        "keep": sorted(keep),
        "kept": len(kept_rows(images.num, max_kept)) if keep else 0,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _go_on(
    progress: "_Progress",
    images: ImageSet,
    extractor: Extractor,
    statistics: Sequence[str],
    max_kept: int | None,
    batch_size: int,
    title: str,
) -> None:
    is_kept_N = np.zeros(images.num, bool)
    is_kept_N[kept_rows(images.num, max_kept)] = True
    last = progress.collected.num
    saved_at = time.monotonic()
    with tqdm(total=images.num, initial=last, desc=title, unit="img") as bar:
        for image_NxHxWxC in _ahead(images.batches(batch_size, last)):
            first, last = last, last + len(image_NxHxWxC)
            outputs = extractor(image_NxHxWxC)
            for name in {*statistics, *progress.keep}:
                if name not in outputs:
                    raise ImageSetError(
                        f"The features {extractor.name!r} have no output {name!r}, which a metric "
                        f"needs; they have {', '.join(sorted(outputs))}."
                    )
                if not np.isfinite(outputs[name]).all():
                    raise ImageSetError(
                        f"{images.path}: features of images {first} to {last - 1} are not finite."
                    )
            progress.add(outputs, statistics, is_kept_N[first:last])
            bar.update(last - first)
            if time.monotonic() - saved_at >= _SAVE_EVERY:
                progress.save()
                saved_at = time.monotonic()


def _ahead(batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Reads the next batch while the caller works on this one."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, batches, None)
        while (batch := pending.result()) is not None:
            pending = pool.submit(next, batches, None)
            yield batch


class _Progress:
    """What was collected so far, and its files: `state.npz` and the kept features in parts."""

    def __init__(self, folder: Path, num_images: int, keep: Sequence[str]):
        """Takes up what is stored; nothing if it is damaged, as it can be made again."""
        self.keep = keep
        self.collected = Collected()
        self.parts: dict[int, dict[str, np.ndarray]] = {}
        """Kept features by the number of their first image."""
        self._folder = folder
        self._saved = 0
        self._unsaved: dict[str, list[np.ndarray]] = {name: [] for name in keep}
        self._is_whole = True
        with contextlib.suppress(*_DAMAGED):
            arrays = _read(folder / "state.npz")
            num, starts = int(arrays.pop("num")), arrays.pop("parts").tolist()
            states: dict[str, dict[str, np.ndarray]] = {}
            for path, x in arrays.items():
                name, _, entry = path.partition("/")
                states.setdefault(name, {})[entry] = x
            accumulators = {n: GaussianAccumulator.from_state(s) for n, s in states.items()}
            parts = {start: _read(self._part(start)) if keep else {} for start in starts}
            if 0 < num <= num_images:
                self.collected, self.parts = Collected(num, accumulators), parts
                self._saved = num

    def clear(self) -> None:
        """Removes files that are of no use: all but those that were taken up."""
        used = {self._part(start) for start in self.parts}
        for file in self._folder.glob("*.npz"):
            if file not in used and not (file.name == "state.npz" and self._saved):
                file.unlink()

    def add(
        self, outputs: dict[str, np.ndarray], statistics: Sequence[str], is_kept_B: np.ndarray
    ) -> None:
        """Takes in the features of the next B images."""
        self._is_whole = False
        for name in statistics:
            f_BxD = outputs[name]
            if name not in self.collected.accumulator:
                self.collected.accumulator[name] = GaussianAccumulator(f_BxD.shape[1])
            self.collected.accumulator[name].add(f_BxD)
        for name in self.keep:
            self._unsaved[name].append(outputs[name][is_kept_B])
        self.collected.num += len(is_kept_B)
        self._is_whole = True

    def save(self) -> None:
        """Stores it, unless nothing is new or Ctrl-C came amid `add` or `save`."""
        start, num = self._saved, self.collected.num
        if start == num or not self._is_whole:
            return
        self._is_whole = False
        part: dict[str, Any] = {
            name: np.concatenate(pieces) for name, pieces in self._unsaved.items()
        }
        if part:
            with files.atomic(self._part(start)) as temporary:
                np.savez(temporary, **part)
        self.parts[start] = part
        arrays: dict[str, Any] = {"num": np.array(num), "parts": np.array(list(self.parts))}
        for name, accumulator in self.collected.accumulator.items():
            arrays |= {f"{name}/{field}": x for field, x in accumulator.state().items()}
        # Last: parts that it does not name do not count.
        with files.atomic(self._folder / "state.npz") as temporary:
            np.savez(temporary, **arrays)
        self._unsaved = {name: [] for name in self.keep}
        self._saved = num
        self._is_whole = True

    def _part(self, start: int) -> Path:
        return self._folder / f"part-{start:09d}.npz"


def _read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    if not all(np.isfinite(x).all() for x in arrays.values()):
        raise ValueError(f"{path} holds values that are not finite.")
    return arrays
