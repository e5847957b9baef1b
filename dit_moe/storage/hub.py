"""Names on the Hugging Face hub, files from there, and why something cannot be had."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from dit_moe.storage.errors import ConfigError

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_CHECKPOINT = re.compile(rf"({_NAME.pattern})(?::(.+))?")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
# What the hub's own clients call the one model of a repository, in their order.
_PLACES = ("", "transformer/")
_STEMS = ("model", "pytorch_model", "diffusion_pytorch_model")
_FORMS = ("safetensors.index.json", "safetensors", "bin.index.json", "bin")
_INDEX = ".index.json"
_LISTED = 10


def is_hub_name(source: str) -> bool:
    """Whether it looks like "user/name"; anything on this machine goes before."""
    return _NAME.fullmatch(source) is not None


def reason(error: Exception) -> str:
    """An error of the hub's client in a few words: their messages are pages long."""
    first_line = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first_line}"


def find_checkpoint(path: Path) -> Path:
    """A checkpoint's file or folder on this machine, downloaded where a name on the hub is meant.

    Args:
      path: a file or folder, which may be missing; "user/name" of a repository that holds one
        checkpoint; or "user/name:file" of one that holds several. What is here goes before, and
        in a folder that is here a name is none of the hub's.

    Raises:
      ConfigError: it is a name on the hub, and cannot be had from there.
    """
    named = _CHECKPOINT.fullmatch(str(path))
    if path.exists() or named is None:
        return path
    name, file = named.groups()
    if Path(name).parent.is_dir() or (file is None and path.suffix in _SUFFIXES):
        return path  # a slip of the pen, which the reader tells
    try:
        return _folder(name) if file is None else _file(name, file)
    except ConfigError:
        raise
    except Exception as error:  # the client's errors have no common class, but one remedy
        raise ConfigError(
            f"checkpoint is {str(path)!r}, which is no file or folder here and cannot be "
            f"downloaded ({reason(error)}); by hand: take it from "
            f"https://huggingface.co/{name}/tree/main and give its file or folder"
        ) from error


def _file(name: str, file: str) -> Path:
    """One file, with the shards that it names if it is an index."""
    import huggingface_hub

    path = Path(huggingface_hub.hf_hub_download(name, file))
    if not file.endswith(_INDEX):
        return path
    shards = f"{file.removesuffix(_INDEX).rpartition('.')[0]}-*"
    huggingface_hub.snapshot_download(name, allow_patterns=[file, shards])
    return path


def _folder(name: str) -> Path:
    """The folder of the one model of a repository, or its one file of weights."""
    import huggingface_hub

    files = _files(name)
    for place, stem, form in itertools.product(_PLACES, _STEMS, _FORMS):
        if f"{place}{stem}.{form}" in files:
            shards = [f"{place}{stem}-*"] if form.endswith(_INDEX) else []
            wanted = [f"{place}config.json", f"{place}{stem}.{form}", *shards]
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    weights = sorted(file for file in files if PurePosixPath(file).suffix in _SUFFIXES)
    if len(weights) != 1:
        listed = ", ".join(weights[:_LISTED]) + (", ..." if len(weights) > _LISTED else "")
        raise ConfigError(
            f"checkpoint is {name!r}, a repository with {len(weights)} files of weights"
            f"{': ' * bool(weights)}{listed}; allowed: one of them, as --checkpoint {name}:FILE"
        )
    return _file(name, weights[0])


def _files(name: str) -> Sequence[str]:
    """The names of a repository's files; where it cannot be reached, of those that are here."""
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().list_repo_files(name)
    except Exception:  # no network, or no such name
        # Raises what the download would.
        folder = Path(huggingface_hub.snapshot_download(name, local_files_only=True))
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
