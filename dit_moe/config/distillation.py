"""Learning from a trained model beside the data."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from dit_moe.config.rules import RULES, NonNegativeFloat


@dataclass(frozen=True, config=RULES)
class DistillConfig:
    """Staged distillation (Mixture of Students; Rajbhandari et al. 2022, DeepSpeed-MoE).

    Up to a step, the loss has `coefficient` times the mean squared distance between the velocity
    or noise that the run predicts and that which its teacher predicts of the same noisy input,
    time and label. After it the data teach alone: a small student would be held back.
    """

    teacher: Annotated[str, Field(min_length=1)]
    """A run folder, an exported folder or a Hugging Face name."""
    coefficient: NonNegativeFloat = 1.0
    stop_at: Annotated[float, Field(gt=0, le=1)] = 0.7
    """The share of `train.steps` after which the teacher is left."""
