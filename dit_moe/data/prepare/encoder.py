"""Pictures through the autoencoder, on all local devices."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dit_moe.data.prepare.job import PrepareError

if TYPE_CHECKING:
    from dit_moe.autoencoder.loading import Loaded
    from dit_moe.autoencoder.network import Autoencoder


class Encoder:
    """Encodes pictures and their mirror images in batches of one fixed size.

    Args:
      loaded: the autoencoder.
      batch_size: pictures per device and pass, so that the same numbers come from any number of
        devices of one kind.
      devices: where it runs; by default on all local ones.
    """

    def __init__(self, loaded: "Loaded", batch_size: int, devices: Sequence[object] | None = None):
        mesh = Mesh(np.asarray(devices or jax.local_devices()), ("batch",))
        split, everywhere = PartitionSpec("batch"), PartitionSpec()
        self.batch_size = batch_size * mesh.size
        """Pictures of one pass over all devices."""
        self._sharding = NamedSharding(mesh, split)
        self._model = jax.device_put(loaded.model, NamedSharding(mesh, everywhere))
        # shard_map: every device runs the program of a single one.
        self._encode = jax.jit(
            jax.shard_map(
                _posteriors,
                mesh=mesh,
                in_specs=(everywhere, split),
                out_specs=split,
                check_vma=False,
            )
        )

    def __call__(self, image_NxHxWx3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The posteriors of pictures (0) and of their mirror images (1).

        Args:
          image_NxHxWx3: uint8, N up to `batch_size`.

        Returns:
          mean and log-variance, float16 [N, 2, h, w, c], unscaled.

        Raises:
          PrepareError: they are not finite.
        """
        number = len(image_NxHxWx3)
        padding = [(0, self.batch_size - number), (0, 0), (0, 0), (0, 0)]
        image = jax.device_put(np.pad(image_NxHxWx3, padding), self._sharding)
        # GPUs and TPUs would round float32 products to fewer bits by default.
        with jax.default_matmul_precision("highest"):
            mean, log_variance = jax.device_get(self._encode(self._model, image))
        if not (np.isfinite(mean[:number]).all() and np.isfinite(log_variance[:number]).all()):
            raise PrepareError("the autoencoder's output is not finite, or exceeds float16")
        return mean[:number], log_variance[:number]


def _posteriors(model: "Autoencoder", image_NxHxWx3: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_NxHxWx3 = image_NxHxWx3.astype(jnp.float32) / 127.5 - 1
    pair_Nx2xHxWx3 = jnp.stack([x_NxHxWx3, x_NxHxWx3[:, :, ::-1]], axis=1)
    moments = model.encode(pair_Nx2xHxWx3.reshape(-1, *x_NxHxWx3.shape[1:]))
    unpair = partial(jnp.reshape, shape=(len(x_NxHxWx3), 2, *moments.mean.shape[1:]))
    return (
        unpair(moments.mean).astype(jnp.float16),
        unpair(moments.log_variance).astype(jnp.float16),
    )
