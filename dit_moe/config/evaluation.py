"""Samples that are judged while a run trains."""

from pydantic.dataclasses import dataclass

from dit_moe.config.rules import RULES, Listed, NonNegativeInt, PositiveInt, require


@dataclass(frozen=True, config=RULES)
class EvaluateConfig:
    """How often samples are judged, and by what; the fields mean what the flags of `eval.fid` do.

    What is learned does not depend on it.
    """

    every: NonNegativeInt = 0
    """Steps between judgements, each of a checkpoint that is saved there; 0: none."""
    num_samples: PositiveInt = 5_000
    """How many are drawn, by the averaged parameters as `config.sample` says, with seed 0."""
    reference: str | None = None
    """What they are compared with."""
    features: str = "inception"
    weights: str | None = None
    """File of the features' weights."""
    metrics: Listed[str] = ("fid",)
    """The first decides which checkpoint is the best, which is kept."""
    batch_size: PositiveInt = 64
    """Images per pass of the sampler and of the feature network."""

    def __post_init__(self) -> None:
        require(
            not self.every or self.reference is not None,
            f"every is {self.every} without reference; allowed: a set of images or of stored "
            "statistics as reference, or every 0",
        )
        require(len(self.metrics) > 0, "metrics is empty; allowed: at least one, such as fid")
