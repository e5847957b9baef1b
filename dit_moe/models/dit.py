"""The diffusion transformer (Peebles & Xie 2023), dense or sparse."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.sharding import PartitionSpec

from dit_moe.config import ConfigError, ModelConfig
from dit_moe.models.block import Group, group_size, modulate
from dit_moe.models.prediction import Prediction
from dit_moe.moe.backends.blocked import DISPATCH_RESIDUAL
from dit_moe.nn.attention import ATTENTION_RESIDUAL
from dit_moe.nn.embeddings import (
    LabelEmbedding,
    TimestepEmbedding,
    patchify,
    position_embedding,
    unpatchify,
)
from dit_moe.nn.linear import linear

_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        # The scores of attention are batched products: many bytes, few operations.
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(DISPATCH_RESIDUAL, ATTENTION_RESIDUAL),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class DiT(nnx.Module):
    """Predicts noise, velocity or both mean and variance from a noisy image, a time and a label.

    The blocks' parameters are stacked on a leading axis of `groups` and run by a scan: a deep
    network compiles as fast as a shallow one.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        width, dtype = config.width, jnp.dtype(config.dtype)
        zeros = jax.nn.initializers.zeros
        patch_features = config.patch_size**2 * config.channels
        self.patch_in = linear(patch_features, width, (None, "embed"), rngs, dtype=dtype)
        self.timestep = TimestepEmbedding(width, rngs)
        self.label = LabelEmbedding(config.num_classes, width, rngs)

        @nnx.split_rngs(splits=config.depth // group_size(config))
        @nnx.vmap
        def build_groups(rngs: nnx.Rngs) -> Group:
            return Group(config, rngs)

        self.groups = build_groups(rngs)
        self.modulation = linear(width, 2 * width, ("embed", None), rngs, dtype=dtype, init=zeros)
        self.patch_out = linear(
            width,
            config.patch_size**2 * config.out_channels,
            ("embed", None),
            rngs,
            init=zeros,
        )

    def __call__(
        self, x_NxHxWxC: jax.Array, t_N: jax.Array, y_N: jax.Array, *, train: bool = False
    ) -> Prediction:
        """Runs the network.

        Args:
          x_NxHxWxC: [N, H, W, C] noisy images or latents, any float type. Square; of another side
            than config.image_size too, for training on mixed resolutions.
          t_N: [N] times in the unit that the objective feeds (0 to 1, or 0 to 1000).
          y_N: [N] integer labels; num_classes is the null label. Under `jit` they are not
            known, and JAX clamps what is out of range.
          train: a training step; some routers choose otherwise then (DiffMoE).

        Returns:
          The prediction with value float32 [N, H, W, C'].

        Raises:
          ConfigError: a label is known and out of range.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        _check_labels(y_N, config.null_label)
        x_NxSxD = self.patch_in(patchify(x_NxHxWxC, config.patch_size))
        if config.position == "sincos":
            native_side = config.image_size // config.patch_size
            side = x_NxHxWxC.shape[1] // config.patch_size
            x_NxSxD += position_embedding(side, config.width, native_side).astype(dtype)
        c_NxD = (self.timestep(t_N) + self.label(y_N)).astype(dtype)
        is_null_N = y_N == config.null_label

        graphdef, parameters = nnx.split(self.groups)

        def run_group(x_NxSxD: jax.Array, parameters: nnx.State):
            group = nnx.merge(graphdef, parameters)
            own = map(_own_images, (x_NxSxD, c_NxD, is_null_N))
            x_NxSxD, routing = group(*own, train=train)
            return _own_images(x_NxSxD), routing

        if config.remat != "none":
            # Inside a scan, XLA cannot merge the recomputation with the forward pass anyway.
            run_group = jax.checkpoint(
                run_group, policy=_REMAT_POLICIES[config.remat], prevent_cse=False
            )
        x_NxSxD, routing = jax.lax.scan(run_group, x_NxSxD, parameters)

        shift_NxD, scale_NxD = jnp.split(self.modulation(jax.nn.silu(c_NxD)), 2, axis=-1)
        x_NxSxD = modulate(x_NxSxD, shift_NxD, scale_NxD).astype(jnp.float32)
        value = unpatchify(self.patch_out(x_NxSxD), config.patch_size, config.out_channels)
        losses = {} if routing is None else {k: v.sum() for k, v in routing.losses.items()}
        return Prediction(value=value, routing=routing, losses=losses)


def _check_labels(y_N: jax.typing.ArrayLike, null_label: int) -> None:
    if isinstance(y_N, Tracer) or not getattr(y_N, "is_fully_addressable", True):
        return
    known_N = np.asarray(y_N)
    wrong = known_N[(known_N < 0) | (known_N > null_label)]
    if wrong.size:
        raise ConfigError(
            f"y_N has {wrong[0]}; allowed: 0 to {null_label - 1}, and {null_label} for no class"
        )


def _own_images(array: jax.Array) -> jax.Array:
    """Keeps every image on its device: XLA might gather the batch rather than the weights."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return array
    return jax.lax.with_sharding_constraint(array, PartitionSpec(mesh.axis_names))
