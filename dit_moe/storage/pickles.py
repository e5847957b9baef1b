"""PyTorch's own files, whose pickles are never executed."""

import argparse
import json
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

from dit_moe.storage.errors import ConfigError

# For a shell's single quotes.
_ALONE = (
    'import torch; c = torch.load({source}, map_location="cpu", weights_only=False); '
    'torch.save({{k: c[k] for k in ("ema", "model", "state_dict") if k in c}}, {target})'
)


def load_pickle(path: Path) -> Any:
    """What a file of PyTorch holds: tensors in memory or mapped, containers, numbers and texts.

    Raises:
      ConfigError: the file is damaged, would have to execute code to be read, or needs PyTorch
        where there is none.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            f"{path} needs PyTorch to be read: pip install torch --index-url "
            "https://download.pytorch.org/whl/cpu; .safetensors files need nothing"
        ) from None
    try:
        # The peers' training scripts keep their command line beside the weights; it is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(
                path,
                map_location="cpu",
                weights_only=True,
                mmap=zipfile.is_zipfile(path),  # not possible in PyTorch's format before 1.6
            )
    except Exception as error:
        raise ConfigError(_refusal(path, error)) from None


def _refusal(path: Path, error: Exception) -> str:
    """PyTorch's own message is a page long and tells how to execute the file after all."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    if found is None:
        return (
            f"{path} is damaged, or holds more than tensors, which is refused because reading it "
            f"can execute code ({type(error).__name__}); allowed: a whole file of weights alone, "
            "or .safetensors"
        )
    target = path.with_name(f"{path.stem}-weights.pt")
    code = _ALONE.format(source=json.dumps(str(path)), target=json.dumps(str(target)))
    return (
        f"{path} holds {found[1]} beside its tensors, which is refused because reading it can "
        "execute code; allowed: .safetensors, or the weights alone, which whoever trusts the "
        f"file's author saves with: python -c {shlex.quote(code)}"
    )
