"""A trained model as an open folder: its tensors, what lies beside them, and a card."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dit_moe.autoencoder.latent_space import read_latent_space, write_latent_space
from dit_moe.config import Config
from dit_moe.config.files import to_json
from dit_moe.data.classes import read_classes, write_classes
from dit_moe.runs.model_card import model_card, write_card
from dit_moe.runs.open_folder import write_tensors
from dit_moe.storage.files import atomic


def write_model(
    folder: Path,
    source: Path,
    config: Config,
    parameters: Mapping[str, np.ndarray],
    *,
    step: int,
    ema: bool,
    name: str,
    thin: bool = False,
    more: str = "",
) -> None:
    """Writes a model that was made of another one.

    Args:
      folder: is there, and empty.
      source: of the other one: its latents and classes are this one's.
      config: of the model.
      parameters: all of its network's, by dotted path.
      step: of the training, where they were saved.
      ema: they are the moving average.
      name: that the card calls the folder by.
      thin: many zeros are stored as a mask (`sparse_tensors`).
      more: a section of the card, with an empty line before it.

    Raises:
      ConfigError: latents or classes of the source cannot be read.
    """
    write_tensors(folder, parameters, config.model, ema=ema, thin=thin)
    write_beside(folder, source, config)
    card = model_card(config, read_latent_space(source), step=step, ema=ema, name=name, more=more)
    write_card(folder, card)


def write_beside(folder: Path, source: Path, config: Config) -> None:
    """Writes what is not of the parameters: the config, and latents and classes of the source.

    Raises:
      ConfigError: these cannot be read.
    """
    with atomic(folder / "config.json") as temporary:
        temporary.write_text(to_json(config))
    write_latent_space(folder, read_latent_space(source), resuming=False)
    write_classes(folder, read_classes(source))
