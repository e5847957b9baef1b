"""Runs a feature network over many images on all local devices."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from . import weights
from .networks import NETWORKS


class Extractor:
    """A feature network with its weights, ready for images.

    The batch is split over all local devices. One call works on consecutive batches, the next of
    which is made ready on the host while the devices compute, so calls with many images are best.
    """

    def __init__(self, name: str, tensors: Mapping[str, np.ndarray], batch_size: int = 64):
        """Takes published tensors that fit the network's layout. See `load` for files.

        Raises:
            ValueError: the name or the batch size is not allowed.
        """
        if name not in NETWORKS:
            raise ValueError(
                f"The features are {name!r}, but must be one of {', '.join(NETWORKS)}."
            )
        if batch_size < 1:
            raise ValueError(f"The batch size is {batch_size}, but must be at least 1.")
        self.name = name
        self.weights_sha256 = _sha256_of(tensors)
        """A digest of the tensors' names, shapes and values: the same for a `.pth` converted."""
        self._network = NETWORKS[name]

        num_devices = jax.local_device_count()
        self.batch_size = -(-batch_size // num_devices) * num_devices
        mesh = jax.make_mesh(
            (num_devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices()
        )
        self._sharding = NamedSharding(mesh, P("data"))
        self._parameters = jax.device_put(
            self._network.parameters_from(tensors), NamedSharding(mesh, P())
        )
        self._features = jax.jit(
            jax.shard_map(
                self._network.features,
                mesh=mesh,
                in_specs=(P(), P("data")),
                out_specs=P("data"),
                check_vma=False,
            )
        )

    @property
    def description(self) -> dict[str, str]:
        """What the features depend on, ready for JSON: network, preprocessing, outputs, weights."""
        return {**self._network.description, "weights_sha256": self.weights_sha256}

    def __call__(self, image_NxHxWxC: np.ndarray) -> dict[str, np.ndarray]:
        """Computes features.

        Args:
            image_NxHxWxC: uint8 [N, H, W, C], N >= 1, of any size; C is 3 (RGB) or 1 (grey, which
                is repeated). Another size compiles anew, another N does not.

        Returns:
            float32 arrays by output. "inception": "pool" [N, 2048], "spatial" [N, 2023], "logits"
            [N, 1008], see `inception.features`. "dinov2": "pool" [N, 1024].

        Raises:
            ValueError: the images have another type or shape.
        """
        shape, dtype = image_NxHxWxC.shape, image_NxHxWxC.dtype
        if dtype != np.uint8 or len(shape) != 4 or 0 in shape or shape[3] not in (1, 3):
            raise ValueError(
                f"The images are {dtype} {shape}, but must be uint8 [N, H, W, C] with N >= 1 and C "
                "of 1 or 3."
            )
        outputs = list(self._run(image_NxHxWxC))
        return {
            key: np.concatenate([output[key] for output in outputs])[: len(image_NxHxWxC)]
            for key in outputs[0]
        }

    def _run(self, image_NxHxWxC: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        running = None
        for start in range(0, len(image_NxHxWxC), self.batch_size):
            batch = image_NxHxWxC[start : start + self.batch_size]
            batch = self._network.prepare(batch.repeat(3 // batch.shape[3], axis=3))
            padding = self.batch_size - len(batch)
            batch = np.pad(batch, ((0, padding), (0, 0), (0, 0), (0, 0)))
            # Returns before it is done: the devices compute while the next batch is prepared.
            dispatched = self._features(self._parameters, jax.device_put(batch, self._sharding))
            if running is not None:
                yield jax.device_get(running)
            running = dispatched
        yield jax.device_get(running)


def load(name: str, path: Path, batch_size: int = 64) -> Extractor:
    """An extractor with the weights of a file. See `eval.features.load_extractor`."""
    if name not in NETWORKS:
        raise ValueError(f"The features are {name!r}, but must be one of {', '.join(NETWORKS)}.")
    return Extractor(name, weights.read(path, name), batch_size)


def _sha256_of(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        x = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {x.dtype} {x.shape}\n".encode())
        digest.update(x.data)
    return digest.hexdigest()
