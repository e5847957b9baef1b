"""DINOv2 ViT-L/14 without registers (Oquab et al. 2023): the network behind FD-DINOv2.

Stein et al., "Exposing flaws of generative model evaluation metrics and their unfair treatment of
diffusion models" (2023), propose its class token in place of Inception's pooled features.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from dit_moe.nn.flat import bind

MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)

DESCRIPTION = {
    "network": "DINOv2 ViT-L/14",
    "resize": "224x224, bicubic with antialiasing to uint8, as Pillow",
    "input": "(x / 255 - mean) / std of ImageNet; grey is repeated",
    "position": "37x37 to 16x16, bicubic at a scale of 16.1 / 37, as the authors' code",
    "pool": "class token after the last layer norm, 1024",
}


@dataclass(frozen=True)
class DinoConfig:
    """The shape of the network. The defaults are those of the published ViT-L/14."""

    image_size: int = 224
    patch_size: int = 14
    width: int = 1024
    depth: int = 24
    heads: int = 16
    hidden: int = 4096
    position_side: int = 37
    """Patches along a side of the images (518x518) that the position embedding was made for."""
    position_offset: float = 0.1
    """Added to the number of patches when the embedding is resampled. The authors' code adds 0.1
    (it once guarded against rounding), and so do all published FD-DINOv2; transformers adds 0."""

    @property
    def side(self) -> int:
        """Patches along a side of the image."""
        return self.image_size // self.patch_size


def prepare(image_NxHxWx3: np.ndarray, size: int = 224) -> np.ndarray:
    """Resizes on the host, by the rule of the dgm-eval code of Stein et al.

    Args:
        image_NxHxWx3: uint8 [N, H, W, 3]. The aspect is not kept.
        size: side of the result.

    Returns:
        uint8 [N, size, size, 3].
    """
    bicubic = Image.Resampling.BICUBIC
    return np.stack(
        [np.asarray(Image.fromarray(x).resize((size, size), bicubic)) for x in image_NxHxWx3]
    )


def resampling_matrix(side: int, new_side: int, offset: float) -> np.ndarray:
    """Bicubic interpolation along one axis as PyTorch's: no antialiasing, Keys' kernel, a = -0.75.

    Point i is read at (i + 0.5) * side / (new_side + offset) - 0.5; beyond an edge, at the edge.

    Returns:
        float32 [new_side, side]; the rows sum to 1.
    """
    a = -0.75
    at = (np.arange(new_side) + 0.5) * side / (new_side + offset) - 0.5
    matrix = np.zeros((new_side, side))
    for tap in range(-1, 3):
        index = np.floor(at).astype(int) + tap
        d = np.abs(at - index)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        matrix[np.arange(new_side), index.clip(0, side - 1)] += np.where(d <= 1, near, far)
    return matrix.astype(np.float32)


class Block(nnx.Module):
    """Pre-norm attention and MLP, each scaled per channel (layer scale)."""

    def __init__(self, config: DinoConfig, rngs: nnx.Rngs):
        width = config.width
        self.heads = config.heads
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.query, self.key, self.value, self.out = (
            nnx.Linear(width, width, rngs=rngs) for _ in range(4)
        )
        self.scale1 = nnx.Param(jnp.ones(width))
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.fc1 = nnx.Linear(width, config.hidden, rngs=rngs)
        self.fc2 = nnx.Linear(config.hidden, width, rngs=rngs)
        self.scale2 = nnx.Param(jnp.ones(width))

    def __call__(self, x_NxTxD: jax.Array) -> jax.Array:
        n, t, d = x_NxTxD.shape
        h_NxTxD = self.norm1(x_NxTxD)
        q, k, v = (
            f(h_NxTxD).reshape(n, t, self.heads, d // self.heads)
            for f in (self.query, self.key, self.value)
        )
        mixed_NxTxD = jax.nn.dot_product_attention(q, k, v).reshape(n, t, d)
        x_NxTxD = x_NxTxD + self.out(mixed_NxTxD) * self.scale1[...]
        h_NxTxF = jax.nn.gelu(self.fc1(self.norm2(x_NxTxD)), approximate=False)
        return x_NxTxD + self.fc2(h_NxTxF) * self.scale2[...]


class DinoV2(nnx.Module):
    """The network from resized images to the class token. Blocks are stacked and scanned."""

    def __init__(self, config: DinoConfig, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        self.patch = nnx.Linear(3 * config.patch_size**2, width, rngs=rngs)
        self.class_token = nnx.Param(jnp.zeros(width))
        self.position = nnx.Param(jnp.zeros((1 + config.position_side**2, width)))

        @nnx.split_rngs(splits=config.depth)
        @nnx.vmap
        def build_blocks(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs)

        self.blocks = build_blocks(rngs)
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)

    def __call__(self, image_NxHxWx3: jax.Array) -> dict[str, jax.Array]:
        """See `features`."""
        config, n = self.config, len(image_NxHxWx3)
        x = (image_NxHxWx3.astype(jnp.float32) / 255 - MEAN) / STD
        x = x.reshape(n, config.side, config.patch_size, config.side, config.patch_size, 3)
        x_NxTxD = self.patch(x.transpose(0, 1, 3, 2, 4, 5).reshape(n, config.side**2, -1))
        class_Nx1xD = jnp.broadcast_to(self.class_token[...], (n, 1, config.width))
        x_NxTxD = jnp.concatenate([class_Nx1xD, x_NxTxD], 1) + self.resampled_position()

        graphdef, parameters = nnx.split(self.blocks)

        def run_block(x_NxTxD: jax.Array, parameters: nnx.State) -> tuple[jax.Array, None]:
            return nnx.merge(graphdef, parameters)(x_NxTxD), None

        x_NxTxD, _ = jax.lax.scan(run_block, x_NxTxD, parameters)
        return {"pool": self.norm(x_NxTxD[:, 0])}

    def resampled_position(self) -> jax.Array:
        """The position embedding [1 + side^2, D] of the class token and of this grid of patches."""
        config, position = self.config, self.position[...]
        if config.side == config.position_side:
            return position
        grid = position[1:].reshape(config.position_side, config.position_side, -1)
        resample = resampling_matrix(config.position_side, config.side, config.position_offset)
        grid = jnp.einsum("ip,jq,pqd->ijd", resample, resample, grid)
        return jnp.concatenate([position[:1], grid.reshape(config.side**2, -1)])


def features(
    parameters: Mapping[str, jax.Array],
    image_NxHxWx3: jax.Array,
    config: DinoConfig = DinoConfig(),
) -> dict[str, jax.Array]:
    """Runs the network; to be jitted.

    Args:
        parameters: of `parameters_from`.
        image_NxHxWx3: uint8 [N, 224, 224, 3] of `prepare`, RGB.
        config: shape of the network.

    Returns:
        `pool`: float32 [N, 1024], the class token after the last layer norm.
    """
    with jax.default_matmul_precision("highest"):
        model = nnx.eval_shape(lambda: DinoV2(config, nnx.Rngs(0)))
        return bind(model, parameters)(image_NxHxWx3)


_OF_BLOCK = {
    "norm1.scale": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "scale1": "layer_scale1.lambda1",
    "norm2.scale": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "scale2": "layer_scale2.lambda1",
}
"""Ours to the published name, after "encoder.layer.0."; of a linear layer, both tensors."""

_OF_AUTHORS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "blocks": "encoder.layer",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
"""A part of a name in the authors' .pth files to that of transformers."""


@functools.cache
def layout(config: DinoConfig = DinoConfig()) -> dict[str, tuple[int, ...]]:
    """Name and shape of the tensors in `facebook/dinov2-large`, the layout of transformers.

    Without the mask token, which only training uses.
    """
    width, hidden, patch = config.width, config.hidden, config.patch_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, 1 + config.position_side**2, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    linear = {"fc1": (hidden, width), "fc2": (width, hidden)}
    linear |= dict.fromkeys(("query", "key", "value", "out"), (width, width))
    for i in range(config.depth):
        for ours, name in _OF_BLOCK.items():
            if ours in linear:
                shapes[f"encoder.layer.{i}.{name}.weight"] = linear[ours]
                shapes[f"encoder.layer.{i}.{name}.bias"] = linear[ours][:1]
            else:
                shapes[f"encoder.layer.{i}.{name}"] = (width,)
    return shapes


def renamed(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors by the names of transformers, if they are by those of the authors' code."""
    if "pos_embed" not in tensors:
        return dict(tensors)
    result = {}
    for name, x in tensors.items():
        if name.startswith("norm."):
            name = f"layer{name}"
        for theirs, ours in _OF_AUTHORS.items():
            name = name.replace(theirs, ours)
        if ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), np.split(x, 3), strict=True):
                result[name.replace("attn.qkv", f"attention.attention.{part}")] = third
        else:
            result[name] = x
    return result


def parameters_from(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The network's parameters, float32, from published tensors that fit a `layout`."""
    patch_DxCxHxW = tensors["embeddings.patch_embeddings.projection.weight"]
    width = len(patch_DxCxHxW)
    parameters = {
        "patch.kernel": patch_DxCxHxW.transpose(2, 3, 1, 0).reshape(-1, width),
        "patch.bias": tensors["embeddings.patch_embeddings.projection.bias"],
        "class_token": tensors["embeddings.cls_token"][0, 0],
        "position": tensors["embeddings.position_embeddings"][0],
        "norm.scale": tensors["layernorm.weight"],
        "norm.bias": tensors["layernorm.bias"],
    }
    depth = sum(name.endswith(".norm1.weight") for name in tensors)

    def stack(name: str) -> np.ndarray:
        return np.stack([tensors[f"encoder.layer.{i}.{name}"] for i in range(depth)])

    for ours, name in _OF_BLOCK.items():
        if f"encoder.layer.0.{name}" in tensors:
            parameters[f"blocks.{ours}"] = stack(name)
        else:
            parameters[f"blocks.{ours}.kernel"] = stack(f"{name}.weight").swapaxes(1, 2)
            parameters[f"blocks.{ours}.bias"] = stack(f"{name}.bias")
    return {path: np.ascontiguousarray(x, np.float32) for path, x in parameters.items()}
