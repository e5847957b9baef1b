"""Opens what is to be prepared, of whatever kind it is."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dit_moe.config import ConfigError
from dit_moe.config.rules import listing
from dit_moe.data.idx_files import is_images
from dit_moe.data.picture_files import is_visible
from dit_moe.data.prepare.input import Input, Kind
from dit_moe.data.prepare.inputs_files import open_image_folder, open_zip
from dit_moe.data.prepare.inputs_idx import open_idx
from dit_moe.data.prepare.inputs_latents import is_edm2, is_fast_dit, open_edm2, open_fast_dit
from dit_moe.data.prepare.inputs_parquet import open_parquet
from dit_moe.data.prepare.inputs_webdataset import open_webdataset
from dit_moe.data.prepare.shards import is_pattern


def open_input(
    source: Kind | Literal["auto"],
    path: str,
    split: str,
    *,
    follow_links: bool = False,
    class_names: Sequence[str] = (),
) -> Input:
    """Lists what is to be prepared.

    Args:
      source: its kind; "auto" tells it from the path.
      path: a folder of class folders, a .zip of one, a TFDS folder or name, a folder or file of the
        format of MNIST, files of WebDataset or parquet (one, a pattern, or a folder of them), or
        latents of fast-DiT or EDM2.
      split: of a TFDS data set, such as "train" or "train[:10%]"; of a folder of files whose names
        tell splits; unused by the others.
      follow_links: whether links in a folder of files are followed, wherever they lead.
      class_names: what classes are called that the input itself only numbers.

    Raises:
      ConfigError: it cannot be used; the message is one sentence.
    """
    if source == "auto":
        source = _guess(path)
    folders = ("image_folder", "fast_dit", "edm2")
    if follow_links and source not in folders:
        raise ConfigError(
            f"follow_links is given for an input of {source}; allowed: {', '.join(folders)}"
        )
    match source:
        case "image_folder":
            found = open_image_folder(Path(path), follow_links=follow_links)
        case "zip":
            found = open_zip(Path(path))
        case "tfds":
            from dit_moe.data.prepare.inputs_tfds import open_tfds  # a second to import

            found = open_tfds(path, split)
        case "idx":
            found = open_idx(Path(path), split)
        case "webdataset":
            found = open_webdataset(path, split)
        case "parquet":
            found = open_parquet(path, split)
        case "fast_dit":
            found = open_fast_dit(Path(path), follow_links=follow_links)
        case "edm2":
            found = open_edm2(Path(path), follow_links=follow_links)
    if not found.entries:
        raise ConfigError(f"input {path!r} holds no images; allowed: one or more")
    if class_names:
        found = _named(found, class_names, path)
    for name in found.classes:
        if name != name.strip() or not name.isprintable():
            raise ConfigError(
                f"input {path!r} has a class named {name!r}; allowed: printable characters, no "
                "space at either end"
            )
    return found


def _named(found: Input, names: Sequence[str], path: str) -> Input:
    if found.classes != tuple(str(number) for number in range(len(found.classes))):
        raise ConfigError(
            f"class_names is {listing(names)}, but input {path!r} names its classes itself "
            f"({listing(found.classes)}); allowed: none"
        )
    if len(names) < len(found.classes) or len(set(names)) < len(names):
        raise ConfigError(
            f"class_names is {listing(names)}; allowed: different names of all "
            f"{len(found.classes)} classes, with commas between"
        )
    return dataclasses.replace(found, classes=tuple(names))


_SHARDS: dict[str, Kind] = {".tar": "webdataset", ".parquet": "parquet"}


def _guess(path: str) -> Kind:
    folder = Path(path)
    if folder.is_dir():
        if (folder / "dataset_info.json").is_file():
            return "tfds"
        if is_fast_dit(folder) or is_edm2(folder):
            return "fast_dit" if is_fast_dit(folder) else "edm2"
        if (kind := _kind_of_shards(folder)) is not None:
            return kind
        return "idx" if any(map(is_images, folder.iterdir())) else "image_folder"
    if folder.is_file() or is_pattern(path):
        return "idx" if is_images(folder) else _SHARDS.get(folder.suffix, "zip")
    raise ConfigError(
        f"input {path!r} does not exist; allowed: a folder of class folders, a .zip of one, a "
        "folder of a TFDS data set, idx files, .tar files of WebDataset or .parquet files (one, a "
        "pattern or a folder), or, with --source tfds, the name of a TFDS data set"
    )


def _kind_of_shards(folder: Path) -> Kind | None:
    """What lies in a folder, or in its `data`, where the hub has parquet files; None beside others,
    which may be class folders."""
    beside = [p.name for p in folder.iterdir() if p.is_dir() and is_visible(p.name)]
    if beside not in ([], ["data"]):
        return None
    for suffix, kind in _SHARDS.items():
        if any(next(place.glob(f"*{suffix}"), None) for place in (folder, folder / "data")):
            return kind
    return None
