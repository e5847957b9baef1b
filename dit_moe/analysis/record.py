"""The numbers of an analysis, as analysis.json holds them; docs/analysis.md defines them."""

from typing import Literal

from pydantic.dataclasses import dataclass

from dit_moe.config import GuidanceConfig
from dit_moe.config.rules import RULES

FILE = "analysis.json"
InputsName = Literal["training", "sampling"]
Matrix = tuple[tuple[float, ...], ...]
Verdict = Literal["holds", "holds in part", "does not hold", "cannot be told"]


@dataclass(frozen=True, config=RULES)
class Settings:
    """What was asked for: the same settings on the same checkpoint give the same numbers."""

    inputs: tuple[InputsName, ...]
    num_images: int
    """With a class, in each of the inputs."""
    classes: tuple[int, ...]
    time_bins: int
    steps: int
    """How many the sampling trajectories have."""
    guidance: GuidanceConfig
    seed: int
    parameters: Literal["ema", "raw"]
    data: tuple[str, ...] = ()
    """Folders of the training data; empty: those of the run's config."""


@dataclass(frozen=True, config=RULES)
class Information:
    """Mutual information of the expert and something else."""

    bits: float
    """The information in the observed frequencies."""
    chance_bits: float
    """What is found on average where there is no dependence."""
    corrected_bits: float
    """The difference of the two."""
    share: float
    """`corrected_bits` over the entropy of the expert less `chance_bits`: 0 none, 1 the expert
    follows from it (adjusted mutual information, Vinh et al. 2010)."""
    p_value: float


@dataclass(frozen=True, config=RULES)
class TrueExperts:
    """How many experts with weights compute a token, on average: cheap ones are left out."""

    by_time: tuple[float | None, ...]
    """In each time bin, from clean to noise; None where no input was shown."""
    by_position: tuple[float, ...]
    """At each token of an image, row after row."""
    null: float | None
    """Of tokens with the null label; None where none was shown."""


@dataclass(frozen=True, config=RULES)
class Layer:
    """One MoE layer, on inputs that have a class."""

    block: int
    """Its place among the blocks of the network, from 0."""
    load: tuple[float, ...]
    """Share of the assignments by expert."""
    entropy_bits: float
    """The entropy of the load."""
    balance: float
    """That over log2 of the number of routed experts: 1 all alike, 0 one has all."""
    effective_experts: float
    """2 to the entropy."""
    busiest: float
    """The largest load."""
    experts_per_token: float
    position: Information
    time: Information
    label: Information
    concentration_by_time: tuple[float | None, ...]
    """1 - balance of each time bin, from clean to noise; None where no expert was chosen."""
    position_share_by_time: tuple[float | None, ...]
    """Information of expert and position inside each time bin over the expert's entropy there."""
    unconditional: float
    """Share of all assignments, those of null tokens included, that the unconditional expert
    takes; 0 without such an expert."""
    true_experts: TrueExperts | None = None
    """None where the layer has no cheap experts."""


@dataclass(frozen=True, config=RULES)
class Paths:
    """The ways of tokens through the layers, by the expert of largest weight in each."""

    tokens: int
    distinct: int
    entropy_bits: float
    effective: float
    """2 to the entropy."""
    independent_bits: float
    """The entropy if layers chose independently: the sum of theirs."""
    seen_once: float
    """Share of the tokens whose path no other token took."""


@dataclass(frozen=True, config=RULES)
class Inputs:
    """What was found on one kind of inputs."""

    images: int
    null_images: int
    tokens: int
    """How many tokens of images with a class were seen, over all times."""
    null_tokens: float
    """Share of the tokens, of all, that carry the null label."""
    layers: tuple[Layer, ...]
    coactivation_bits: tuple[float, ...]
    """Mutual information of a token's experts in one MoE layer and in the next."""
    coactivation_share: tuple[float, ...]
    """That over the entropy of the next layer's expert."""
    paths: Paths


@dataclass(frozen=True, config=RULES)
class Prototypes:
    """Cosines of the prototypes with the classes' mean tokens: `[layer][prototype][class]`."""

    with_class_mean: tuple[Matrix, ...]
    with_class_difference: tuple[Matrix, ...]
    """The same after the mean over classes is taken off, which all mean tokens share."""


@dataclass(frozen=True, config=RULES)
class Finding:
    """One of DiT-MoE's observations, held to this checkpoint."""

    claim: str
    inputs: InputsName
    verdict: Verdict
    reason: str


@dataclass(frozen=True, config=RULES)
class Analysis:
    """All of it."""

    name: str
    """The name in the run's config."""
    workdir: str
    step: int
    settings: Settings
    class_names: tuple[str, ...]
    inputs: dict[InputsName, Inputs]
    expert_similarity: tuple[Matrix, ...]
    """Cosine of the experts' weights: `[layer][expert][expert]`."""
    prototypes: Prototypes | None
    """None for routers without prototypes."""
    findings: tuple[Finding, ...]
    pictures: dict[str, str]
    """Captions by file name, beside analysis.json."""
