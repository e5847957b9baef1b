"""Encoder and decoder of this project's blocks, which read each other layer by layer.

Layer i of the encoder reads what layer i - 1 of the decoder made, and layer i of the decoder what
layer i of the encoder has just made (DiffuSIA; the order within a layer is inferred).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import ModelConfig, SegmentConfig
from dit_moe.models.block import Block, Given
from dit_moe.models.trunk import Previous, fitting, unrolled
from dit_moe.moe.routing import Routing
from dit_moe.nn.cross_attention import CrossAttention
from dit_moe.nn.linear import linear
from dit_moe.nn.modulation import modulate


class ReadingBlock(Block):
    """A block that reads another sequence too, after its attention to its own."""

    def __init__(self, config: ModelConfig, segment: SegmentConfig, last: bool, rngs: nnx.Rngs):
        super().__init__(config, segment.moe if last else None, rngs)
        width, zeros = config.width, jax.nn.initializers.zeros
        self.cross = CrossAttention(config, rngs)
        self.cross_modulation = linear(
            width, 3 * width, ("embed", None), rngs, dtype=jnp.dtype(config.dtype), init=zeros
        )

    def reading(
        self, x_NxSxD: jax.Array, given: Given, other_NxTxD: jax.Array
    ) -> tuple[jax.Array, Routing | None]:
        """Updates tokens [N, S, D] under what is given and what is read [N, T, D]."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self._modulations(given)
        x_NxSxD += gate_a[:, None] * self._attended(modulate(x_NxSxD, shift_a, scale_a), given)
        condition = jax.nn.silu(given.condition)
        shift, scale, gate = jnp.split(self.cross_modulation(condition), 3, axis=-1)
        nothing = jnp.zeros_like(shift)
        read = modulate(other_NxTxD, nothing, nothing)
        x_NxSxD += gate[:, None] * self.cross(modulate(x_NxSxD, shift, scale), read)
        fed, routing = self._fed(modulate(x_NxSxD, shift_f, scale_f), given)
        return x_NxSxD + gate_f[:, None] * fed, routing


class Stream(NamedTuple):
    """One of the two sequences on its way through the layers."""

    x: jax.Array
    """[N, S, D] tokens."""
    previous: Previous
    """What its router before has handed on."""


class Side(nnx.Module):
    """What the encoder, or the decoder, repeats: dense blocks up to and including one MoE block."""

    def __init__(self, config: ModelConfig, *, reads: bool, rngs: nnx.Rngs):
        (segment,) = config.trunk
        last = segment.unit - 1
        self.blocks = nnx.List(
            ReadingBlock(config, segment, i == last, rngs)
            if reads
            else Block(config, segment.moe if i == last else None, rngs)
            for i in range(segment.unit)
        )

    def step(
        self, block: int, stream: Stream, given: Given, other_NxTxD: jax.Array | None
    ) -> tuple[Stream, Routing | None]:
        """One of its blocks on a stream, with what it reads where it does."""
        seen, own = dataclasses.replace(given, previous=stream.previous), self.blocks[block]
        if isinstance(own, ReadingBlock) and other_NxTxD is not None:
            x_NxSxD, routing = own.reading(stream.x, seen, other_NxTxD)
        else:
            x_NxSxD, routing = own(stream.x, seen)
        if routing is None:
            return Stream(x_NxSxD, stream.previous), None
        handed = routing.hand_on
        return Stream(x_NxSxD, handed), dataclasses.replace(routing, hand_on={})


def stack(config: ModelConfig, *, reads: bool, rngs: nnx.Rngs) -> Side:
    """The encoder or the decoder: its repetitions, stacked on a leading axis."""
    (segment,) = config.trunk

    @nnx.split_rngs(splits=segment.repeats)
    @nnx.vmap
    def sides(rngs: nnx.Rngs) -> Side:
        return Side(config, reads=reads, rngs=rngs)

    return sides(rngs)


def start(x_NxSxD: jax.Array, config: ModelConfig) -> Stream:
    """A stream before its first layer."""
    (segment,) = config.trunk
    return Stream(x_NxSxD, fitting({}, segment, x_NxSxD.shape[0] * x_NxSxD.shape[1]))


def run_alone(
    side: Side, stream: Stream, given: Given, other_NxTxD: jax.Array | None = None
) -> tuple[jax.Array, Routing | None]:
    """All layers of one side; the sequence that it reads, if it does, stays as it is.

    Returns:
      Its tokens [N, S, D], and the record of its MoE layers, stacked.
    """
    graphdef, parameters = nnx.split(side)

    def run(stream: Stream, parameters: nnx.State) -> tuple[Stream, Routing | None]:
        own, routing = nnx.merge(graphdef, parameters), None
        for block in range(len(own.blocks)):
            stream, routing = own.step(block, stream, given, other_NxTxD)
        return stream, routing

    stream, routing = jax.lax.scan(run, stream, parameters, unroll=_unroll(parameters, given))
    return stream.x, routing


def run_spirally(
    encoder: Side, decoder: Side, streams: tuple[Stream, Stream], given: tuple[Given, Given]
) -> tuple[tuple[jax.Array, jax.Array], tuple[Routing | None, Routing | None]]:
    """All layers of both, in turn: each reads what the other made last.

    Args:
      encoder: that reads.
      decoder: as deep.
      streams: of the encoder, and of the decoder.
      given: likewise.

    Returns:
      The tokens of both, and the records of their MoE layers, stacked.
    """
    (of_encoder, first), (of_decoder, second) = nnx.split(encoder), nnx.split(decoder)

    def run(
        streams: tuple[Stream, Stream], parameters: tuple[nnx.State, nnx.State]
    ) -> tuple[tuple[Stream, Stream], tuple[Routing | None, Routing | None]]:
        reader, writer = nnx.merge(of_encoder, parameters[0]), nnx.merge(of_decoder, parameters[1])
        (source, target), routings = streams, (None, None)
        for block in range(len(reader.blocks)):
            source, chosen = reader.step(block, source, given[0], target.x)
            target, also = writer.step(block, target, given[1], source.x)
            routings = chosen, also
        return (source, target), routings

    (source, target), routings = jax.lax.scan(
        run, streams, (first, second), unroll=_unroll(first, given[1])
    )
    return (source.x, target.x), routings


def _unroll(parameters: nnx.State, given: Given) -> int:
    return unrolled(len(jax.tree.leaves(parameters)[0]), "none", given.train)
