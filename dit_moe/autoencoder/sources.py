"""Where the weights of an autoencoder are: in a folder, in a file, or on the Hugging Face hub."""

import json
import shlex
from pathlib import Path
from typing import NamedTuple

import huggingface_hub

from dit_moe.config import ConfigError
from dit_moe.storage.hub import is_hub_name, reason

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
# For a shell's single quotes.
_CONVERSION = (
    "import torch; from safetensors.torch import save_file; t = torch.load({source}, "
    'map_location="cpu", weights_only=True); t = t.get("state_dict", t); '
    'save_file({{k: v.contiguous() for k, v in t.items() if hasattr(v, "contiguous")}}, {target})'
)


class Files(NamedTuple):
    """What describes an autoencoder."""

    weights: Path
    config: Path | None
    """A diffusers `config.json`; None: KL-f8."""


def locate(source: str) -> Files:
    """Finds the files of a source, downloading them where they are not on this machine yet.

    Args:
      source: a folder with `config.json` and `diffusion_pytorch_model.safetensors`; a
        `.safetensors` file, with `config.json` beside it or of the shape KL-f8; or a name on the
        Hugging Face hub, such as "stabilityai/sd-vae-ft-mse".

    Raises:
      ConfigError: if there is no such source, telling how to get it.
    """
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        _check_format(path)
        config = path.with_name(CONFIG)
        return Files(path, config if config.is_file() else None)
    if not is_hub_name(source):
        raise ConfigError(
            f"autoencoder is {source!r}, which does not exist; allowed: a folder with {CONFIG} and "
            f"{WEIGHTS}, a .safetensors file, or a Hugging Face name such as "
            "'stabilityai/sd-vae-ft-mse'"
        )
    return _cached(source) or _download(source)


def is_local(source: str) -> bool:
    """Whether `locate` finds the source without a download."""
    if Path(source).exists():
        return True
    return is_hub_name(source) and _cached(source) is not None


def _folder(folder: Path) -> Files:
    files = Files(folder / WEIGHTS, folder / CONFIG)
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if not missing:
        return files
    for pickled in sorted(folder.glob("*.bin")):
        _check_format(pickled)
    raise ConfigError(
        f"autoencoder is {str(folder)!r}, which has no {' and no '.join(missing)}; allowed: a "
        "folder with both, as diffusers writes it"
    )


def _check_format(path: Path) -> None:
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        source, target = (json.dumps(str(p)) for p in (path, f"{path.stem}.safetensors"))
        code = _CONVERSION.format(source=source, target=target)
        raise ConfigError(
            f"{path} is a pickle, which could run any code when read; take the .safetensors file "
            f"that is published beside it, or convert it with: python -c {shlex.quote(code)}"
        )
    if path.suffix != ".safetensors":
        raise ConfigError(f"autoencoder is {str(path)!r}; allowed: a .safetensors file or a folder")


def _cached(name: str) -> Files | None:
    config, weights = (
        huggingface_hub.try_to_load_from_cache(name, file) for file in (CONFIG, WEIGHTS)
    )
    if isinstance(config, str) and isinstance(weights, str):
        return Files(Path(weights), Path(config))
    return None


def _download(name: str) -> Files:
    try:
        config, weights = (
            Path(huggingface_hub.hf_hub_download(name, file)) for file in (CONFIG, WEIGHTS)
        )
    except Exception as error:  # the client's errors have no common class, but one remedy
        raise ConfigError(
            f"autoencoder is {name!r}, which is no file or folder here and cannot be downloaded "
            f"({reason(error)}); by hand: put {CONFIG} and {WEIGHTS} from "
            f"https://huggingface.co/{name}/tree/main into a folder, and pass that folder"
        ) from error
    return Files(weights, config)
