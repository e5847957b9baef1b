"""Model FLOPs of a training image: the forward pass, and what the backward pass needs.

A product's backward pass is one product for the gradient of its input and one for that of its
matrix. The latter falls away where the matrix does not learn (`TrainConfig.learns_in_part`), the
former where nothing that learns lies before it. A stack of units counts as one: where something in
it learns, gradients flow through all of it.
"""

import dataclasses
import math

from dit_moe.config import ModelConfig, SegmentConfig, TrainConfig
from dit_moe.models.frozen import split_learning
from dit_moe.models.low_rank import is_addition, is_matrix, matrices_of, shapes_and_axes
from dit_moe.plan.flops import (
    attention_products,
    image_flops,
    joint_borrowed,
    score_products,
)

_CONDITION = ("timestep.", "label.")
_PREGATE = "trunk.pregate."
_PREGATE_OF_IMAGES = tuple(
    f"{_PREGATE}{name}" for name in ("condition.", "modulation.", "block.modulation.")
)
_TIME = ("timestep.dense_in.kernel", "timestep.dense_out.kernel")


def training_flops(model: ModelConfig, train: TrainConfig) -> float:
    """Counts one training image, without what is computed again (`flops.recomputed_flops`).

    The sums of matrices with additions of low rank are made once for each part of a batch: an image
    has its share.

    Raises:
      ConfigError: `train.freeze` or `train.lora` does not fit the model.
    """
    whole = image_flops(model)
    parameters, axes = shapes_and_axes(model, train.lora)
    learning, frozen = split_learning(parameters, train)
    if not frozen:
        return whole.training
    gains = matrices_of(parameters)
    sizes = {
        path: math.prod(p.shape)
        for path, p in parameters.items()
        if is_matrix(path, axes[path]) and not is_addition(path)
    }

    def learns(*prefixes: str) -> bool:
        return any(path.startswith(prefixes) for path in learning)

    def share(paths: list[str]) -> float:
        """How much of the products with these matrices is with those that learn."""
        learnt = sum(sizes[path] for path in paths if path in learning or path in gains)
        return learnt / max(sum(sizes[path] for path in paths), 1)

    # What is read first counts as if its input had a gradient too, as is usual.
    total = whole.total
    for path, tokens in {"patch_in.kernel": model.num_tokens, **dict.fromkeys(_TIME, 1)}.items():
        total += 2 * 2 * tokens * sizes[path] * share([path])
    condition = learns(*_CONDITION)
    flows = condition or learns("patch_in.")
    if model.before is not None:
        reached = flows or learns(_PREGATE)
        total += 2 * attention_products(model.before) * reached
        for path in (path for path in sizes if path.startswith(_PREGATE)):
            of_images = path.startswith(_PREGATE_OF_IMAGES)
            if model.mixtures[0].choose_by == "image":
                of_images |= path.startswith(f"{_PREGATE}router.")
            tokens = 1 if of_images else model.num_tokens
            total += 2 * tokens * sizes[path] * (reached + share([path]))
        flows = reached
    for number, segment in enumerate(model.trunk):
        stack = f"trunk.segments.{number}."
        flows = flows or learns(stack)
        own = [path for path in sizes if path.startswith(stack)]
        products = segment.depth * attention_products(model)
        borrowed = segment.depth * joint_borrowed(model)
        without = {"attention": products, "joint": borrowed}  # a matrix of their own
        for part, flops in _of_segment(model, segment).items():
            reached = flows and (condition or part != "modulation")
            weights = flops - without.get(part, 0)
            matrices = [path for path in own if _part(path, segment) == part]
            total += flops * reached + weights * share(matrices)
        total += (
            segment.depth * score_products(model) * flows
        )  # both of their factors have gradients
        if borrowed:
            again = [path for path in own if path.endswith(".attention.out.kernel")]
            total += (borrowed - products) * share(again)
    ends = {"modulation.kernel": (1, condition)}
    ends["patch_out.kernel"] = model.num_tokens, flows or learns("modulation.")
    for path, (tokens, reached) in ends.items():
        total += 2 * tokens * sizes[path] * (reached + share([path]))
    if train.lora is not None:
        # The sum, and the gradients of both factors of its product.
        sums = 3 * 2 * train.lora.rank * sum(sizes[path] for path in gains)
        total += sums * train.accumulation / train.batch_size
    return total


def _of_segment(model: ModelConfig, segment: SegmentConfig) -> dict[str, float]:
    """The forward pass of one segment, by the parts of `ImageFlops`."""
    flops = dataclasses.asdict(image_flops(model.with_only(segment)))
    flops["modulation"] -= 2 * model.width * 2 * model.width  # of the output
    return {part: n for part, n in flops.items() if part not in ("embedding", "output", "pregate")}


def _part(path: str, segment: SegmentConfig) -> str:
    """The part of `ImageFlops` that a matrix of a block is in."""
    block, name = path.split(".blocks.")[1].split(".", 1)
    mixture = segment.moe is not None and int(block) == segment.unit - 1
    of_names = {
        "attention.joint.": "joint",
        "attention.": "attention",
        "modulation.": "modulation",
        "feed_forward.shared.": "shared",
        "feed_forward.mix.": "shared",
        "feed_forward.experts.": "experts" if mixture else "feed_forward",
    }
    for number, group in enumerate(segment.moe.unlike if segment.moe else ()):
        part = "recurrent" if group.facts.whole_images else "experts"
        of_names[f"feed_forward.unlike.{number}."] = part
    return next((part for start, part in of_names.items() if name.startswith(start)), "router")
