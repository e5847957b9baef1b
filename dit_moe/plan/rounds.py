"""What cutting the tokens' travel into rounds is worth to a run on a mesh, as predicted."""

from typing import NamedTuple

from jax.sharding import AbstractMesh
from pydantic.dataclasses import dataclass

from dit_moe.config import ModelConfig, TrainConfig
from dit_moe.config.rules import RULES, NonNegativeFloat
from dit_moe.plan.flops import group_flops
from dit_moe.plan.memory import itemsize
from dit_moe.plan.schedule import Layer, Operation, cases, choose

EXCHANGE_LATENCY, EXPERT_LATENCY = 2e-5, 1e-5
"""Seconds of an all-to-all and of a grouped product that have next to nothing to do, where no
profile tells better. Not measured here."""


@dataclass(frozen=True, config=RULES)
class Costs:
    """What travel and arithmetic take on some devices: `alpha + beta amount` seconds."""

    exchange_alpha: NonNegativeFloat
    exchange_beta: NonNegativeFloat
    """For a byte that a device sends to others."""
    expert_alpha: NonNegativeFloat
    expert_beta: NonNegativeFloat
    """For an operation of the experts' matrix products."""
    device: str = ""
    """Where they were measured."""

    def layer(
        self, exchanges: float, sent: float, products: float, flops: float, slices: float
    ) -> Layer:
        """The operations of a layer, of so many collectives on each way and grouped products;
        `slices` are the seconds of links inside a host that rows to other slices take."""
        inside = Operation(exchanges * self.exchange_alpha, 1.0, slices)
        return Layer(
            Operation(exchanges * self.exchange_alpha, self.exchange_beta, sent),
            Operation(products * self.expert_alpha, self.expert_beta, flops),
            gather=inside,
            scatter=inside,
        )


class Rounds(NamedTuple):
    """The mixtures of a training step: experts, travel, and the sums of all gradients."""

    forward: int
    backward: int
    plain: float
    """Seconds of all of it one after another, in one round."""
    best: float
    """The same in as many rounds as are best, if all overlaps that may."""

    def sentence(self) -> str:
        """What it comes to."""
        return (
            f"experts, their travel and the sums of gradients {self.plain:.2g} s of it one after "
            f"another, {self.best:.2g} s at best, with model.forward_rounds {self.forward} and "
            f"model.backward_rounds {self.backward}"
        )


def rounds_of(
    model: ModelConfig,
    train: TrainConfig,
    mesh: AbstractMesh,
    costs: Costs,
    gradients: float,
    inside: float,
) -> Rounds | None:
    """The best numbers of rounds for a run; None where no tokens travel.

    The forward pass sends rows and gets rows. The backward pass sends rows, weights and gradients,
    gets two of the three, and runs the experts forward again, so that its products are three times
    as many. Under `remat` full the forward pass is run twice.

    Args:
      model: the network.
      train: batch and accumulation.
      mesh: of the run.
      costs: of its devices.
      gradients: seconds that summing the gradients takes in each part of the batch.
      inside: seconds for a byte that a device sends to the others along the axis "tensor".
    """
    expert, tensor = mesh.shape["expert"], mesh.shape["tensor"]
    layers = len(model.mixtures)
    if expert * tensor == 1 or not any(moe.travelling(model.num_tokens) for moe in model.mixtures):
        return None
    images = train.batch_size / train.accumulation / mesh.size
    there, back = [], []
    for moe in model.mixtures:
        rows = images * model.num_tokens * moe.travelling(model.num_tokens)
        size = rows * model.width * itemsize(model)
        sent, slices = size * (expert - 1) / expert, size * (tensor - 1) * inside
        flops = images * group_flops(model, moe, whole_images=False)
        there.append(costs.layer(1, sent, 1, flops, slices))
        back.append(costs.layer(2.5, 1.5 * sent, 3, 3 * flops, 1.5 * slices))
    forward = choose(there)
    backward = choose(back, [gradients / layers] * layers)
    passes = 2 if model.remat == "full" else 1
    plain = passes * sum(max(cases(layer, 1)) for layer in there)
    plain += sum(max(cases(layer, 1)) for layer in back) + gradients
    best = passes * forward.seconds + backward.seconds
    return Rounds(
        forward.rounds, backward.rounds, train.accumulation * plain, train.accumulation * best
    )
