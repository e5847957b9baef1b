"""Inception-v3 as TensorFlow released it on 2015-12-05: the network behind FID, sFID and IS.

It is neither the Inception-v3 of the paper (Szegedy et al. 2015) nor torchvision's, and its quirks
count: average pools leave padding out of the mean, the last block pools by maximum, images are
resized by TensorFlow 1's bilinear rule, and there are 1008 classes. Modules carry the names of the
PyTorch ports (pytorch-fid, torch-fidelity), whose weight files share one layout.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dit_moe.nn.flat import bind, variables

SIZE = 299
CLASSES = 1008
SPATIAL_CHANNELS = 7
BATCH_NORM_EPSILON = 1e-3

DESCRIPTION = {
    "network": "Inception-v3, 2015-12-05",
    "resize": "299x299, bilinear, as TensorFlow 1: no half-pixel centres, no antialiasing",
    "input": "(x - 128) / 128 of uint8 RGB; grey is repeated",
    "pool": "mean over the last 8x8 map, 2048",
    "spatial": "first 7 channels of the 17x17 map mixed_6/conv, flattened as NHWC, 2023",
    "logits": "1008, without bias",
}

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Conv(nnx.Module):
    """Convolution, batch normalisation, ReLU. The normalisation is folded into kernel and bias."""

    def __init__(
        self,
        width_in: int,
        width: int,
        kernel: tuple[int, int] = (1, 1),
        stride: int = 1,
        padding: str = "SAME",
    ):
        self.kernel = nnx.Param(jnp.zeros((*kernel, width_in, width)))
        self.bias = nnx.Param(jnp.zeros(width))
        self.stride, self.padding = stride, padding

    def __call__(self, x_NxHxWxC: jax.Array) -> jax.Array:
        """[N, H, W, C] to [N, H', W', C']."""
        return self.activate(self.project(x_NxHxWxC))

    def project(self, x_NxHxWxC: jax.Array) -> jax.Array:
        """The linear part, without bias."""
        if self.kernel.shape[:2] == (1, 1):  # a matrix product is twice as fast on CPU
            return x_NxHxWxC @ self.kernel[0, 0]
        strides = (self.stride, self.stride)
        return jax.lax.conv_general_dilated(
            x_NxHxWxC, self.kernel[...], strides, self.padding, dimension_numbers=_DIMENSIONS
        )

    def activate(self, y_NxHxWxC: jax.Array) -> jax.Array:
        """Bias and ReLU."""
        return jax.nn.relu(y_NxHxWxC + self.bias[...])


def average_pool(x_NxHxWxC: jax.Array) -> jax.Array:
    """Means over 3x3 windows, of the pixels inside the image only, at stride 1."""
    return nnx.avg_pool(x_NxHxWxC, (3, 3), (1, 1), "SAME", count_include_pad=False)


def max_pool(x_NxHxWxC: jax.Array, stride: int, padding: str) -> jax.Array:
    """Maxima over 3x3 windows; padding never wins."""
    return nnx.max_pool(x_NxHxWxC, (3, 3), (stride, stride), padding)


def average_then(conv: Conv, x_NxHxWxC: jax.Array) -> jax.Array:
    """conv(average_pool(x)) for a 1x1 convolution; as both are linear, the narrow map is pooled."""
    return conv.activate(average_pool(conv.project(x_NxHxWxC)))


class BlockA(nnx.Module):
    """35x35: a 5x5 convolution and two 3x3 in a row."""

    def __init__(self, width_in: int, pool_width: int):
        self.branch1x1 = Conv(width_in, 64)
        self.branch5x5_1 = Conv(width_in, 48)
        self.branch5x5_2 = Conv(48, 64, (5, 5))
        self.branch3x3dbl_1 = Conv(width_in, 64)
        self.branch3x3dbl_2 = Conv(64, 96, (3, 3))
        self.branch3x3dbl_3 = Conv(96, 96, (3, 3))
        self.branch_pool = Conv(width_in, pool_width)

    def __call__(self, x: jax.Array) -> jax.Array:
        branches = [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            average_then(self.branch_pool, x),
        ]
        return jnp.concatenate(branches, -1)


class BlockB(nnx.Module):
    """35x35 to 17x17."""

    def __init__(self, width_in: int):
        self.branch3x3 = Conv(width_in, 384, (3, 3), 2, "VALID")
        self.branch3x3dbl_1 = Conv(width_in, 64)
        self.branch3x3dbl_2 = Conv(64, 96, (3, 3))
        self.branch3x3dbl_3 = Conv(96, 96, (3, 3), 2, "VALID")

    def __call__(self, x: jax.Array) -> jax.Array:
        branches = [
            self.branch3x3(x),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            max_pool(x, 2, "VALID"),
        ]
        return jnp.concatenate(branches, -1)


class BlockC(nnx.Module):
    """17x17: 7x7 convolutions as pairs of 1x7 and 7x1."""

    def __init__(self, width: int):
        self.branch1x1 = Conv(768, 192)
        self.branch7x7_1 = Conv(768, width)
        self.branch7x7_2 = Conv(width, width, (1, 7))
        self.branch7x7_3 = Conv(width, 192, (7, 1))
        self.branch7x7dbl_1 = Conv(768, width)
        self.branch7x7dbl_2 = Conv(width, width, (7, 1))
        self.branch7x7dbl_3 = Conv(width, width, (1, 7))
        self.branch7x7dbl_4 = Conv(width, width, (7, 1))
        self.branch7x7dbl_5 = Conv(width, 192, (1, 7))
        self.branch_pool = Conv(768, 192)

    def __call__(self, x: jax.Array) -> jax.Array:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branches = [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            average_then(self.branch_pool, x),
        ]
        return jnp.concatenate(branches, -1)


class BlockD(nnx.Module):
    """17x17 to 8x8."""

    def __init__(self):
        self.branch3x3_1 = Conv(768, 192)
        self.branch3x3_2 = Conv(192, 320, (3, 3), 2, "VALID")
        self.branch7x7x3_1 = Conv(768, 192)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = Conv(192, 192, (3, 3), 2, "VALID")

    def __call__(self, x: jax.Array) -> jax.Array:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        branches = [
            self.branch3x3_2(self.branch3x3_1(x)),
            self.branch7x7x3_4(seven),
            max_pool(x, 2, "VALID"),
        ]
        return jnp.concatenate(branches, -1)


class BlockE(nnx.Module):
    """8x8: 3x3 convolutions that end side by side in a 1x3 and a 3x1."""

    def __init__(self, width_in: int, pool: str):
        self.branch1x1 = Conv(width_in, 320)
        self.branch3x3_1 = Conv(width_in, 384)
        self.branch3x3_2a = Conv(384, 384, (1, 3))
        self.branch3x3_2b = Conv(384, 384, (3, 1))
        self.branch3x3dbl_1 = Conv(width_in, 448)
        self.branch3x3dbl_2 = Conv(448, 384, (3, 3))
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1))
        self.branch_pool = Conv(width_in, 192)
        self.pool = pool

    def __call__(self, x: jax.Array) -> jax.Array:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        if self.pool == "average":
            pooled = average_then(self.branch_pool, x)
        else:
            pooled = self.branch_pool(max_pool(x, 1, "SAME"))
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            pooled,
        ]
        return jnp.concatenate(branches, -1)


class Inception(nnx.Module):
    """The network from resized images to features. The order of attributes is that of the data."""

    def __init__(self):
        self.Conv2d_1a_3x3 = Conv(3, 32, (3, 3), 2, "VALID")
        self.Conv2d_2a_3x3 = Conv(32, 32, (3, 3), 1, "VALID")
        self.Conv2d_2b_3x3 = Conv(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = Conv(64, 80)
        self.Conv2d_4a_3x3 = Conv(80, 192, (3, 3), 1, "VALID")
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(128)
        self.Mixed_6c = BlockC(160)
        self.Mixed_6d = BlockC(160)
        self.Mixed_6e = BlockC(192)
        self.Mixed_7a = BlockD()
        self.Mixed_7b = BlockE(1280, "average")
        self.Mixed_7c = BlockE(2048, "max")
        self.fc = nnx.Param(jnp.zeros((2048, CLASSES)))

    def stem(self, x_NxHxWx3: jax.Array) -> jax.Array:
        """Images of any size, 0 to 255, to the [N, 35, 35, 192] map."""
        x = (resize(x_NxHxWx3) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool(x, 2, "VALID")))
        return max_pool(x, 2, "VALID")

    def __call__(self, image_NxHxWx3: jax.Array) -> dict[str, jax.Array]:
        """See `features`."""
        # On CPU, XLA is up to three times as fast on the large early maps if they fit its caches.
        at_once = 1 if jax.default_backend() == "cpu" else len(image_NxHxWx3)
        x = jax.lax.map(lambda x: self.stem(x[None])[0], image_NxHxWx3, batch_size=at_once)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        spatial = self.Mixed_6d.branch1x1(x)[..., :SPATIAL_CHANNELS]
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        pool_NxD = x.mean((1, 2))
        return {
            "pool": pool_NxD,
            "spatial": spatial.reshape(len(spatial), -1),
            "logits": pool_NxD @ self.fc[...],
        }


def resize(x_NxHxWxC: jax.Array) -> jax.Array:
    """TensorFlow 1's ResizeBilinear to 299x299 with align_corners=False.

    Pixel i is read at i * (side / 299), with no half-pixel shift. Nothing is averaged where
    an image shrinks.

    Args:
        x_NxHxWxC: [N, H, W, C], any real type.

    Returns:
        float32 [N, 299, 299, C].
    """
    x = x_NxHxWxC.astype(jnp.float32)
    for axis in (2, 1):
        side = x.shape[axis]
        at = np.arange(SIZE, dtype=np.float32) * np.float32(side / SIZE)
        low = at.astype(np.int32)
        fraction = np.expand_dims(at - low, tuple(range(1, 4 - axis)))
        x_low = x.take(low, axis)
        x_high = x.take(np.minimum(low + 1, side - 1), axis)
        x = x_low + (x_high - x_low) * fraction
    return x


def features(parameters: Mapping[str, jax.Array], image_NxHxWx3: jax.Array) -> dict[str, jax.Array]:
    """Runs the network; to be jitted.

    Args:
        parameters: of `parameters_from`.
        image_NxHxWx3: uint8 [N, H, W, 3], RGB, of any size.

    Returns:
        float32 arrays:
        `pool` [N, 2048], "pool_3" of the TensorFlow graph, for FID.
        `spatial` [N, 2023], for sFID: the first 7 channels of what ADM's evaluator (Dhariwal and
        Nichol 2021) reads at "mixed_6/conv:0", flattened in NHWC order. The graph counts its blocks
        mixed, mixed_1, ... mixed_10, which the ports call Mixed_5b, 5c, 5d, 6a, 6b, 6c, 6d, 6e, 7a,
        7b, 7c; in a block, "conv" is the 1x1 branch, and the op that carries this bare name is the
        last of the unit, the ReLU. So it is Mixed_6d.branch1x1, not a branch of Mixed_6e.
        `logits` [N, 1008] without the bias of the last layer: their softmax is what the Inception
        Score is made of, in ADM's evaluator (which takes the weights at "softmax/logits/MatMul") as
        in its original code and in torch-fidelity ("logits_unbiased"). The biased logits behind
        the graph's own "softmax:0" give another score.
    """
    with jax.default_matmul_precision("highest"):
        return bind(nnx.eval_shape(Inception), parameters)(image_NxHxWx3)


@functools.cache
def layout() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the published weight files of the PyTorch ports."""
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (CLASSES, 2048), "fc.bias": (CLASSES,)}
    for path, variable in variables(nnx.eval_shape(Inception)).items():
        shape = variable.shape
        unit, _, field = path.rpartition(".")
        if field == "kernel":
            height, width, channels_in, channels = shape
            shapes[f"{unit}.conv.weight"] = (channels, channels_in, height, width)
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{unit}.bn.{name}"] = (channels,)
    return shapes


def parameters_from(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The network's parameters, float32, from published tensors that fit `layout`.

    Batch normalisation is folded in float64. `fc.bias` is unused, see `features`.
    """
    parameters = {"fc": tensors["fc.weight"].T}
    for name, weight_OxIxHxW in tensors.items():
        if not name.endswith(".conv.weight"):
            continue
        unit = name.removesuffix(".conv.weight")
        gamma, beta, mean, variance = (
            tensors[f"{unit}.bn.{field}"].astype(np.float64)
            for field in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
        parameters[f"{unit}.kernel"] = weight_OxIxHxW.transpose(2, 3, 1, 0) * scale
        parameters[f"{unit}.bias"] = beta - mean * scale
    return {path: np.ascontiguousarray(x, np.float32) for path, x in parameters.items()}
