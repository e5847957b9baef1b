"""Peers' checkpoints become run folders."""

from pathlib import Path
from typing import Literal, NamedTuple

from dit_moe.autoencoder.latent_space import AutoencoderCard, LatentSpace
from dit_moe.config import Config, ConfigError
from dit_moe.convert import Family
from dit_moe.convert.clocks import exchange_clocks
from dit_moe.convert.diffusers_format import find_diffusers, read_diffusers
from dit_moe.convert.formats import PEERS
from dit_moe.convert.networks import Network, read_checkpoint
from dit_moe.convert.peers import Pieces
from dit_moe.convert.recognise import read_arguments, recognise
from dit_moe.runs.writer import write_run
from dit_moe.storage.colours import MODES
from dit_moe.storage.hub import find_checkpoint

_FACTOR = 0.18215
SD_VAE = LatentSpace(
    AutoencoderCard(
        source="stabilityai/sd-vae-ft-mse",
        sha256="a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
        scaling_factor=_FACTOR,
    ),
    mean=(0.0,) * 4,
    std=(1 / _FACTOR,) * 4,
)
"""The latents that all families were trained on; the hash is of the published
diffusion_pytorch_model.safetensors."""


class Imported(NamedTuple):
    """What a checkpoint became."""

    config: Config
    network: Network
    """What was taken of the checkpoint."""


def import_checkpoint(
    family: Family,
    checkpoint: Path,
    output: Path,
    *,
    model_json: Path | None = None,
    which: Literal["ema", "raw"] | None = None,
    network: str | None = None,
) -> Imported:
    """Writes a peer's checkpoint as a run folder.

    Args:
      family: whose checkpoint it is.
      checkpoint: see `networks.read_checkpoint`; of DiT, a folder of diffusers, too; or a name on
        the hub, see `hub.find_checkpoint`.
      output: a new folder.
      model_json: the peer's constructor arguments, for what shapes do not tell.
      which: the moving average or the parameters; None takes the average where there is one.
      network: one of several by the name that the checkpoint has for it, in place of `which`.

    Raises:
      ConfigError: something does not fit; nothing is written.
      OSError: the output cannot be written.
    """
    arguments = read_arguments(model_json) if model_json else None
    checkpoint = find_checkpoint(checkpoint)
    folder = find_diffusers(checkpoint)
    if folder is None:
        taken = read_checkpoint(checkpoint, which, network)
    elif network is not None:
        raise ConfigError(f"network is {network!r}, but {folder} is diffusers' and holds one")
    elif family == "dit":
        found, told = read_diffusers(folder)
        taken = Network(found, "", which)
        arguments = {**told, **(arguments or {})}
    else:
        raise ConfigError(f"family is {family!r}, but {folder} is diffusers'; allowed: 'dit'")
    config = recognise(family, {key: t.shape for key, t in taken.tensors.items()}, arguments)
    tensors = PEERS[family].usual_names(taken.tensors)
    pieces = Pieces(config.model, tensors)
    if PEERS[family].other_clock:  # which only tensors that fit can be changed to
        pieces = Pieces(config.model, exchange_clocks(tensors))
    if config.model.channels not in MODES:
        raise ConfigError(
            f"channels is {config.model.channels}; allowed: 4 (latents), or 1, 2 or 3 (pictures)"
        )
    space = SD_VAE if config.model.channels == 4 else None
    write_run(output, config, space, pieces, only_average=taken.kind == "ema")
    return Imported(config, taken)
