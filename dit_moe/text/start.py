"""The configs that runs on texts begin with."""

import dataclasses

from dit_moe.config import ConfigError, require
from dit_moe.text.config import TextConfig, TextDataConfig


def of_files(config: TextConfig, path: str, validation_path: str) -> TextConfig:
    """The config with files for data, where one is named.

    Raises:
      ConfigError: a file of held-out pairs is named alone.
    """
    require(
        bool(path) or not validation_path,
        f"heldout is {validation_path!r} without data; allowed: both, or data alone",
    )
    if not path:
        return config
    data = TextDataConfig(source="files", path=path, validation_path=validation_path)
    return dataclasses.replace(config, name="texts", data=data)


def plain(config: TextConfig) -> TextConfig:
    """The plain encoder-decoder with as many parameters, but for a few biases.

    What the encoder needs to read the decoder, 7 D^2 a block, is 7 / 4 of a dense feed-forward's
    ratio in both.

    Raises:
      ConfigError: it is plain, or has mixtures or feed-forwards of more than two matrices.
    """
    model = config.model
    if model.cut or model.moe is not None or model.mlp_activation not in ("gelu", "silu"):
        raise ConfigError(
            "model.cut, model.moe or model.mlp_activation is not that of a dense spiral with two "
            "matrices; allowed: cut false, moe none and 'gelu' or 'silu'"
        )
    cut = dataclasses.replace(model, cut=True, mlp_ratio=model.mlp_ratio + 7 / 4)
    return dataclasses.replace(config, name=f"{config.name}-plain", model=cut)
