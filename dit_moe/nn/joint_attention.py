"""Attention between the two images of a pair, beside each one's to itself (UniCon, Li et al. 2024).

Rows of a batch are images; those of a pair lie one after another, the first image before the
second. Where several models of pairs are combined, each has a second image of its own: a group is
the first image and all second ones, in order.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dit_moe.config import ModelConfig, PairsConfig
from dit_moe.nn.attention import Attention
from dit_moe.nn.linear import KAIMING, Axes, product


class LowRank(nnx.Module):
    """Additions x a b to what matrices make of x, apart for each of some streams; none at first."""

    def __init__(
        self, streams: int, sizes: tuple[int, int], rank: int, names: Axes, rngs: nnx.Rngs
    ):
        (d, g), (of_d, of_g) = sizes, names
        a = [KAIMING(rngs.params(), (d, rank), jnp.float32) for _ in range(streams)]
        self.a = nnx.Param(jnp.stack(a), axes=(None, of_d, None))
        self.b = nnx.Param(jnp.zeros((streams, rank, g)), axes=(None, None, of_g))

    def __call__(self, x_NxIxSxD: jax.Array) -> jax.Array:
        """Maps [N, I, S, D] of I streams to [N, I, S, G] in the dtype of x."""
        a, b = (p[...].astype(x_NxIxSxD.dtype) for p in (self.a, self.b))
        streams = range(x_NxIxSxD.shape[1])
        parts = [product(product(x_NxIxSxD[:, i], a[i]), b[i]) for i in streams]
        return jnp.stack(parts, axis=1)


class Adapter(nnx.Module):
    """Additions of low rank to the two matrices of an attention, apart for each of some streams."""

    def __init__(self, streams: int, width: int, rank: int, rngs: nnx.Rngs):
        self.qkv = LowRank(streams, (width, 3 * width), rank, ("embed", "heads"), rngs)
        self.out = LowRank(streams, (width, width), rank, ("heads", "embed"), rngs)


class Joint(nnx.Module):
    """What a block has for pairs: adapters of the streams, and the projection, zeros at first."""

    def __init__(self, config: ModelConfig, pairs: PairsConfig, rngs: nnx.Rngs):
        width, self.aligned = config.width, pairs.aligned
        self.both = Adapter(2, width, pairs.rank, rngs)
        self.second = Adapter(1, width, pairs.rank, rngs) if pairs.adapt_second else None
        size = width * (2 if pairs.aligned else 1)
        self.projection = nnx.Param(jnp.zeros((size, size)), axes=("embed", None))

    def project(self, x_Nx2xSxD: jax.Array) -> jax.Array:
        """The results of both images through the projection, together or each by itself."""
        kernel = self.projection[...].astype(x_Nx2xSxD.dtype)
        if not self.aligned:
            return product(x_Nx2xSxD, kernel)
        first_and_second = jnp.concatenate([x_Nx2xSxD[:, 0], x_Nx2xSxD[:, 1]], axis=-1)
        return jnp.stack(jnp.split(product(first_and_second, kernel), 2, axis=-1), axis=1)


class JointAttention(Attention):
    """Self-attention as it is, plus what each image's queries find in the other of its pair.

    The latter is computed by the same matrices with additions, and passes a projection of zeros at
    first: the network then says of every image what it said before.
    """

    def __init__(self, config: ModelConfig, pairs: PairsConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.joint, *others = (Joint(config, each, rngs) for each, _ in pairs.members)
        self.others = nnx.List(others) if others else None
        self.weights = tuple(weight for _, weight in pairs.members)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x_NxSxD: jax.Array,
        angle_SxR: np.ndarray | None = None,
        joint_scale: float = 1.0,
    ) -> jax.Array:
        """Maps tokens [N, S, D] of N / 2 pairs, or groups, to [N, S, D].

        Args:
          x_NxSxD: the tokens.
          angle_SxR: see `Attention`.
          joint_scale: the factor of what the images find in each other; 0 keeps them apart.
        """
        joints = [self.joint, *(self.others or ())]
        own = [joint.second for joint in joints]
        qkv_NxSxG = self.qkv(x_NxSxD)
        own_NxSxG = _to_seconds(qkv_NxSxG, [o and o.qkv for o in own], x_NxSxD)
        mixed_NxSxD = self.mix(*self.split(own_NxSxG, angle_SxR))
        alone = _to_seconds(self.out(mixed_NxSxD), [o and o.out for o in own], mixed_NxSxD)
        if joint_scale == 0:
            return alone
        x_GxIxSxD, qkv_GxIxSxF = (_in_groups(a, 1 + len(joints)) for a in (x_NxSxD, qkv_NxSxG))
        found = [
            self._joined(joint, _pair(x_GxIxSxD, k), _pair(qkv_GxIxSxF, k), angle_SxR)
            for k, joint in enumerate(joints)
        ]
        first = sum(weight * pair[:, 0] for weight, pair in zip(self.weights, found, strict=True))
        addition = jnp.stack([first, *(pair[:, 1] for pair in found)], axis=1)
        return alone + joint_scale * _in_rows(addition)

    def _joined(
        self,
        joint: Joint,
        x_Px2xSxD: jax.Array,
        qkv_Px2xSxG: jax.Array,
        angle_SxR: np.ndarray | None,
    ) -> jax.Array:
        """What the two images of each of P pairs find in each other: [P, 2, S, D]."""
        q, k, v = self.split(_in_rows(qkv_Px2xSxG + joint.both.qkv(x_Px2xSxD)), angle_SxR)
        mixed = self.mix(q, _other(k), _other(v))
        return joint.project(_in_groups(self.out(mixed)) + joint.both.out(_in_groups(mixed)))


def _to_seconds(result: jax.Array, additions: Sequence[LowRank | None], x: jax.Array) -> jax.Array:
    """What a matrix makes of x [N, S, D], with the additions for the second images."""
    size = 1 + len(additions)
    for number, addition in enumerate(additions, 1):
        if addition is not None:
            one = slice(number, number + 1)
            made = addition(_in_groups(x, size)[:, one])
            result = _in_rows(_in_groups(result, size).at[:, one].add(made))
    return result


def _in_groups(x: jax.Array, size: int = 2) -> jax.Array:
    """[N, ...] as [N / size, size, ...]."""
    return x.reshape(-1, size, *x.shape[1:])


def _in_rows(x: jax.Array) -> jax.Array:
    """The inverse of `_in_groups`."""
    return x.reshape(-1, *x.shape[2:])


def _pair(x_GxIxSxD: jax.Array, number: int) -> jax.Array:
    """The first image of each group and its second one of this number: [G, 2, S, D]."""
    return jnp.stack([x_GxIxSxD[:, 0], x_GxIxSxD[:, 1 + number]], axis=1)


def _other(x: jax.Array) -> jax.Array:
    """Of every row, the other one of its pair."""
    return _in_rows(_in_groups(x)[:, ::-1])
