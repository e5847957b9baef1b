"""From images to what metrics need: statistics of features, and features where they are needed."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from dit_moe import files
from eval.image_sets import ImageSet, ImageSetError
from eval.statistics import GaussianAccumulator

_SAVE_EVERY = 5000  # images: what an interruption costs at most


class Extractor(Protocol):
    """A feature network."""

    @property
    def name(self) -> str:
        """Short: "inception", "dinov2"."""
        ...

    @property
    def description(self) -> dict[str, Any]:
        """Everything that its numbers depend on, ready for JSON."""
        ...

    def __call__(self, image_NxHxWxC: np.ndarray, /) -> dict[str, np.ndarray]:
        """float32 [N, D] by output, such as "pool", of uint8 images, C of 1 or 3."""
        ...


@dataclass
class Collected:
    """What was taken from a set of images."""

    num: int = 0
    """Images so far."""
    accumulator: dict[str, GaussianAccumulator] = field(default_factory=dict)
    """By output of the extractor."""
    features: dict[str, np.ndarray] = field(default_factory=dict)
    """float32 [K, D] by output: those of the images whose features are kept, in order."""


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
        folder: where progress is stored, every 5,000 images and at the end. It is of this set,
            network, statistics and keep alone: see `key`.
        max_kept: keep only those of `kept_rows(images.num, max_kept)`.
        batch_size: images that are read and handed to the network at once. Several of its own
            batches are best: it prepares one while it computes another.
        title: of the progress bar.

    Returns:
        The same to the bit, whether or not it was stopped in between, if the network is.

    Raises:
        ImageSetError: an image cannot be used, the network lacks an output, or features are not
            finite.
        OSError: the folder cannot be written.
    """
    collected, parts = _load(folder, images.num, keep)
    is_kept_N = np.zeros(images.num, bool)
    is_kept_N[kept_rows(images.num, max_kept)] = True
    unsaved: dict[str, list[np.ndarray]] = {name: [] for name in keep}
    saved = collected.num

    with tqdm(total=images.num, initial=saved, desc=title, unit="img") as bar:
        for image_NxHxWxC in _ahead(images.batches(batch_size, saved)):
            first, last = collected.num, collected.num + len(image_NxHxWxC)
            outputs = extractor(image_NxHxWxC)
            for name in {*statistics, *keep}:
                if name not in outputs:
                    raise ImageSetError(
                        f"The features {extractor.name!r} have no output {name!r}, which a metric "
                        f"needs; they have {', '.join(sorted(outputs))}."
                    )
                if not np.isfinite(outputs[name]).all():
                    raise ImageSetError(
                        f"{images.path}: features of images {first} to {last - 1} are not finite."
                    )
            for name in statistics:
                f_NxD = outputs[name]
                if name not in collected.accumulator:
                    collected.accumulator[name] = GaussianAccumulator(f_NxD.shape[1])
                collected.accumulator[name].add(f_NxD)
            for name in keep:
                unsaved[name].append(outputs[name][is_kept_N[first:last]])
            collected.num = last
            bar.update(last - first)
            if last - saved >= _SAVE_EVERY or last == images.num:
                part = {name: np.concatenate(pieces) for name, pieces in unsaved.items()}
                _save(folder, collected, saved, part)
                parts.append(part)
                unsaved = {name: [] for name in keep}
                saved = last
    if collected.num != images.num:
        raise ImageSetError(f"{images.path} holds {collected.num} images, not {images.num}.")
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


def _ahead(batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Reads the next batch while the caller works on this one."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, batches, None)
        while (batch := pending.result()) is not None:
            pending = pool.submit(next, batches, None)
            yield batch


def _save(folder: Path, collected: Collected, start: int, part: dict[str, np.ndarray]) -> None:
    if part:
        with files.atomic(folder / f"part-{start:09d}.npz") as temporary:
            np.savez(temporary, allow_pickle=False, **part)
    arrays = {"num": np.array(collected.num)}
    for name, accumulator in collected.accumulator.items():
        arrays |= {f"{name}/{field}": x for field, x in accumulator.state().items()}
    # Last: parts from `num` on do not count.
    with files.atomic(folder / "state.npz") as temporary:
        np.savez(temporary, allow_pickle=False, **arrays)


def _load(
    folder: Path, num_images: int, keep: Sequence[str]
) -> tuple[Collected, list[dict[str, np.ndarray]]]:
    """What was stored; nothing if there is nothing or it is damaged, as it can be made again."""
    with contextlib.suppress(Exception):
        with np.load(folder / "state.npz", allow_pickle=False) as archive:
            arrays = dict(archive)
        num = int(arrays.pop("num"))
        states: dict[str, dict[str, np.ndarray]] = {}
        for path, x in arrays.items():
            name, _, entry = path.partition("/")
            states.setdefault(name, {})[entry] = x
        accumulators = {n: GaussianAccumulator.from_state(s) for n, s in states.items()}
        parts = []
        for path in sorted(folder.glob("part-*.npz")) if keep else ():
            if int(path.stem.removeprefix("part-")) < num:
                with np.load(path, allow_pickle=False) as archive:
                    parts.append({name: archive[name] for name in keep})
        if 0 < num <= num_images and bool(parts) == bool(keep):
            return Collected(num, accumulators), parts
    return Collected(), []
