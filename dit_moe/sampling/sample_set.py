"""A set of samples on disk, made in parts so that an interrupted one can go on."""

import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL.Image import Image
from tqdm import tqdm

from dit_moe.config import ConfigError
from dit_moe.data.classes import ModelClasses
from dit_moe.sampling.run_sampler import RunSampler
from dit_moe.sampling.sample_parts import Parts, differences, read_description
from dit_moe.storage import images
from dit_moe.storage.files import atomic, lock

GRID_ROWS, GRID_COLUMNS = 16, 12


def write_sample_set(sampler: RunSampler, output: Path) -> tuple[Path, Path]:
    """Draws a set into `output`/samples.npz and `output`/grid.png, and returns their paths.

    Finished batches lie in `output`/samples.parts until the set is complete. The same call with
    the same weights, whatever its number of images or batch size, goes on from them, or from the
    complete set. Another one replaces a complete set when its own is drawn, and says so.
    `output`/samples.json says what was drawn. Where labels are not the
    numbers of the data's classes, or those have names, samples.npz holds `class_numbers` [K] or
    `class_names` [K] too.

    Raises:
      ConfigError: `output` holds something else, or batches of another set, or is too small, or
        another process draws into it; or the samples are not finite.
      OSError: the output cannot be written.
    """
    npz, png, made_of = (output / name for name in ("samples.npz", "grid.png", "samples.json"))
    num_samples = sampler.request.num_samples
    known = read_description(made_of) if npz.is_file() else None
    other = [made_of.name] if known is None else differences(known, sampler.identity)
    if known and not other and known["num_samples"] == num_samples and png.is_file():
        print(f"{npz} is there already.")
        return npz, png
    _check_room(sampler, output)
    busy = ConfigError(
        f"output is {str(output)!r}, into which another process draws; allowed: another --output"
    )
    with lock(output / ".lock", busy):
        parts = Parts(output / "samples.parts", sampler.identity)
        if other and npz.exists():
            print(f"{npz} differs in {', '.join(other)}; it is replaced when the set is drawn.")
        elif known and not parts.done:
            parts.adopt(npz, known["num_samples"])
        _draw(sampler, parts)
        made_of.unlink(missing_ok=True)  # of the set that is replaced
        labels = sampler.request.labels()
        shown = grid_choice(labels)
        beside = {"arr_1": labels, **class_arrays(sampler.classes)}
        picture = _join(parts.files, beside, npz, shown)
        with atomic(png) as temporary:
            _grid(sampler, picture, shown).save(temporary)
        with atomic(made_of) as temporary:
            temporary.write_text(json.dumps(sampler.identity, indent=2) + "\n")
        if parts.done == num_samples:  # those of a larger set may be gone on from
            parts.remove()
    return npz, png


def _check_room(sampler: RunSampler, output: Path) -> None:
    """Checks that the disk can hold the set at all."""
    there = next(
        folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists()
    )
    size, free = sampler.request.num_samples * sampler.image_bytes, shutil.disk_usage(there).free
    if size > free:
        raise ConfigError(
            f"num_samples is {sampler.request.num_samples}, which takes {size / 1e9:.3g} GB, but "
            f"output {str(output)!r} has {free / 1e9:.3g} GB free; allowed: fewer, or another "
            "--output"
        )


def _draw(sampler: RunSampler, parts: Parts) -> None:
    """Draws what is missing."""
    num_samples = sampler.request.num_samples
    done = min(parts.done, num_samples)
    if done:
        print(f"Goes on after {done:,} images that are there.")
    with tqdm(total=num_samples, initial=done, unit="image", dynamic_ncols=True) as bar:
        for x_NxHxWxC in sampler.batches(done):
            parts.add(x_NxHxWxC)
            bar.update(len(x_NxHxWxC))


def _grid(sampler: RunSampler, picture: np.ndarray, shown: np.ndarray) -> Image:
    """The images with the numbers `shown`, and beside each what was known of it."""
    picture = picture if sampler.image_shape else images.false_colours(picture)
    if sampler.steering is not None:
        pairs = np.stack([sampler.steering.pictures(shown), picture], axis=1)
        picture, shown = pairs.reshape(-1, *picture.shape[1:]), np.repeat(shown, 2)
    return images.grid(picture, sampler.classes.titles(sampler.request.labels()[shown]))


def class_arrays(classes: ModelClasses) -> dict[str, np.ndarray]:
    """What tells which classes of the data the labels are, where they are more than numbers."""
    arrays: dict[str, np.ndarray] = {}
    if classes.numbers != tuple(range(len(classes.numbers))):
        arrays["class_numbers"] = np.asarray(classes.numbers, np.int64)
    if classes.names:
        arrays["class_names"] = np.asarray(classes.names, np.str_)
    return arrays


def _join(
    files: Sequence[Path], beside: Mapping[str, np.ndarray], npz: Path, shown: np.ndarray
) -> np.ndarray:
    """Writes as many images as labels, a part at a time; returns those that are to be shown."""
    first = np.load(files[0], mmap_mode="r")
    shape = (len(beside["arr_1"]), *first.shape[1:])
    header = {"descr": first.dtype.str, "fortran_order": False, "shape": shape}
    kept = np.empty((len(shown), *first.shape[1:]), first.dtype)
    start = 0
    with atomic(npz) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for file in files:
                part = np.load(file, mmap_mode="r")[: shape[0] - start]
                member.write(part.data)
                here = (shown >= start) & (shown < start + len(part))
                kept[here] = part[shown[here] - start]
                start += len(part)
        for name, array in beside.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return kept


def grid_choice(labels_N: np.ndarray) -> np.ndarray:
    """The first few images of the first few classes."""
    classes = list(dict.fromkeys(labels_N.tolist()))[:GRID_ROWS]
    return np.concatenate([np.flatnonzero(labels_N == c)[:GRID_COLUMNS] for c in classes])
