"""The diffusion transformer of images (Peebles & Xie 2023), dense or sparse: a trunk and its ends.

The ends are the image's: patches, positions, the class, and the way back to pixels.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from dit_moe.config import ConfigError, ModelConfig
from dit_moe.models.block import Given
from dit_moe.models.packing import pack_matrices
from dit_moe.models.prediction import Guesses, Prediction
from dit_moe.models.trunk import Trunk
from dit_moe.moe.routing import Routing
from dit_moe.nn.embeddings import (
    Grid,
    LabelEmbedding,
    TimestepEmbedding,
    patchify,
    position_embedding,
    rotary_angles,
    unpatchify,
)
from dit_moe.nn.linear import linear
from dit_moe.nn.modulation import modulate


class DiT(nnx.Module):
    """Predicts noise, velocity or both mean and variance from a noisy image, a time and a label."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        width, dtype = config.width, jnp.dtype(config.dtype)
        zeros = jax.nn.initializers.zeros
        self.patch_in = linear(config.patch_features, width, (None, "embed"), rngs, dtype=dtype)
        self.timestep = TimestepEmbedding(width, rngs)
        self.label = LabelEmbedding(config.num_classes, width, rngs)
        pairs = config.pairs if config.pairs and config.pairs.adapt_second else None
        own = [nnx.Param(jnp.zeros(width), axes=("embed",)) for _ in pairs.members] if pairs else []
        self.second_condition = own[0] if own else None
        self.other_conditions = nnx.List(own[1:]) if own[1:] else None
        self.trunk = Trunk(config, rngs)
        self.modulation = linear(width, 2 * width, ("embed", None), rngs, dtype=dtype, init=zeros)
        self.patch_out = linear(
            width,
            config.patch_size**2 * config.out_channels,
            ("embed", None),
            rngs,
            init=zeros,
        )
        pack_matrices(self, config.packed)

    def __call__(
        self,
        x_NxHxWxC: jax.Array,
        t_N: jax.Array,
        y_N: jax.Array,
        *,
        train: bool = False,
        joint_scale: float = 1.0,
    ) -> Prediction:
        """Runs the network.

        Args:
          x_NxHxWxC: [N, H, W, C] noisy images or latents, any float type. Of another size than
            config.image_size too, for training on mixed resolutions. With config.pairs, those of a
            pair lie one after another, the first image before the second.
          t_N: [N] times in the unit that the objective feeds (0 to 1, or 0 to 1000).
          y_N: [N] integer labels; num_classes is the null label. Under `jit` they are not
            known, and JAX clamps what is out of range.
          train: a training step; some routers choose otherwise then (DiffMoE).
          joint_scale: with config.pairs, the factor of what the two images of a pair find in each
            other; 0: each is denoised by itself.

        Returns:
          The prediction with value float32 [N, H, W, C'].

        Raises:
          ConfigError: a label is known and out of range, or an image of a pair lacks the other.
        """
        x_NxSxD, given, grid = self.enter(x_NxHxWxC, t_N, y_N, train=train, joint_scale=joint_scale)
        x_NxSxD, routing = self.trunk(x_NxSxD, given)
        value = self.leave(x_NxSxD, given, grid)
        guesses = self._guesses(routing, grid)
        routing = tuple(dataclasses.replace(record, guess=None) for record in routing)
        prediction = Prediction(value, routing, {}, given.decided, guesses)
        losses: dict[str, jax.Array] = {}
        for record in prediction.deciders:
            for name, loss_L in record.losses.items():
                losses[name] = losses.get(name, 0.0) + loss_L.sum()
        return dataclasses.replace(prediction, losses=losses)

    def decide(
        self, x_NxHxWxC: jax.Array, t_N: jax.Array, y_N: jax.Array, *, train: bool = False
    ) -> Routing:
        """The routing of a whole evaluation, without running any of its layers: what every record
        of `__call__` holds. Arguments as there.

        Raises:
          ConfigError: as there, or each layer has a router of its own (`ModelConfig.pregate`).
        """
        decided = self.enter(x_NxHxWxC, t_N, y_N, train=train)[1].decided
        if decided is None:
            raise ConfigError(
                "model.pregate is none; allowed: a router before the trunk, as those of layers "
                "decide while these run"
            )
        return decided

    def enter(
        self,
        x_NxHxWxC: jax.Array,
        t_N: jax.Array,
        y_N: jax.Array,
        *,
        train: bool = False,
        joint_scale: float = 1.0,
    ) -> tuple[jax.Array, Given, Grid]:
        """The first end, with arguments and errors as of the call.

        Returns:
          Tokens [N, S, D] in the dtype of the computation, what the trunk may know beside them,
          and in how many rows and columns of patches they lie.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        if len(x_NxHxWxC) % config.rows:
            raise ConfigError(
                f"x has {len(x_NxHxWxC)} images; allowed: a multiple of {config.rows}, as those of "
                "a pair go together"
            )
        _check_labels(y_N, config.null_label)
        x_NxSxD = self.patch_in(patchify(x_NxHxWxC, config.patch_size))
        _, height, width, _ = x_NxHxWxC.shape
        grid, angles = (height // config.patch_size, width // config.patch_size), None
        if config.position == "sincos":
            x_NxSxD += position_embedding(grid, config.width, config.grid).astype(dtype)
        else:
            angles = rotary_angles(grid, config.width // config.heads, config.grid)
        c_NxD = self.timestep(t_N) + self.label(y_N)
        for number, own in enumerate(self._second_conditions(), 1):
            c_NxD = c_NxD.at[number :: config.rows].add(own)
        c_NxD = c_NxD.astype(dtype)
        is_null_N = y_N == config.null_label
        given = Given(c_NxD, is_null_N, angles, train, joint_scale=joint_scale)
        if self.trunk.pregate is not None:
            given = dataclasses.replace(given, decided=self.trunk.pregate(x_NxSxD, given))
        return x_NxSxD, given, grid

    def leave(self, x_NxSxD: jax.Array, given: Given, grid: Grid) -> jax.Array:
        """The other end: from the trunk's tokens to float32 [N, H, W, C']."""
        shift_NxD, scale_NxD = jnp.split(self.modulation(jax.nn.silu(given.condition)), 2, axis=-1)
        x_NxSxD = modulate(x_NxSxD, shift_NxD, scale_NxD).astype(jnp.float32)
        return unpatchify(self.patch_out(x_NxSxD), grid, self.config.patch_size)

    def _second_conditions(self) -> list[jax.Array]:
        """[D] for each second image of a pair, in order; none where they are not adapted."""
        if self.second_condition is None:
            return []
        return [p[...] for p in (self.second_condition, *(self.other_conditions or ()))]

    def _guesses(self, routing: tuple[Routing, ...], grid: Grid) -> Guesses | None:
        """What layers guess, as images of so many patches, layer after layer."""
        config, found, coefs = self.config, [], []
        mixtures = [segment.moe for segment in config.trunk if segment.moe is not None]
        for record, moe in zip(routing, mixtures, strict=True):
            told = moe.router.guess(config.width)
            if record.guess is None or told is None:
                continue
            layers, _, features = record.guess.shape
            of_tokens = record.guess.reshape(-1, math.prod(grid), features)
            images = unpatchify(of_tokens, grid, config.patch_size)
            found.append(images.reshape(layers, -1, *images.shape[1:]))
            coefs += [told.coef] * layers
        return Guesses(jnp.concatenate(found), tuple(coefs)) if found else None


def _check_labels(y_N: jax.typing.ArrayLike, null_label: int) -> None:
    if isinstance(y_N, Tracer) or not getattr(y_N, "is_fully_addressable", True):
        return
    known_N = np.asarray(y_N)
    wrong = known_N[(known_N < 0) | (known_N > null_label)]
    if wrong.size:
        raise ConfigError(
            f"y_N has {wrong[0]}; allowed: 0 to {null_label - 1}, and {null_label} for no class"
        )
