"""What describes a run on texts."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from dit_moe.config import ModelConfig, MoEConfig, TrainConfig
from dit_moe.config.moe import ExpertName
from dit_moe.config.rules import (
    MAX_SIZE,
    RULES,
    Listed,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Seed,
    require,
)
from dit_moe.config.sizes import MAX_SIDE, parse_size
from dit_moe.text.numbers import HELDOUT_SHARE, LANGUAGES

Length = Annotated[int, Field(gt=0, le=MAX_SIDE)]


@dataclass(frozen=True, config=RULES)
class TextModelConfig:
    """The network: an encoder of the source and a decoder of the noisy target, of equal depth."""

    width: PositiveInt = 128
    depth: PositiveInt = 3
    """Blocks of the encoder, and of the decoder."""
    heads: PositiveInt = 4
    source_length: Length = 12
    """Tokens of a source, and below of a target; shorter ones are filled up."""
    target_length: Length = 12
    embedding_width: PositiveInt = 32
    """In which the diffusion runs: numbers of a token's embedding."""
    cut: bool = False
    """The encoder does not read the decoder, which then reads what the encoder made in the end: the
    plain encoder-decoder, whose encoder is run once for all steps of sampling."""
    mlp_ratio: PositiveFloat = 4.0
    mlp_activation: ExpertName = "gelu"
    qk_norm: bool = False
    moe: MoEConfig | None = None
    """The mixture in encoder and decoder; None: both are dense."""
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for length in (self.source_length, self.target_length):
            self.sequence(length)
        moe = self.moe
        if moe is None:
            return
        require(
            not moe.unconditional_expert,
            "moe.unconditional_expert is true; allowed: false, as texts have no class to lack",
        )
        require(
            moe.router.guess(self.width) is None,
            f"moe.router.name is {moe.router.name!r} with a guess of each layer; allowed: no "
            "guess, which is of images",
        )

    def sequence(self, length: int) -> ModelConfig:
        """What the blocks of this project's trunk ask of a network, for sequences of a length.

        Raises:
          ConfigError: naming the first field that no such network has.
        """
        return ModelConfig(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            image_size=parse_size((1, length)),
            channels=self.embedding_width,
            patch_size=1,
            num_classes=1,
            label_dropout=0.0,
            mlp_ratio=self.mlp_ratio,
            mlp_activation=self.mlp_activation,
            qk_norm=self.qk_norm,
            moe=self.moe,
            dtype=self.dtype,
        )


@dataclass(frozen=True, config=RULES)
class TextDiffusionConfig:
    """The noise and what is learnt of it."""

    times: Annotated[PositiveInt, Field(ge=10, le=10_000)] = 1000
    """Times of training, from 1 with the least noise on."""
    self_condition: Probability = 0.5
    """How often the network sees its own first estimate in training; in sampling, where it is above
    0, always that of the step before."""
    rounding: NonNegativeFloat = 1.0
    """Weight of the loss that the estimate be rounded to the right tokens, from which embeddings
    learn to lie apart."""
    adapt_every: NonNegativeInt = 0
    """Steps of training between changes of the noise, for each place of the target by itself, so
    that the error grows evenly with time; 0: the noise stays as it is at first."""
    adapt_bins: Annotated[PositiveInt, Field(ge=2, le=1000)] = 20
    """Parts of the times in which that error is measured."""

    def __post_init__(self) -> None:
        require(
            self.adapt_bins <= self.times,
            f"adapt_bins is {self.adapt_bins}; allowed: up to times {self.times}",
        )


@dataclass(frozen=True, config=RULES)
class TextDataConfig:
    """Sources and targets."""

    source: Literal["numbers", "files"] = "numbers"
    """`numbers`: in words, from one language to another. `files`: see docs/text.md."""
    languages: Listed[Literal[LANGUAGES]] = ("en", "fr")  # pyright: ignore[reportInvalidTypeForm]
    """Of source and target, with `numbers`."""
    below: Annotated[int, Field(ge=HELDOUT_SHARE, le=1_000_000)] = 10_000
    """The numbers, from 0, are below it."""
    path: str = ""
    """With `files`: that of training; and below, of what is held out."""
    validation_path: str = ""
    pieces: Annotated[int, Field(ge=0, le=MAX_SIZE)] = 30_000
    """Words that have a number of their own, at most; others are spelled."""
    by_character: bool = False
    """All texts are spelled."""
    cut_off: bool = False
    """Longer texts lose their ends, rather than be refused."""

    def __post_init__(self) -> None:
        require(
            len(self.languages) == 2,
            f"languages is {','.join(self.languages)!r}; allowed: two with a comma, such as en,fr",
        )
        files = self.source == "files"
        require(
            files == bool(self.path) and (files or not self.validation_path),
            f"path is {self.path!r} and validation_path {self.validation_path!r} with source "
            f"{self.source!r}; allowed: "
            + ("a file of training in path" if files else "both empty, or source 'files'"),
        )


_DEFAULT_TRAINING = TrainConfig(
    steps=1500,
    batch_size=128,
    learning_rate=1e-3,
    warmup_steps=200,
    schedule="cosine",
    gradient_clip=1.0,
    ema_decay=0.999,
    checkpoint_every=1000,
    sample_every=0,
)
_OF_IMAGES = (
    "accumulation",
    "averages_on_host",
    "distill",
    "evaluate",
    "learn",
    "lora",
    "moments_on_host",
    "post_hoc_ema",
    "post_hoc_ema_every",
    "sample_every",
)


@dataclass(frozen=True, config=RULES)
class TextConfig:
    """One experiment on texts."""

    of: ClassVar[str] = "texts"

    name: str = "numbers"
    model: TextModelConfig = TextModelConfig()
    diffusion: TextDiffusionConfig = TextDiffusionConfig()
    data: TextDataConfig = TextDataConfig()
    train: TrainConfig = _DEFAULT_TRAINING
    seed: Seed = 0

    def __post_init__(self) -> None:
        for field in _OF_IMAGES:
            value, allowed = getattr(self.train, field), getattr(_DEFAULT_TRAINING, field)
            require(
                value == allowed,
                f"train.{field} is {value} on texts; allowed: {allowed}, as it is for images",
            )
