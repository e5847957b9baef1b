"""Opens what is to be prepared, of whatever kind it is."""

from pathlib import Path
from typing import Literal

from dit_moe.config import ConfigError
from dit_moe.data.prepare.input import Input, Kind
from dit_moe.data.prepare.inputs_files import open_image_folder, open_zip
from dit_moe.data.prepare.inputs_parquet import open_parquet
from dit_moe.data.prepare.inputs_webdataset import open_webdataset
from dit_moe.data.prepare.shards import is_pattern


def open_input(
    source: Kind | Literal["auto"], path: str, split: str, *, follow_links: bool = False
) -> Input:
    """Lists what is to be prepared.

    Args:
      source: its kind; "auto" tells it from the path.
      path: a folder of class folders, a .zip of one, a TFDS folder or name, or files of WebDataset
        or parquet: one, a pattern, or a folder of them.
      split: of a TFDS data set, such as "train" or "train[:10%]"; of a folder of files whose names
        tell splits; unused by the others.
      follow_links: whether links in a folder of class folders are followed, wherever they lead.

    Raises:
      ConfigError: it cannot be used; the message is one sentence.
    """
    if source == "auto":
        source = _guess(path)
    if follow_links and source != "image_folder":
        raise ConfigError(f"follow_links is given for an input of {source}; allowed: image_folder")
    match source:
        case "image_folder":
            found = open_image_folder(Path(path), follow_links=follow_links)
        case "zip":
            found = open_zip(Path(path))
        case "tfds":
            from dit_moe.data.prepare.inputs_tfds import open_tfds  # a second to import

            found = open_tfds(path, split)
        case "webdataset":
            found = open_webdataset(path, split)
        case "parquet":
            found = open_parquet(path, split)
    if not found.entries:
        raise ConfigError(f"input {path!r} holds no images; allowed: one or more")
    for name in found.classes:
        if name != name.strip() or not name.isprintable():
            raise ConfigError(
                f"input {path!r} has a class named {name!r}; allowed: printable characters, no "
                "space at either end"
            )
    return found


_SHARDS: dict[str, Kind] = {".tar": "webdataset", ".parquet": "parquet"}


def _guess(path: str) -> Kind:
    folder = Path(path)
    if folder.is_dir():
        if (folder / "dataset_info.json").is_file():
            return "tfds"
        for place in (folder, folder / "data"):  # the hub's place for parquet files
            for suffix, kind in _SHARDS.items():
                if next(place.glob(f"*{suffix}"), None) is not None:
                    return kind
        return "image_folder"
    if folder.is_file() or is_pattern(path):
        return _SHARDS.get(folder.suffix, "zip")
    raise ConfigError(
        f"input {path!r} does not exist; allowed: a folder of class folders, a .zip of one, a "
        "folder of a TFDS data set, .tar files of WebDataset or .parquet files (one, a pattern or "
        "a folder), or, with --source tfds, the name of a TFDS data set"
    )
