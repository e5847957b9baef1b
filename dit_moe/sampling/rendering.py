"""From what the network draws to pictures: directly, or through the autoencoder of its latents."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from dit_moe.autoencoder.latent_space import LatentSpace, read_latent_space
from dit_moe.autoencoder.loading import load
from dit_moe.autoencoder.tiling import decode_tiled
from dit_moe.config import ConfigError, ModelConfig
from dit_moe.devices import hosts
from dit_moe.devices.mesh import batch_sharding, replicated
from dit_moe.storage import images
from dit_moe.storage.colours import MODES


@dataclass(frozen=True)
class Renderer:
    """How samples become pictures."""

    render: Callable[[np.ndarray], np.ndarray]
    """From x [N, H, W, C] float32 as the network sees it to uint8 pictures [N, s H, s W, C']."""
    scale: int = 1
    """s."""
    description: Mapping[str, object] | None = None
    """What decodes latents and how they were scaled, ready for JSON; None for pictures."""


def picture_shape(model: ModelConfig, renderer: Renderer) -> tuple[int, int, int]:
    """[H, W, C] of the pictures that a renderer makes of a model's samples."""
    height, width, channels = model.image_shape
    channels = channels if renderer.description is None else 3
    return height * renderer.scale, width * renderer.scale, channels


def run_renderer(
    workdir: Path, model: ModelConfig, autoencoder: str | None, mesh: Mesh
) -> Renderer | None:
    """The renderer of a run's samples; None: they stay what the network draws.

    Args:
      workdir: the run's folder.
      model: of the run.
      autoencoder: as for `build_renderer`; "none": nothing decodes.
      mesh: the devices that decode.

    Raises:
      ConfigError: it cannot be loaded, or does not fit the latents.
    """
    space = read_latent_space(workdir)
    if autoencoder == "none" or (space is None and model.channels not in MODES):
        return None
    if space is None and autoencoder is not None:
        raise ConfigError(
            f"autoencoder is {autoencoder!r} but {str(workdir)!r} is no model of latents; "
            "allowed: no --autoencoder"
        )
    return build_renderer(space, autoencoder, mesh)


_PER_DEVICE = 8  # latents that a device is given at a time; it decodes them one by one


def build_renderer(space: LatentSpace | None, autoencoder: str | None, mesh: Mesh) -> Renderer:
    """The renderer of a model's samples.

    Args:
      space: the model's latent space; None for a model of pictures.
      autoencoder: what decodes latents, for `autoencoder.loading.load`; None: the one that
        encoded the training data.
      mesh: the devices that decode.

    Raises:
      ConfigError: the autoencoder cannot be loaded or does not fit the latents.
    """
    if space is None:
        return Renderer(images.to_uint8)
    loaded = load(autoencoder or space.autoencoder.source)
    if autoencoder is None and loaded.sha256 != space.autoencoder.sha256:
        raise ConfigError(
            f"autoencoder {loaded.source!r} has other weights ({loaded.sha256[:12]}...) than "
            f"the one that made the training data ({space.autoencoder.sha256[:12]}...); allowed: "
            "that one, or this one if it is asked for by --autoencoder"
        )
    latent_channels = len(space.mean)
    if loaded.config.latent_channels != latent_channels:
        raise ConfigError(
            f"autoencoder is {loaded.source!r} with {loaded.config.latent_channels} latent "
            f"channels; allowed: one with {latent_channels}, as the model's latents"
        )
    model = jax.device_put(loaded.model, replicated(mesh))
    spec = batch_sharding(mesh).spec
    decode = jax.jit(
        jax.shard_map(decode_tiled, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=spec)
    )

    def render(x_NxHxWxC: np.ndarray) -> np.ndarray:
        size, pictures = _PER_DEVICE * mesh.size, []
        for first in range(0, len(x_NxHxWxC), size):
            latent = space.denormalize(x_NxHxWxC[first : first + size])
            # Filled up to one shape, so that the decoder is compiled once.
            padded = np.resize(latent, (size, *latent.shape[1:]))
            picture = decode(model, jax.device_put(padded, batch_sharding(mesh)))
            pixels = space.autoencoder.pixels(hosts.fetch(picture)[: len(latent)])
            pictures.append(images.to_uint8(pixels))
        return np.concatenate(pictures)

    description = {
        "autoencoder": loaded.source,
        "sha256": loaded.sha256,
        "mean": space.mean,
        "std": space.std,
    }
    if space.autoencoder.pixel_range != (-1, 1):
        description["pixel_range"] = space.autoencoder.pixel_range
    return Renderer(render, loaded.config.downsampling, description)
