"""Typed, frozen, validated configs. One `Config` describes one experiment completely.

`config_io.py` reads and writes them.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias, TypeVar

import pydantic
from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

T = TypeVar("T")
_RULES = pydantic.ConfigDict(extra="forbid")
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
MAX_SIGMA_REL = 12**-0.5
"""Relative width of the plain mean over training; wider averages would favour its beginning."""
SigmaRel = Annotated[float, Field(gt=0, lt=MAX_SIGMA_REL)]


def _split(value: object) -> object:
    return (
        [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, str)
        else value
    )


# On the command line, values with commas between them.
Listed: TypeAlias = Annotated[tuple[T, ...], pydantic.BeforeValidator(_split)]


class ConfigError(ValueError):
    """A config that cannot be used; the message is one sentence for the user."""


def divisors(number: int) -> list[int]:
    """From 1 to the number itself."""
    return [d for d in range(1, number + 1) if number % d == 0]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, config=_RULES)
class TopKRouterConfig:
    """Softmax token-choice router with a balance loss (DiT-MoE)."""

    name: Literal["top_k"] = "top_k"
    balance_coef: NonNegativeFloat = 0.01


@dataclass(frozen=True, config=_RULES)
class PrototypeSettings:
    """What both forms of ProMoE's two-step router have: learnable prototypes, a routing contrastive
    loss, and an unconditional expert where the mixture has one."""

    activation: Literal["identity", "softmax", "sigmoid"] = "identity"
    """Of the cosines. `softmax` is over the experts where tokens choose, over the tokens of an
    image where experts do."""
    contrastive_coef: NonNegativeFloat = 1.0
    contrastive_temperature: PositiveFloat = 0.07


@dataclass(frozen=True, config=_RULES)
class PrototypeRouterConfig(PrototypeSettings):
    """Each token takes its nearest prototypes (ProMoE)."""

    name: Literal["prototype"] = "prototype"


@dataclass(frozen=True, config=_RULES)
class ExpertChoiceRouterConfig:
    """Each expert takes its top tokens of every image, by softmax over experts (EC-DiT)."""

    name: Literal["expert_choice"] = "expert_choice"


@dataclass(frozen=True, config=_RULES)
class PrototypeExpertChoiceRouterConfig(PrototypeSettings):
    """Each prototype takes its top tokens of every image (the expert-choice form of ProMoE)."""

    name: Literal["prototype_expert_choice"] = "prototype_expert_choice"


@dataclass(frozen=True, config=_RULES)
class BatchPoolRouterConfig:
    """In training each expert takes its top tokens of the whole batch; when sampling, a predictor
    of that choice and a threshold per expert decide (DiffMoE)."""

    name: Literal["batch_pool"] = "batch_pool"
    capacity_coef: NonNegativeFloat = 0.01
    """Of the predictor's cross-entropy, whose gradient reaches nothing but the predictor. 0.01 is
    the default of the public code; DiffMoE's own config has 1."""
    threshold_decay: Decay = 0.95
    """Per update, of the moving average of each expert's threshold."""
    inference: Literal["token", "batch"] = "token"
    """Which tokens an expert computes when sampling. `token`: those whose own prediction passes its
    threshold, so that an image depends on nothing else. `batch` (the public code): as many as
    pass, but those with the highest scores of the batch."""


RouterConfig = Annotated[
    TopKRouterConfig
    | PrototypeRouterConfig
    | ExpertChoiceRouterConfig
    | PrototypeExpertChoiceRouterConfig
    | BatchPoolRouterConfig,
    Field(discriminator="name"),
]


@dataclass(frozen=True, config=_RULES)
class MoEConfig:
    """A mixture of experts in place of a block's feed-forward."""

    router: RouterConfig = TopKRouterConfig()
    num_experts: PositiveInt = 8
    """Routed experts; the unconditional expert is not counted."""
    top_k: PositiveInt = 2
    """Experts of each token. Where experts choose tokens, the mean number of experts of a token
    (the capacity factor of EC-DiT and DiffMoE)."""
    expert: Literal["swiglu", "gelu"] = "swiglu"
    """`swiglu`: gate, up, down without biases. `gelu`: up, down with biases."""
    hidden_ratio: PositiveFloat = 4.0
    """Hidden width of a routed expert over the model's width."""
    shared_hidden_ratio: NonNegativeFloat = 2.0
    """Hidden width of the shared expert (every token's) over the model's width; 0: none."""
    unconditional_expert: bool = False
    """One more expert that takes the tokens of images with the null label, and only those."""
    every: PositiveInt = 1
    """The last of each `every` blocks is MoE: 1 for all blocks, 2 for the odd ones."""

    def __post_init__(self) -> None:
        _require(
            self.top_k <= self.num_experts,
            f"top_k is {self.top_k}; allowed: 1 to num_experts ({self.num_experts})",
        )
        _require(
            not self.unconditional_expert or isinstance(self.router, PrototypeSettings),
            f"unconditional_expert is true with router {self.router.name!r}; "
            "allowed: true only with router 'prototype' or 'prototype_expert_choice'",
        )

    @property
    def total_experts(self) -> int:
        """Routed experts and the unconditional one, which comes last."""
        return self.num_experts + self.unconditional_expert


@dataclass(frozen=True, config=_RULES)
class ModelConfig:
    """The network: a diffusion transformer, dense or with mixtures of experts."""

    width: PositiveInt
    depth: PositiveInt
    heads: PositiveInt
    image_size: PositiveInt = 32
    """Side of the square input: the latent's for latent diffusion, in its own pixels."""
    channels: PositiveInt = 4
    patch_size: PositiveInt = 2
    mlp_ratio: PositiveFloat = 4.0
    num_classes: PositiveInt = 1000
    """Real classes are 0 to num_classes - 1; the null label is num_classes."""
    label_dropout: Probability = 0.1
    learn_sigma: bool = False
    """Doubles the output channels; the second half parameterises the variance under DDPM."""
    qk_norm: bool = False
    moe: MoEConfig | None = None
    """None: a dense DiT."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products. Parameters, routing, softmax and loss stay float32."""
    remat: Literal["none", "dots", "full"] = "dots"
    """What the backward pass recomputes instead of storing. `dots`: all but matrix products, which
    is the fastest on CPU too (less to write and read). `full`: whole blocks. `none`: nothing."""

    def __post_init__(self) -> None:
        _require(
            self.width % self.heads == 0,
            f"heads is {self.heads}; allowed: a divisor of width {self.width} "
            f"({_listing(divisors(self.width))})",
        )
        _require(
            self.width % 4 == 0,
            f"width is {self.width}; allowed: a multiple of 4 (two axes of sine and cosine)",
        )
        _require(
            self.image_size % self.patch_size == 0,
            f"patch_size is {self.patch_size}; allowed: a divisor of image_size "
            f"{self.image_size} ({_listing(divisors(self.image_size))})",
        )
        ratios = {"mlp_ratio": self.mlp_ratio}
        if self.moe is not None:
            _require(
                self.depth % self.moe.every == 0,
                f"moe.every is {self.moe.every}; allowed: a divisor of depth {self.depth}",
            )
            _require(
                self.moe.router.name != "expert_choice"
                or self.num_tokens * self.moe.top_k >= self.moe.num_experts,
                f"moe.num_experts is {self.moe.num_experts} with router 'expert_choice', top_k "
                f"{self.moe.top_k} and {self.num_tokens} tokens an image; allowed: 1 to "
                f"{self.num_tokens * self.moe.top_k} (each expert takes a token of every image)",
            )
            ratios["moe.hidden_ratio"] = self.moe.hidden_ratio
            ratios["moe.shared_hidden_ratio"] = self.moe.shared_hidden_ratio
        for field, ratio in ratios.items():
            _require(
                float(ratio * self.width).is_integer(),
                f"{field} is {ratio}; allowed: a ratio that gives a whole number of hidden units "
                f"at width {self.width}",
            )

    @property
    def null_label(self) -> int:
        """The label that stands for "no class"."""
        return self.num_classes

    @property
    def num_tokens(self) -> int:
        """Tokens (patches) per image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def out_channels(self) -> int:
        """Channels of the prediction."""
        return self.channels * (2 if self.learn_sigma else 1)


@dataclass(frozen=True, config=_RULES)
class DDPMConfig:
    """Denoising diffusion with noise prediction (Ho et al. 2020, Nichol & Dhariwal 2021)."""

    name: Literal["ddpm"] = "ddpm"
    timesteps: Annotated[int, Field(ge=2)] = 1000
    betas: Literal["linear", "cosine"] = "linear"
    variance: Literal["fixed_small", "fixed_large", "learned_range"] = "fixed_small"
    """`learned_range` (DiT) needs model.learn_sigma and adds the variational term to the loss."""

    def __post_init__(self) -> None:
        _require(
            self.betas != "linear" or self.timesteps > 20,
            f"timesteps is {self.timesteps} with betas 'linear'; allowed: 21 or more "
            "(with fewer, a beta reaches 1)",
        )


@dataclass(frozen=True, config=_RULES)
class RectifiedFlowConfig:
    """Straight paths from data to noise with velocity prediction (Liu et al. 2022)."""

    name: Literal["rectified_flow"] = "rectified_flow"
    time_distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    shift: PositiveFloat = 1.0
    """Resolution shift s of the time: t -> s t / (1 + (s - 1) t) (Esser et al. 2024, eq. 23)."""
    time_scale: PositiveFloat = 1.0
    """The network sees t * time_scale: 1 in DiT-MoE, 1000 in ProMoE."""


SOLVERS = {"rectified_flow": ("euler", "heun"), "ddpm": ("ancestral", "ddim")}
"""What can sample a model of each objective; the first is the default."""

ObjectiveConfig = Annotated[DDPMConfig | RectifiedFlowConfig, Field(discriminator="name")]


@dataclass(frozen=True, config=_RULES)
class DataConfig:
    """Where images or latents come from."""

    source: Literal["digits", "patches", "prepared"] = "digits"
    """`digits`: scikit-learn's handwritten digits, 8x8. `patches`: colour patches of
    scikit-image's photographs, 32x32. `prepared`: folders that `dit_moe.data.prepare` made."""
    path: Listed[str] = ()
    """Folders of `prepared`. With several (mixed resolutions), each step's batch is from one."""
    mix_weights: Listed[PositiveFloat] = ()
    """How often each folder of `path` has its turn; empty: equally often."""
    classes: Listed[NonNegativeInt] = ()
    """Only these classes of the data set; the model's class i is classes[i]. Empty: all."""
    flip: bool = False
    """Take the mirror image (for latents: the latent of the mirror image) with probability 1/2."""
    latent_scaling: Literal["autoencoder", "per_channel"] = "autoencoder"
    """`autoencoder`: times the constant of its authors (0.18215). `per_channel`: to mean 0 and
    standard deviation 1 in every channel, by the data set's statistics (as EDM2)."""

    def __post_init__(self) -> None:
        _require(
            (self.source == "prepared") == bool(self.path),
            f"path is {', '.join(self.path)!r} with source {self.source!r}; allowed: "
            "folders with source 'prepared', empty otherwise",
        )
        _require(
            len(self.mix_weights) in (0, len(self.path)),
            f"mix_weights has {len(self.mix_weights)} numbers; allowed: none, or one for each of "
            f"the {len(self.path)} folders of path",
        )
        _require(
            len(set(self.classes)) == len(self.classes),
            f"classes is {', '.join(map(str, self.classes))}; allowed: every class once",
        )


@dataclass(frozen=True, config=_RULES)
class TrainConfig:
    """Optimisation, logging and saving."""

    steps: PositiveInt = 400_000
    batch_size: PositiveInt = 256
    """Images per optimiser step, over all devices and accumulation steps."""
    accumulation: PositiveInt = 1
    """Equal parts into which a batch is cut, one after another, to save memory."""
    learning_rate: PositiveFloat = 1e-4
    warmup_steps: NonNegativeInt = 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Of the learning rate after the warm-up; `cosine` and `linear` end at 0."""
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    weight_decay: NonNegativeFloat = 0.0
    gradient_clip: PositiveFloat | None = None
    """Largest global gradient norm; None: no clipping."""
    max_skipped: PositiveInt = 10
    """Updates with a loss or gradient that is not finite are skipped; after this many in a row,
    training stops."""
    ema_decay: Decay = 0.9999
    post_hoc_ema: Listed[SigmaRel] = ()
    """Relative widths of further moving averages (EDM2), such as 0.05,0.1: their snapshots give
    averages of any width after training (docs/ema.md). Each costs memory for the parameters."""
    post_hoc_ema_every: PositiveInt = 10_000
    """Steps between those snapshots; all are kept."""
    log_every: PositiveInt = 100
    checkpoint_every: PositiveInt = 10_000
    keep_checkpoints: PositiveInt = 3
    """How many of the newest to keep."""
    keep_every: NonNegativeInt = 0
    """Keeps every checkpoint whose step is a multiple of it, too; 0: no others."""
    sample_every: NonNegativeInt = 10_000
    """Steps between sample grids; 0: none."""

    def __post_init__(self) -> None:
        _require(
            self.batch_size % self.accumulation == 0,
            f"accumulation is {self.accumulation}; allowed: a divisor of batch_size "
            f"{self.batch_size}",
        )
        _require(
            self.warmup_steps < self.steps,
            f"warmup_steps is {self.warmup_steps}; allowed: 0 to steps - 1 ({self.steps - 1})",
        )
        _require(
            len(set(self.post_hoc_ema)) == len(self.post_hoc_ema),
            f"post_hoc_ema is {', '.join(map(str, self.post_hoc_ema))}; allowed: every width once",
        )


@dataclass(frozen=True, config=_RULES)
class SampleConfig:
    """How this model is best sampled: the defaults of `sample.py` and of the grids in training."""

    solver: Literal["auto", "euler", "heun", "ddim", "ancestral"] = "auto"
    """`auto`: euler for rectified flow, ancestral for DDPM."""
    steps: PositiveInt = 250
    guidance_scale: NonNegativeFloat = 1.0
    """1: no guidance."""


@dataclass(frozen=True, config=_RULES)
class MeshConfig:
    """Device mesh; -1 means what is left."""

    data: int = -1
    """Copies of the parameters, each with its share of the batch."""
    fsdp: int = 1
    """Parts of every parameter's width; devices gather a layer when they compute it."""
    expert: int = 1
    """Parts of every layer's experts; tokens travel to them. A divisor of model.moe.num_experts."""

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("data", "fsdp", "expert")}
        for name, size in sizes.items():
            _require(size == -1 or size > 0, f"{name} is {size}; allowed: -1 or a positive number")
        free = [name for name, size in sizes.items() if size == -1]
        _require(
            len(free) <= 1,
            f"{', '.join(free)} are all -1; allowed: -1 for one of them",
        )


@dataclass(frozen=True, config=_RULES)
class Config:
    """One experiment."""

    name: str
    model: ModelConfig
    objective: ObjectiveConfig = RectifiedFlowConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    mesh: MeshConfig = MeshConfig()
    seed: Seed = 0

    def __post_init__(self) -> None:
        if isinstance(self.objective, DDPMConfig):
            _require(
                self.objective.variance != "learned_range" or self.model.learn_sigma,
                "objective.variance is 'learned_range' with model.learn_sigma false; allowed: "
                "'fixed_small', 'fixed_large', or model.learn_sigma true",
            )
            _require(
                self.sample.steps <= self.objective.timesteps,
                f"sample.steps is {self.sample.steps}; allowed: 1 to objective.timesteps "
                f"({self.objective.timesteps})",
            )
        _require(
            self.sample.solver in ("auto", *SOLVERS[self.objective.name]),
            f"sample.solver is {self.sample.solver!r} with objective {self.objective.name!r}; "
            f"allowed: {', '.join(('auto', *SOLVERS[self.objective.name]))}",
        )


def _listing(values: Sequence[int], limit: int = 12) -> str:
    texts = [str(v) for v in values]
    return ", ".join(texts if len(texts) <= limit else [*texts[:limit], "..."])
