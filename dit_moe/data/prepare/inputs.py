"""Opens what is to be prepared, of whatever kind it is."""

from pathlib import Path
from typing import Literal

from dit_moe.config import ConfigError
from dit_moe.data.prepare.input import Input, Kind
from dit_moe.data.prepare.inputs_files import open_image_folder, open_zip


def open_input(
    source: Kind | Literal["auto"], path: str, split: str, *, follow_links: bool = False
) -> Input:
    """Lists what is to be prepared.

    Args:
      source: its kind; "auto" tells it from the path.
      path: a folder of class folders, a .zip of one, or a TFDS folder or name.
      split: of a TFDS data set, such as "train" or "train[:10%]"; unused by the others.
      follow_links: whether links in a folder of class folders are followed, wherever they lead.

    Raises:
      ConfigError: it cannot be used; the message is one sentence.
    """
    if source == "auto":
        source = _guess(Path(path))
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
    if not found.entries:
        raise ConfigError(f"input {path!r} holds no images; allowed: one or more")
    for name in found.classes:
        if name != name.strip() or not name.isprintable():
            raise ConfigError(
                f"input {path!r} has a class named {name!r}; allowed: printable characters, no "
                "space at either end"
            )
    return found


def _guess(path: Path) -> Kind:
    if path.is_dir():
        return "tfds" if (path / "dataset_info.json").is_file() else "image_folder"
    if path.is_file():
        return "zip"
    raise ConfigError(
        f"input {str(path)!r} does not exist; allowed: a folder of class folders, a .zip of one, a "
        "folder of a TFDS data set, or, with --source tfds, its name"
    )
