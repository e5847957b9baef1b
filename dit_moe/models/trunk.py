"""The trunk: blocks in segments, and how depth is run.

It knows tokens, a condition and a time, which is part of the condition, and nothing of images.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from dit_moe.config import ModelConfig, SegmentConfig
from dit_moe.models.block import Block, Given, Outputs
from dit_moe.models.pregate import Pregate
from dit_moe.moe.backends.residuals import DISPATCH_RESIDUAL
from dit_moe.moe.routing import Routing
from dit_moe.nn.attention import ATTENTION_RESIDUAL
from dit_moe.nn.linear import PRODUCT_RESIDUAL

_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        # The scores of attention are batched products: many bytes, few operations.
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(
            PRODUCT_RESIDUAL, DISPATCH_RESIDUAL, ATTENTION_RESIDUAL
        ),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}

SHALLOW = 8
"""Units of a stack that CPUs train unrolled; deeper ones would compile for too long."""

Previous = dict[str, jax.Array]


class Unit(nnx.Module):
    """What a segment repeats: dense blocks up to and including one MoE block."""

    def __init__(self, config: ModelConfig, segment: SegmentConfig, rngs: nnx.Rngs):
        last = segment.unit - 1
        self.blocks = nnx.List(
            Block(config, segment.moe if i == last else None, rngs) for i in range(segment.unit)
        )

    def __call__(
        self, x_NxSxD: jax.Array, given: Given
    ) -> tuple[jax.Array, Routing | None, tuple[Outputs, ...]]:
        """Applies the blocks in order; the routing is that of the last, the outputs are of all."""
        routing, outputs = None, []
        for block in self.blocks:
            x_NxSxD, routing, found = block.with_outputs(x_NxSxD, given)
            outputs.append(found)
        return x_NxSxD, routing, tuple(outputs)


class Trunk(nnx.Module):
    """The blocks of a transformer, segment by segment (`ModelConfig.trunk`).

    The parameters of a segment's units are stacked on a leading axis and run by a scan: a deep
    network compiles as fast as a shallow one.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.pregate = None if config.pregate is None else Pregate(config, rngs)

        def build(segment: SegmentConfig) -> Unit:
            @nnx.split_rngs(splits=segment.repeats)
            @nnx.vmap
            def units(rngs: nnx.Rngs) -> Unit:
                return Unit(config, segment, rngs)

            return units(rngs)

        self.segments = nnx.List(build(segment) for segment in config.trunk)

    def __call__(self, x_NxSxD: jax.Array, given: Given) -> tuple[jax.Array, tuple[Routing, ...]]:
        """Runs all blocks.

        Args:
          x_NxSxD: [N, S, D] tokens in the dtype of the computation.
          given: what every block may know.

        Returns:
          The tokens, and the record of every segment with mixtures, stacked on a leading axis of
          its MoE layers.
        """
        routings, previous = [], given.previous
        if given.decided is not None:
            # Every layer does the same, and what it costs and changes counts once.
            decided = dataclasses.replace(given.decided, losses={}, next_state={})
            given = dataclasses.replace(given, decided=decided)
        for units, segment in zip(self.segments, self.config.trunk, strict=True):
            previous = fitting(previous, segment, x_NxSxD.shape[0] * x_NxSxD.shape[1])
            x_NxSxD, previous, routing = _scan(units, x_NxSxD, given, previous, self.config.remat)
            routings += [] if routing is None else [routing]
        return x_NxSxD, tuple(routings)


def fitting(previous: Previous, segment: SegmentConfig, tokens: int) -> Previous:
    """What a segment's first router sees of the one before: zeros where its shape is another."""
    if segment.moe is None:
        return previous  # dense blocks pass it on
    shapes = segment.moe.router.hands_on(segment.moe)
    found: Previous = {}
    for name, shape in shapes.items():
        zeros = jnp.zeros((tokens, *shape))
        handed = previous.get(name, zeros)
        found[name] = handed if handed.shape == zeros.shape else zeros
    return found


def _scan(
    units: Unit, x_NxSxD: jax.Array, given: Given, previous: Previous, remat: str
) -> tuple[jax.Array, Previous, Routing | None]:
    """Runs stacked units one after another."""
    graphdef, parameters = nnx.split(units)

    def run(
        carry: tuple[jax.Array, Previous], parameters: nnx.State
    ) -> tuple[tuple[jax.Array, Previous], Routing | None]:
        carry, routing, _ = run_unit(nnx.merge(graphdef, parameters), carry, given)
        return carry, routing

    if remat != "none":
        # Inside a scan, XLA cannot merge the recomputation with the forward pass anyway.
        run = jax.checkpoint(run, policy=_REMAT_POLICIES[remat], prevent_cse=False)
    repeats = len(jax.tree.leaves(parameters)[0])
    (x_NxSxD, previous), routing = jax.lax.scan(
        run, (x_NxSxD, previous), parameters, unroll=unrolled(repeats, remat, given.train)
    )
    return x_NxSxD, previous, routing


def run_unit(
    unit: Unit, carry: tuple[jax.Array, Previous], given: Given
) -> tuple[tuple[jax.Array, Previous], Routing | None, tuple[Outputs, ...]]:
    """Runs one unit on tokens and what the router before has handed on, and gives both anew."""
    x_NxSxD, previous = carry
    own_x, own_condition, own_null = map(_own_images, (x_NxSxD, given.condition, given.is_null))
    seen = dataclasses.replace(given, condition=own_condition, is_null=own_null, previous=previous)
    x_NxSxD, routing, outputs = unit(own_x, seen)
    if routing is not None:
        _check_handed(routing.hand_on, previous)
        previous = routing.hand_on
        routing = dataclasses.replace(routing, hand_on={})
    return (_own_images(x_NxSxD), previous), routing, outputs


def unrolled(repeats: int, remat: str, train: bool) -> int:
    """How many units each turn of the scan runs.

    On CPU a training step runs all of a shallow stack: its parameters and gradients are then not
    copied out of stacks and into them (docs/benchmarks.md). Unrolled, XLA merges what is computed
    again with what was computed at first, and saves no memory.
    """
    shallow = repeats <= SHALLOW and remat != "full"
    return repeats if train and shallow and jax.default_backend() == "cpu" else 1


def _check_handed(handed: Mapping[str, jax.Array], told: Mapping[str, jax.Array]) -> None:
    found, expected = ({k: v.shape for k, v in d.items()} for d in (handed, told))
    if found != expected:
        raise ValueError(f"a router hands on {found}, but its settings tell {expected}")


def _own_images(array: jax.Array) -> jax.Array:
    """Keeps every image on its device: XLA might gather the batch rather than the weights."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return array
    return jax.lax.with_sharding_constraint(array, PartitionSpec(mesh.axis_names))
