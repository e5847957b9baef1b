"""Typed, frozen, validated configs. One `Config` describes one experiment completely.

`config_io.py` reads and writes them.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

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
        raise ConfigError(message)


@dataclass(frozen=True, config=_RULES)
class TopKRouterConfig:
    """Softmax token-choice router with a balance loss (DiT-MoE)."""

    name: Literal["top_k"] = "top_k"
    balance_coef: NonNegativeFloat = 0.01


@dataclass(frozen=True, config=_RULES)
class SigmoidTopKRouterConfig:
    """Sigmoid token-choice router that is balanced by a bias, without a loss (DSMoE)."""

    name: Literal["sigmoid_top_k"] = "sigmoid_top_k"
    scale: PositiveFloat = 1.0
    """What a token's weights sum to, where top_k is 2 or more (DeepSeek-V3's routed scaling)."""
    bias_rate: NonNegativeFloat = 0.001
    """How far a step moves each expert's bias. 0.001 is DeepSeek-V3's; with 0, as in DSMoE's public
    code, the biases stay as they are."""


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
    | SigmoidTopKRouterConfig
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
    choice: Literal["most_likely", "least_likely"] = "most_likely"
    """Where tokens choose experts: those with the highest scores, or, with the weights of these,
    those with the lowest. The latter is no way to train, but the weak network of self-contrast."""

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
        _require(
            self.choice == "most_likely" or self.tokens_choose,
            f"choice is {self.choice!r} with router {self.router.name!r}, where experts choose "
            "tokens; allowed: 'most_likely'",
        )

    @property
    def tokens_choose(self) -> bool:
        """Every token has top_k experts of its choice."""
        return self.router.name in ("top_k", "sigmoid_top_k", "prototype")

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
    """Hidden width of a dense block's feed-forward over the model's width."""
    mlp_activation: Literal["gelu", "silu"] = "gelu"
    """Of the dense blocks' feed-forward: GELU (tanh) in DiT, SiLU in DSMoE."""
    num_classes: PositiveInt = 1000
    """Real classes are 0 to num_classes - 1; the null label is num_classes."""
    label_dropout: Probability = 0.1
    learn_sigma: bool = False
    """Doubles the output channels; the second half parameterises the variance under DDPM."""
    qk_norm: bool = False
    position: Literal["sincos", "rope"] = "sincos"
    """`sincos`: sines and cosines of column and row, added to the patches (DiT). `rope`: each block
    turns queries and keys by row and column (DSMoE)."""
    moe: MoEConfig | None = None
    """None: a dense DiT."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products. Parameters, routing, softmax and loss stay float32."""
    remat: Literal["none", "dots", "full"] = "dots"
    """What the backward pass recomputes instead of storing. `dots`: all but matrix products, and of
    these the scores of attention, which is the fastest on CPU too (less to write and read). `full`:
    whole blocks. `none`: nothing."""

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
        _require(
            self.position != "rope" or self.width // self.heads % 4 == 0,
            f"heads is {self.heads} with position 'rope' and width {self.width}; allowed: a number "
            "that makes width / heads a multiple of 4 (pairs of two axes)",
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

    @property
    def sampled_timesteps(self) -> int:
        """How many timesteps, from the first on, sampling visits.

        Cosine betas end in three that each take more than half of the signal's power, down to
        nearly nothing: what the network errs in the noise there would be magnified in x_0.
        """
        return max(self.timesteps - 3, 1) if self.betas == "cosine" else self.timesteps


@dataclass(frozen=True, config=_RULES)
class RectifiedFlowConfig:
    """Straight paths from data to noise with velocity prediction (Liu et al. 2022)."""

    name: Literal["rectified_flow"] = "rectified_flow"
    time_distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    shift: PositiveFloat = 1.0
    """Resolution shift s of the time: t -> s t / (1 + (s - 1) t) (Esser et al. 2024, eq. 23)."""
    time_scale: PositiveFloat = 1.0
    """The network sees t * time_scale: 1 in DiT-MoE, 1000 in ProMoE."""


ObjectiveConfig = Annotated[DDPMConfig | RectifiedFlowConfig, Field(discriminator="name")]

SOLVERS: dict[str, dict[str, Any]] = {
    "euler": {"time_grid": "uniform"},
    "heun": {"time_grid": "uniform"},
    "midpoint": {"time_grid": "uniform"},
    "rk4": {"time_grid": "uniform"},
    "dopri5": {"tolerance": 1e-3},
    "ddim": {"time_grid": "uniform", "eta": 0.0},
    "euler_maruyama": {"time_grid": "uniform"},
    "ancestral": {},
    "dpmpp_2m": {"time_grid": "uniform"},
    "dpmpp_3m": {"time_grid": "uniform"},
    "unipc": {"time_grid": "uniform"},
}
"""What can sample a model, each with its options and their defaults (docs/sampling.md).

`ancestral` is for DDPM alone, all others are for both objectives."""

TIME_GRIDS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "quadratic": {},
    "karras": {},
    "shifted": {"shift": 3.0},
}
"""How the steps of a solver may lie in time, with their options."""

SOLVER_OPTIONS = ("time_grid", "eta", "tolerance", "shift")
"""All of both."""


@dataclass(frozen=True, config=_RULES)
class SolverConfig:
    """How a sample is integrated from noise to data. Fields that hold None have the solver's
    default; an option that the solver does not have is an error."""

    solver: str = "auto"
    """One of `SOLVERS`. `auto`: euler for rectified flow, ancestral for DDPM."""
    steps: int = 250
    """For dopri5 the largest number of steps that an image may try."""
    time_grid: str | None = None
    """One of `TIME_GRIDS`."""
    eta: float | None = None
    """Of ddim: 0 adds no noise, 1 as much as DDPM's chain."""
    tolerance: float | None = None
    """Of dopri5: the error of a step, relative where values are above 1."""
    shift: float | None = None
    """Of the shifted time grid, in place of the objective's: t -> s t / (1 + (s - 1) t)."""

    def resolve(self, objective: ObjectiveConfig) -> "SolverConfig":
        """The same with nothing left open; options that the solver does not have are None.

        Raises:
          ConfigError: naming the field, its value and what is allowed.
        """
        ddpm = isinstance(objective, DDPMConfig)
        solver = self._chosen(objective)
        allowed = [name for name in SOLVERS if ddpm or name != "ancestral"]
        _require(
            solver in allowed,
            f"solver is {solver!r} with objective {objective.name!r}; "
            f"allowed: {', '.join(allowed)}",
        )
        most = objective.sampled_timesteps if ddpm else None
        _require(
            self.steps >= 1 and (most is None or self.steps <= most),
            f"steps is {self.steps}; allowed: 1 {f'to {most}' if most else 'or more'}",
        )
        _require(
            self.time_grid in (None, *TIME_GRIDS),
            f"time_grid is {self.time_grid!r}; allowed: {', '.join(TIME_GRIDS)}",
        )
        options = _solver_options(solver, self.time_grid)
        chosen = {"solver": solver, "time_grid": options.get("time_grid")}
        for kind, table in (("solver", SOLVERS), ("time_grid", TIME_GRIDS)):
            for name in SOLVER_OPTIONS:
                value = getattr(self, name)
                having = [key for key, entry in table.items() if name in entry]
                if value is None or not having:
                    continue
                _require(
                    name in options,
                    f"{name} is {value!r} with {kind} {chosen[kind]!r}; "
                    f"allowed: only with {kind} {', '.join(having)}",
                )
                options[name] = value
        eta, tolerance, shift = (options.get(name) for name in ("eta", "tolerance", "shift"))
        _require(eta is None or 0 <= eta <= 1, f"eta is {eta}; allowed: 0 to 1")
        _require(
            tolerance is None or 1e-6 <= tolerance < 1,
            f"tolerance is {tolerance}; allowed: 1e-6 (float32 has little more) to below 1",
        )
        _require(
            shift is None or 0 < shift < math.inf,
            f"shift is {shift}; allowed: a number above 0 (1 is no shift)",
        )
        return SolverConfig(solver, self.steps, **options)

    def updated(self, objective: ObjectiveConfig, **given: Any) -> "SolverConfig":
        """With fields that are given and not None, resolved.

        Options of the old solver or time grid that the new one does not have are left out.
        """
        given = {name: value for name, value in given.items() if value is not None}
        fields = {name: getattr(self, name) for name in SolverConfig.__dataclass_fields__} | given
        known = _solver_options(SolverConfig(**fields)._chosen(objective), fields["time_grid"])
        kept = {"solver", "steps", *known, *given}
        fields = {name: value for name, value in fields.items() if name in kept}
        return SolverConfig(**fields).resolve(objective)

    def _chosen(self, objective: ObjectiveConfig) -> str:
        auto = "ancestral" if isinstance(objective, DDPMConfig) else "euler"
        return auto if self.solver == "auto" else self.solver


def _solver_options(solver: str, time_grid: str | None) -> dict[str, Any]:
    """The options that a solver and its time grid have, with their defaults."""
    options = dict(SOLVERS.get(solver, {}))
    if "time_grid" in options:
        options["time_grid"] = time_grid or options["time_grid"]
        options |= TIME_GRIDS.get(options["time_grid"], {})
    return options


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
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """AdamW's mean of gradients in bfloat16 takes half the memory. The mean of squares stays in
    float32: bfloat16 would round its small steps away."""
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
    averages_on_host: bool = False
    """Keeps all moving averages in the memory of the accelerator's host: they come and go at every
    step, and leave room for a larger batch."""
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


GuidanceSchedule = Literal["constant", "linear", "cosine"]


def check_guidance_interval(interval: Sequence[float]) -> None:
    """Checks that it has two flow times in order.

    Raises:
      ConfigError: it does not.
    """
    _require(
        len(interval) == 2 and 0 <= interval[0] <= interval[1] <= 1,
        f"guidance_interval is {','.join(map(str, interval))}; allowed: two flow times from 0 "
        "to 1, the lower one first, such as 0.1,0.8",
    )


@dataclass(frozen=True, config=_RULES)
class SampleConfig(SolverConfig):
    """How this model is best sampled: the defaults of `sample.py` and of the grids in training."""

    guidance_scale: NonNegativeFloat = 1.0
    """1: no guidance."""
    guidance_schedule: GuidanceSchedule = "constant"
    """How guidance_scale - 1 changes from noise to data: `linear` and `cosine` grow from 0 to
    double (docs/sampling.md)."""
    guidance_interval: Listed[Probability] = (0.0, 1.0)
    """Guidance only at flow times from the first to the second: 0 is data, 1 is noise."""
    guidance_rescale: Probability = 0.0
    """How far the contrast that guidance adds is taken back: 0 not at all, 1 all of it."""

    def __post_init__(self) -> None:
        check_guidance_interval(self.guidance_interval)


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
        try:
            self.sample.resolve(self.objective)
        except ConfigError as error:
            raise ConfigError(f"sample.{error}") from None


def _listing(values: Sequence[int], limit: int = 12) -> str:
    texts = [str(v) for v in values]
    return ", ".join(texts if len(texts) <= limit else [*texts[:limit], "..."])
