"""The autoencoder's shape, read from the `config.json` that diffusers writes."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from dit_moe.config import ConfigError
from dit_moe.config.rules import RULES, PositiveFloat, PositiveInt
from dit_moe.storage.records import read_json, shown


@dataclass(frozen=True, config=RULES)
class AutoencoderConfig:
    """A convolutional variational autoencoder (Rombach et al. 2022, appendix E).

    Names are those of diffusers' `AutoencoderKL`; the defaults are KL-f8, which sd-vae-ft-ema and
    sd-vae-ft-mse share.
    """

    in_channels: PositiveInt = 3
    out_channels: PositiveInt = 3
    latent_channels: PositiveInt = 4
    block_out_channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (
        128,
        256,
        512,
        512,
    )
    """Channels per level; each level but the last halves height and width."""
    layers_per_block: PositiveInt = 2
    """Residual blocks per level of the encoder; the decoder has one more."""
    norm_num_groups: PositiveInt = 32
    act_fn: Literal["silu", "swish"] = "silu"
    """Two names of the same activation."""
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    """A 1x1 convolution between encoder and moments."""
    use_post_quant_conv: bool = True
    """A 1x1 convolution between latent and decoder."""
    scaling_factor: PositiveFloat = 0.18215
    """Brings latents to about unit variance, for the diffusion model."""
    shift_factor: float | None = None
    """Subtracted from latents before they are scaled; None: 0."""

    def __post_init__(self) -> None:
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"norm_num_groups is {self.norm_num_groups}; allowed: a divisor of every one "
                    f"of block_out_channels {self.block_out_channels}"
                )

    @property
    def downsampling(self) -> int:
        """Image pixels per latent pixel, along each side."""
        return 2 ** (len(self.block_out_channels) - 1)


def read_config(path: Path) -> AutoencoderConfig:
    """Reads the `config.json` of a diffusers `AutoencoderKL`.

    Raises:
      ConfigError: naming the first field that is missing, wrong or not supported.
    """
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; expected an autoencoder's config.json") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no object; expected an autoencoder's config.json")
    try:
        return AutoencoderConfig(**_supported(values))
    except pydantic.ValidationError as error:
        raise ConfigError(f"{path}: {_describe(error)}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


# What a config.json may say about parts that this network has in one kind only.
_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


def _supported(values: dict[str, Any]) -> dict[str, Any]:
    """The network's own fields; a ValueError if the others ask for what it does not have."""
    for field in ("block_out_channels", "layers_per_block"):  # diffusers' own defaults differ
        if field not in values:
            raise ValueError(f"{field} is missing; it has no default")
    kind = values.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise ValueError(f"_class_name is {kind!r}; allowed: 'AutoencoderKL'")
    for field, block in _BLOCKS.items():
        blocks = values.get(field, [block])
        if not isinstance(blocks, list) or any(b != block for b in blocks):
            raise ValueError(f"{field} is {blocks!r}; allowed: {block!r} on every level")
    ignored = {*_BLOCKS, "sample_size", "force_upcast"}  # the last two advise pipelines
    return {
        field: value
        for field, value in values.items()
        if field not in ignored and not field.startswith("_") and value is not None
    }


def _describe(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    if first["type"] == "unexpected_keyword_argument":
        return (
            f"{field} is {shown(first['input'])}; allowed: null, as this network has no such part"
        )
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    return f"{field} is {shown(first['input'])}; {first['msg'][0].lower()}{first['msg'][1:]}"
