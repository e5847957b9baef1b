"""Autoencoders with published weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx

from dit_moe.autoencoder.config import AutoencoderConfig, read_config
from dit_moe.autoencoder.names import published_names, strip
from dit_moe.autoencoder.network import Autoencoder
from dit_moe.autoencoder.sources import Files, locate
from dit_moe.config import ConfigError
from dit_moe.nn.flat import bind, variables
from dit_moe.storage.files import sha256
from dit_moe.storage.records import check_plain

_FLOATS = ("F64", "F32", "F16", "BF16")


class Loaded(NamedTuple):
    """An autoencoder and where it came from."""

    model: Autoencoder
    config: AutoencoderConfig
    sha256: str
    """Hash of the file of weights, hexadecimal."""
    source: str
    """The absolute path, or the name on the hub."""


def load(source: str, dtype: Literal["float32", "bfloat16"] = "float32") -> Loaded:
    """The autoencoder of a source.

    Args:
      source: a folder, a `.safetensors` file, or a Hugging Face name; see `sources.locate`. The
        tensors may be named as in diffusers or as in CompVis/latent-diffusion, alone or within a
        Stable Diffusion checkpoint.
      dtype: of the computation, float32 or bfloat16; parameters are float32 in either.

    Raises:
      ConfigError: if the source is not there, its path is no text in UTF-8, or its tensors or
        config do not fit.
    """
    # The path is kept with data sets and runs, which are used from other folders too.
    place = str(Path(source).resolve()) if Path(source).exists() else source
    check_plain(place, "autoencoder")
    files = locate(source)
    config = AutoencoderConfig() if files.config is None else read_config(files.config)
    abstract = nnx.eval_shape(lambda: Autoencoder(config, jnp.dtype(dtype), nnx.Rngs(0)))
    shapes = {path: variable.shape for path, variable in variables(abstract).items()}
    parameters = _read(files, shapes, len(config.block_out_channels))
    model = bind(abstract, {path: jnp.asarray(value) for path, value in parameters.items()})
    return Loaded(model, config, sha256(files.weights), place)


def _read(
    files: Files, shapes: Mapping[str, tuple[int, ...]], num_levels: int
) -> dict[str, np.ndarray]:
    """Parameters float32 by dotted path, or a ConfigError that tells how the tensors differ."""
    parameters, typed, shaped, infinite = {}, [], [], []
    try:
        with safetensors.safe_open(files.weights, framework="numpy") as file:
            names = strip(file.keys())
            published = published_names(shapes, names, num_levels)
            for path, name in published.items():
                if name not in names:
                    continue
                if file.get_slice(names[name]).get_dtype() not in _FLOATS:
                    typed.append(name)
                    continue
                tensor = _to_layout(file.get_tensor(names[name]), len(shapes[path]))
                if tensor.shape != shapes[path]:
                    shaped.append(name)
                if not np.isfinite(tensor).all():
                    infinite.append(name)
                parameters[path] = tensor
    except safetensors.SafetensorError as error:
        raise ConfigError(f"{files.weights} is not a whole safetensors file: {error}") from None
    wrong = {
        "missing": [name for name in published.values() if name not in names],
        "unexpected": sorted(set(names) - set(published.values())),
        "not of a plain float type": typed,
        "of another shape": shaped,
        "with numbers that are not finite": infinite,
    }
    if any(wrong.values()):
        listing = "; ".join(
            f"{len(found)} {kind} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
            for kind, found in wrong.items()
            if found
        )
        shape = "the default shape, KL-f8" if files.config is None else str(files.config)
        raise ConfigError(f"the tensors of {files.weights} do not fit {shape}: {listing}")
    return parameters


def _to_layout(tensor: Any, ndim: int) -> np.ndarray:
    """PyTorch's [out, in, height, width] or [out, in] to Flax's reverse, in float32."""
    tensor = np.asarray(tensor, np.float32)
    if tensor.ndim == 4 and ndim == 2 and tensor.shape[2:] == (1, 1):
        tensor = tensor[:, :, 0, 0]  # a linear layer kept as a 1x1 convolution
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
