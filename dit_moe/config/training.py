"""Optimisation, logging and saving."""

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from dit_moe.config.distillation import DistillConfig
from dit_moe.config.evaluation import EvaluateConfig
from dit_moe.config.low_rank import LowRankConfig
from dit_moe.config.rules import (
    RULES,
    Decay,
    Listed,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SigmaRel,
    require,
)


@dataclass(frozen=True, config=RULES)
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
    """How the learning rate goes on after the warm-up; `cosine` and `linear` end at 0."""
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """AdamW's mean of gradients in bfloat16 takes half the memory. The mean of squares stays in
    float32: bfloat16 would round its small steps away."""
    weight_decay: NonNegativeFloat = 0.0
    gradient_clip: PositiveFloat | None = None
    """Largest global gradient norm; None: no clipping."""
    freeze: Listed[str] = ()
    """Parameters that stay as they are, by patterns of their dotted paths (parameters.txt), such as
    trunk.*,timestep.*; * stands for any text. Blocks of a segment are one parameter each."""
    learn: Listed[str] = ()
    """What alone learns, by such patterns, as if `freeze` named all else; only of this averages are
    kept. Empty: all but what is frozen."""
    lora: LowRankConfig | None = None
    """Learns additions of low rank alone, to the matrices of a model that the run starts from
    (docs/finetuning.md). None: the matrices themselves."""
    distill: DistillConfig | None = None
    """Learns from a trained model beside the data (docs/distillation.md). None: from data alone."""
    max_skipped: PositiveInt = 10
    """Updates with a loss or gradient that is not finite are skipped; after this many in a row,
    training stops."""
    ema_decay: Decay = 0.9999
    ema_warmup: bool = True
    """The decay grows with the number t of the step, as min(ema_decay, (1 + t) / (10 + t)), so that
    the average soon forgets its start; false: it is `ema_decay` from the first step on."""
    post_hoc_ema: Listed[SigmaRel] = ()
    """Relative widths of further moving averages (EDM2), such as 0.05,0.1: their snapshots give
    averages of any width after training (docs/ema.md). Each costs memory for the parameters."""
    post_hoc_ema_every: PositiveInt = 10_000
    """Steps between those snapshots; all are kept."""
    averages_on_host: bool = False
    """Keeps all moving averages in the memory of the accelerator's host: they come and go at every
    step, and leave room for a larger batch."""
    moments_on_host: bool = False
    """The same for the optimiser's moments."""
    log_every: PositiveInt = 100
    checkpoint_every: PositiveInt = 10_000
    keep_checkpoints: PositiveInt = 3
    """How many of the newest to keep."""
    keep_every: NonNegativeInt = 0
    """Keeps every checkpoint whose step is a multiple of it, too; 0: no others."""
    sample_every: NonNegativeInt = 10_000
    """Steps between sample grids; 0: none."""
    validate_every: NonNegativeInt | None = None
    """Steps between measurements of the loss on held-out data; 0: none. None: as
    `checkpoint_every` where the data have a held-out part, none where not."""
    validation_batches: PositiveInt = 4
    """How many batches of held-out data that takes, always with the same noise."""

    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Samples that are judged as the run goes on."""

    def __post_init__(self) -> None:
        require(
            self.batch_size % self.accumulation == 0,
            f"accumulation is {self.accumulation}; allowed: a divisor of batch_size "
            f"{self.batch_size}",
        )
        require(
            self.warmup_steps < self.steps,
            f"warmup_steps is {self.warmup_steps}; allowed: 0 to steps - 1 ({self.steps - 1})",
        )
        require(
            len(set(self.post_hoc_ema)) == len(self.post_hoc_ema),
            f"post_hoc_ema is {', '.join(map(str, self.post_hoc_ema))}; allowed: every width once",
        )
        others = [name for name in ("freeze", "lora") if getattr(self, name)]
        require(
            not self.learn or not others,
            f"learn is {', '.join(self.learn)} with {', '.join(others)}; allowed: one of them",
        )
        require(
            self.lora is None or not self.freeze,
            f"freeze is {', '.join(self.freeze)} with lora, which freezes all but its additions; "
            "allowed: no freeze, and lora.whole for what learns beside them",
        )
        require(
            self.lora is None or not self.post_hoc_ema,
            f"post_hoc_ema is {', '.join(map(str, self.post_hoc_ema))} with lora; allowed: none",
        )
        require(
            not self.learn or not self.post_hoc_ema,
            f"post_hoc_ema is {', '.join(map(str, self.post_hoc_ema))} with learn; allowed: none",
        )

    def validates_after(self, number: int) -> bool:
        """Whether the loss on held-out data, where there are any, is measured after this step."""
        every = self.checkpoint_every if self.validate_every is None else self.validate_every
        return number % every == 0 or number == self.steps

    @property
    def averages_what_learns(self) -> bool:
        """Averages are kept of what learns alone: all else is the model's that the run started
        from."""
        return self.lora is not None or bool(self.learn)
