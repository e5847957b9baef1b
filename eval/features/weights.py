"""Weights of the feature networks: where they are published, reading, checking, converting."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.config.command_line import command_parser, end, run_command
from dit_moe.storage.pickles import load_pickle

_EXAMPLE = """\
examples:
  python -m eval.features.weights
  python -m eval.features.weights --network inception --check pt_inception-2015-12-05-6726825d.pth
  python -m eval.features.weights --network inception \\
      --check pt_inception-2015-12-05-6726825d.pth --convert inception.safetensors

.safetensors files are read without PyTorch. .pth files need it (pip install torch), once: convert
them. No pickled code is ever executed.
"""


class WeightsError(ConfigError):
    """A file of weights cannot be used; the message is one sentence for its user."""


@dataclass(frozen=True)
class Published:
    """Where a network's weights are published."""

    title: str
    places: tuple[str, ...]


PUBLISHED = {
    "inception": Published(
        "Inception-v3 of 2015-12-05, for FID, sFID and the Inception Score; any of",
        (
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
            "pt_inception-2015-12-05-6726825d.pth",
            "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
            "weights-inception-2015-12-05-6726825d.pth",
        ),
    ),
    "dinov2": Published(
        "DINOv2 ViT-L/14, for FD-DINOv2; any of",
        (
            "https://huggingface.co/facebook/dinov2-large (model.safetensors)",
            "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        ),
    ),
}


def read(path: Path, network: str) -> dict[str, np.ndarray]:
    """Reads the published tensors of a network.

    Args:
        path: `.safetensors`, or `.pth` or `.pt` of PyTorch.
        network: "inception" or "dinov2".

    Returns:
        float32 by published name: exactly the network's `layout`.

    Raises:
        WeightsError: the file is missing, of another kind, damaged (see `check_digest`), not
            readable without executing code, needs PyTorch where there is none, or does not fit the
            network.
    """
    from . import dinov2
    from .networks import NETWORKS

    check_digest(path)
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if network == "dinov2":
        tensors = dinov2.renamed(tensors)
    # Only training uses these, and some files lack them.
    unused = ("num_batches_tracked", "mask_token")
    tensors = {name: x for name, x in tensors.items() if not name.endswith(unused)}
    _check_layout(path, network, tensors, NETWORKS[network].layout())
    tensors = {name: x.astype(np.float32, copy=False) for name, x in tensors.items()}
    wrong = [name for name, x in tensors.items() if not np.isfinite(x).all()]
    if wrong:
        raise WeightsError(f"{path} holds weights that are not finite: {_some(wrong)}.")
    return tensors


def check_digest(path: Path) -> str:
    """The file's SHA-256 in hexadecimal; a published name must tell its first digits truly.

    PyTorch's habit is to end names in a dash and 8 digits, such as "...-6726825d.pth".

    Raises:
        WeightsError: there is no such file, or the digits differ.
    """
    from dit_moe.storage import files

    if not path.is_file():
        raise WeightsError(f"{path} {'is not a file' if path.exists() else 'does not exist'}.")
    digest = files.sha256(path)
    names = [place.rpartition("/")[2] for p in PUBLISHED.values() for place in p.places]
    told = re.fullmatch(r".*-([0-9a-f]{8})\.pth", path.name)
    if told and path.name in names and not digest.startswith(told[1]):
        raise WeightsError(
            f"{path} is damaged or another file: its SHA-256 begins with {digest[:8]}, but should "
            f"with {told[1]}."
        )
    return digest


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except Exception as error:
        raise WeightsError(f"{path} cannot be read as safetensors ({_reason(error)}).") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    if path.suffix not in (".pth", ".pt"):
        raise WeightsError(f"{path} must end in .safetensors, .pth or .pt.")
    try:
        content = load_pickle(path)
    except ConfigError as error:
        raise WeightsError(str(error)) from None
    import torch  # pyright: ignore[reportMissingImports]

    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(x, torch.Tensor) for name, x in content.items()
    ):
        raise WeightsError(f"{path} holds something else than tensors by name.")
    return {
        name: (x.float() if x.is_floating_point() else x).numpy() for name, x in content.items()
    }


def _check_layout(
    path: Path,
    network: str,
    tensors: Mapping[str, np.ndarray],
    layout: Mapping[str, tuple[int, ...]],
) -> None:
    faults = []
    if missing := [name for name in layout if name not in tensors]:
        faults.append(f"lacks {_some(missing)}")
    if extra := [name for name in tensors if name not in layout]:
        faults.append(f"has {_some(extra)} too many")
    wrong = [
        f"{name} as {x.dtype} {x.shape} instead of float32 {layout[name]}"
        for name, x in tensors.items()
        if name in layout and (x.shape != layout[name] or not np.issubdtype(x.dtype, np.floating))
    ]
    if wrong:
        faults.append(f"has {_some(wrong)}")
    if faults:
        raise WeightsError(
            f"{path} does not hold the weights of {network}: it {'; '.join(faults)}."
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def write(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes tensors as `.safetensors`.

    Raises:
        WeightsError: the path does not end so, or cannot be written.
    """
    from safetensors.numpy import save_file

    from dit_moe.storage import files

    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} must end in .safetensors.")
    try:
        with files.atomic(path) as temporary:
            save_file({k: np.ascontiguousarray(x) for k, x in tensors.items()}, temporary)
    except Exception as error:
        raise WeightsError(f"{path} cannot be written ({_reason(error)}).") from error


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "python -m eval.features.weights",
        "Tells where the weights of the feature networks are published; checks and converts a file "
        "of them.",
        _EXAMPLE,
    )
    add = parser.add_argument
    add("--network", choices=tuple(PUBLISHED), help="whose weights --check holds")
    add("--check", type=Path, metavar="FILE", help="weights to read and compare with the network")
    add("--convert", type=Path, metavar="FILE", help="where they are written as .safetensors")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.network is None) != (options.check is None):
        parser.error("--network and --check belong together")
    if options.convert is not None and options.check is None:
        parser.error("--convert needs --check")
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    if options.check is None:
        for name, published in PUBLISHED.items():
            print(f"{name}: {published.title}", *published.places, sep="\n    ")
        return
    tensors = read(options.check, options.network)
    count = sum(x.size for x in tensors.values())
    print(
        f"{options.check} holds the weights of {options.network}: {len(tensors)} tensors, "
        f"{count:,} numbers; SHA-256 {check_digest(options.check)}."
    )
    if options.convert is not None:
        write(tensors, options.convert)
        print(f"Written: {options.convert}")


if __name__ == "__main__":
    end(main)
