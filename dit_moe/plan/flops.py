"""Floating-point operations of the network's matrix products, counted from its config.

A multiplication and an addition are two operations. Elementwise work is left out, as is usual for
model FLOP utilisation (Chowdhery et al. 2022, PaLM, appendix B).
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from dit_moe.config import CHEAP_EXPERTS, EXPERTS, ModelConfig, MoEConfig, RecurrentKind
from dit_moe.nn.embeddings import TIME_FEATURES

BACKWARD = 2  # one product for the gradient of each factor


@dataclass(frozen=True)
class ImageFlops:
    """Operations of one forward pass of one image."""

    attention: float
    """Projections, scores and mixing."""
    joint: float
    """Attention between the two images of a pair, for each of them (`model.pairs`)."""
    feed_forward: float
    """The feed-forwards of the dense blocks."""
    experts: float
    """Routed: top_k of them per token, whichever they are (the unconditional one included), and on
    average where experts choose tokens or some are cheap; or their slots."""
    recurrent: float
    """The recurrent experts, which compute all tokens of every image."""
    shared: float
    """The shared expert, and how much of it there is where that is learnt."""
    pregate: float
    """The router before the trunk, and the block that it has."""
    router: float
    """Scores and whatever else it has (`RouterSettings.flops`), the cheap experts, and, which is of
    training alone, what layers guess."""
    modulation: float
    """adaLN-zero, of the blocks and of the output."""
    embedding: float
    """Patches and time."""
    output: float

    @property
    def total(self) -> float:
        """All parts."""
        return sum(dataclasses.astuple(self))

    @property
    def training(self) -> float:
        """Forward and backward: the model FLOPs of a training image, without recomputation."""
        return (1 + BACKWARD) * self.total


def image_flops(model: ModelConfig) -> ImageFlops:
    """Counts one forward pass of one image of the config's own size."""
    s, d, depth = model.num_tokens, model.width, model.depth
    patch = model.patch_size**2
    experts = recurrent = shared = router = 0.0
    for moe in model.mixtures:
        experts += group_flops(model, moe, whole_images=False)
        recurrent += group_flops(model, moe, whole_images=True)
        kind = EXPERTS[moe.expert]
        shared += s * kind.flops(d, moe.shared_hidden_ratio * d)
        shared += s * 2 * d * 2 * (moe.shared_mix == "learnt")
        if model.pregate is None:
            router += (1 if moe.choose_by == "image" else s) * moe.router.flops(d, moe)
        router += s * 2 * d * sum(CHEAP_EXPERTS[kind] for kind in moe.cheap_experts)
        if guess := moe.router.guess(d):
            router += s * 2 * guess.width * model.patch_features
    dense = EXPERTS[model.mlp_activation].flops(d, model.mlp_ratio * d)
    return ImageFlops(
        attention=depth * (2 * s * d * 4 * d + attention_products(model)),
        joint=depth * (_adapters(model) + joint_borrowed(model)),
        feed_forward=(depth - len(model.mixtures)) * s * dense,
        experts=experts,
        recurrent=recurrent,
        shared=shared,
        pregate=_pregate(model),
        router=router,
        modulation=2 * d * 6 * d * depth + 2 * d * 2 * d,
        embedding=2 * s * patch * model.channels * d + 2 * TIME_FEATURES * d + 2 * d * d,
        output=2 * s * d * patch * model.out_channels,
    )


def group_flops(model: ModelConfig, moe: MoEConfig, *, whole_images: bool) -> float:
    """Those of one mixture's routed experts that compute whole images, or of the others."""
    s, d = model.num_tokens, model.width
    return sum(
        s * moe.computing(group, s) * group.facts.flops(d, group.hidden_ratio * d)
        for group in moe.groups
        if group.facts.whole_images is whole_images
    )


def _pregate(model: ModelConfig) -> float:
    """Tokens and condition on their way to the block before the trunk, this, and the router."""
    own = model.before
    if own is None:
        return 0.0
    s, d, w, moe = model.num_tokens, model.width, own.width, model.mixtures[0]
    block = dataclasses.replace(image_flops(own), embedding=0.0, output=0.0)
    chosen = 1 if moe.choose_by == "image" else s
    return 2 * (s + 1) * d * w + block.total + chosen * moe.router.flops(w, moe)


def recomputed_flops(model: ModelConfig, *, fused_attention: bool, expert_parallel: bool) -> float:
    """What a training image adds to `ImageFlops.training` because it was not kept (`model.remat`).

    Model FLOP utilisation leaves these operations out; the hardware does them all the same.

    Args:
      model: the network.
      fused_attention: attention is one kernel, whose scores are never stored (cuDNN). What it
        recomputes inside of its own backward pass is not counted.
      expert_parallel: see `dispatch_in_rounds`.
    """
    flops = image_flops(model)
    # Expert parallelism runs the experts again in its backward pass (moe/expert_parallel.py).
    again = flops.experts if expert_parallel else 0.0
    match model.remat:
        case "none":
            return again
        case "dots":
            # Where attention is fused, the mixture with the scores. Mixes of tokens are not kept.
            products = model.depth * score_products(model)
            again += products if fused_attention else products / 2
            return again + _mixing(model) + _step_products(model)
        case "full":
            # Outside of the scan over blocks nothing is recomputed.
            ends = flops.embedding + flops.output + flops.pregate
            ends += 2 * model.width * 2 * model.width
            return again + flops.total - ends


def dispatch_in_rounds(model: ModelConfig, mesh_shape: Mapping[str, int]) -> bool:
    """Whether experts run as in moe/expert_parallel.py: where the mesh splits them, or, on several
    devices, where they choose from the whole batch, so that devices have shares of any size."""
    of_batch = any(moe.router.chooser == "batch" for moe in model.mixtures)
    apart = mesh_shape["expert"] * mesh_shape["tensor"] > 1
    return apart or (of_batch and math.prod(mesh_shape.values()) > 1)


def _step_products(model: ModelConfig) -> float:
    """Products with the states of recurrent experts, which are not kept."""
    return model.num_tokens * sum(
        group.number * group.facts.step_flops(group.hidden_ratio * model.width)
        for moe in model.mixtures
        for group in moe.unlike
        if isinstance(group.facts, RecurrentKind)
    )


def attention_products(model: ModelConfig) -> float:
    """Scores and mixing of one block: two products over all pairs of tokens."""
    return 2 * 2 * model.num_tokens**2 * model.width


def score_products(model: ModelConfig) -> float:
    """Scores and mixing of all attentions of one block."""
    return attention_products(model) * (1 if model.pairs is None else 2)


def joint_borrowed(model: ModelConfig) -> float:
    """What the two images of a pair do in one block with no matrix of their own: scores, mixing,
    and the projection of their self-attention once more."""
    if model.pairs is None:
        return 0.0
    return attention_products(model) + 2 * model.num_tokens * model.width**2


def _adapters(model: ModelConfig) -> float:
    """The matrices of one block that are for pairs alone; the second image's, half of the time."""
    if (pairs := model.pairs) is None:
        return 0.0
    d, adapters = model.width, 1 + 0.5 * pairs.adapt_second
    projection = 2 * 2 * d * d if pairs.aligned else 2 * d * d
    return model.num_tokens * (adapters * 2 * 6 * d * pairs.rank + projection)


def _mixing(model: ModelConfig) -> float:
    """What goes into slots and comes back, of all layers in which nobody chooses."""
    s = model.num_tokens
    slots = sum(s * moe.rows(s) for moe in model.mixtures if moe.router.chooser == "nobody")
    return 2 * 2 * s * slots * model.width
