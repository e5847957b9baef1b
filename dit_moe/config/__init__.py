"""Typed, frozen, validated configs. One `Config` describes one experiment completely.

`files.py` reads and writes them.
"""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from dit_moe.config.cheap_routers import MixedTopKRouterConfig, NullTopKRouterConfig
from dit_moe.config.data import DataConfig
from dit_moe.config.distillation import DistillConfig
from dit_moe.config.evaluation import EvaluateConfig
from dit_moe.config.experts import (
    CHEAP_EXPERTS,
    EXPERTS,
    RECURRENT,
    ExpertKind,
    RecurrentKind,
    register_expert,
)
from dit_moe.config.guidance import GUIDES, WEAK_ROUTINGS, GuidanceConfig
from dit_moe.config.low_rank import LowRankConfig
from dit_moe.config.mesh import MeshConfig
from dit_moe.config.model import ModelConfig, SegmentConfig
from dit_moe.config.moe import ExpertGroup, MoEConfig
from dit_moe.config.objective import OBJECTIVES, DDPMConfig, ObjectiveConfig, RectifiedFlowConfig
from dit_moe.config.packed import PackedConfig
from dit_moe.config.pairs import PairsConfig
from dit_moe.config.pregate import PregateConfig
from dit_moe.config.race_routers import ExpertRaceRouterConfig
from dit_moe.config.routers import (
    ROUTERS,
    BatchPoolRouterConfig,
    BiasSettings,
    ExpertChoiceRouterConfig,
    GatedSettings,
    Guess,
    Mixture,
    PrototypeExpertChoiceRouterConfig,
    PrototypeRouterConfig,
    PrototypeSettings,
    RouterConfig,
    RouterSettings,
    SigmoidTopKRouterConfig,
    TopKRouterConfig,
)
from dit_moe.config.rules import MAX_SIGMA_REL, RULES, ConfigError, Seed, divisors, require
from dit_moe.config.sampling import (
    SOLVER_OPTIONS,
    SOLVERS,
    TIME_GRIDS,
    SampleConfig,
    SolverConfig,
)
from dit_moe.config.slot_routers import SoftRouterConfig
from dit_moe.config.token_routers import CosineRouterConfig, NoisyTopKRouterConfig
from dit_moe.config.training import TrainConfig

__all__ = [
    "CHEAP_EXPERTS",
    "EXPERTS",
    "GUIDES",
    "MAX_SIGMA_REL",
    "OBJECTIVES",
    "RECURRENT",
    "ROUTERS",
    "SOLVERS",
    "SOLVER_OPTIONS",
    "TIME_GRIDS",
    "WEAK_ROUTINGS",
    "BatchPoolRouterConfig",
    "BiasSettings",
    "Config",
    "ConfigError",
    "CosineRouterConfig",
    "DDPMConfig",
    "DataConfig",
    "DistillConfig",
    "EvaluateConfig",
    "ExpertChoiceRouterConfig",
    "ExpertGroup",
    "ExpertKind",
    "ExpertRaceRouterConfig",
    "GatedSettings",
    "Guess",
    "GuidanceConfig",
    "LowRankConfig",
    "MeshConfig",
    "MixedTopKRouterConfig",
    "Mixture",
    "MoEConfig",
    "ModelConfig",
    "NoisyTopKRouterConfig",
    "NullTopKRouterConfig",
    "ObjectiveConfig",
    "PackedConfig",
    "PairsConfig",
    "PregateConfig",
    "PrototypeExpertChoiceRouterConfig",
    "PrototypeRouterConfig",
    "PrototypeSettings",
    "RectifiedFlowConfig",
    "RecurrentKind",
    "RouterConfig",
    "RouterSettings",
    "SampleConfig",
    "SegmentConfig",
    "SigmoidTopKRouterConfig",
    "SoftRouterConfig",
    "SolverConfig",
    "TopKRouterConfig",
    "TrainConfig",
    "divisors",
    "register_expert",
    "require",
]


@dataclass(frozen=True, config=RULES)
class Config:
    """One experiment on images."""

    of: ClassVar[str] = "images"

    name: str
    model: ModelConfig
    objective: ObjectiveConfig = RectifiedFlowConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    mesh: MeshConfig = MeshConfig()
    seed: Seed = 0

    def __post_init__(self) -> None:
        require(
            not self.objective.learns_variance or self.model.learn_sigma,
            "objective.variance is 'learned_range' with model.learn_sigma false; allowed: "
            "'fixed_small', 'fixed_large', or model.learn_sigma true",
        )
        if self.model.pairs is not None or self.data.pair is not None:
            self._check_pairs()
        try:
            self.sample.resolve(self.objective)
        except ConfigError as error:
            raise ConfigError(f"sample.{error}") from None

    def _check_pairs(self) -> None:
        """What goes with images in pairs, and what asks for single ones."""
        train, kind = self.train, self.data.pair
        require(
            self.model.pairs is not None and kind is not None,
            f"data.pair is {kind!r} with model.pairs "
            f"{'none' if self.model.pairs is None else 'given'}; allowed: both, or none",
        )
        require(
            train.batch_size % (2 * train.accumulation) == 0,
            f"train.batch_size is {train.batch_size} with pairs and accumulation "
            f"{train.accumulation}; allowed: a multiple of {2 * train.accumulation}, as both "
            "images of a pair count",
        )
        single = {
            "train.sample_every": train.sample_every,
            "train.evaluate.every": train.evaluate.every,
            "train.distill": train.distill and "given",
        }
        for name, value in single.items():
            require(
                not value,
                f"{name} is {value} with model.pairs; allowed: {0 if 'every' in name else 'none'}, "
                "as that draws or teaches single images",
            )
