"""A run on pairs, or several in one, made ready to draw them."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.autoencoder.latent_space import read_latent_space
from dit_moe.config import Config, MeshConfig, ModelConfig, require
from dit_moe.config.data import PairKind
from dit_moe.config.files import load_json
from dit_moe.data.classes import model_classes
from dit_moe.data.pairs import derivation
from dit_moe.data.picture_files import printable
from dit_moe.devices import hosts
from dit_moe.devices.mesh import batch_sharding, build_mesh, replicated
from dit_moe.diffusion.measurements import Mask
from dit_moe.pairs.combine import combine
from dit_moe.pairs.denoise import Stream
from dit_moe.pairs.request import PLAIN, PairsRequest
from dit_moe.pairs.sampler import Streams, build_pairs_sampler, check_levels
from dit_moe.runs.loading import load_run, locate
from dit_moe.sampling.known_classes import own_labels
from dit_moe.sampling.known_pictures import (
    KnownPictures,
    check_labels,
    digest,
    read_mask,
    read_pictures,
)
from dit_moe.sampling.request import build_request
from dit_moe.sampling.run_sampler import classes_to_draw, identity
from dit_moe.sampling.sampler import MAX_BATCH, fitting, image_keys, round_up
from dit_moe.storage import images


class PairsSampler:
    """A run on pairs made ready to draw.

    Args:
      workdir: as of `RunSampler`.
      asked: what is to be drawn, and with which other runs; of these the newest checkpoint.
      ema: the moving average of the parameters rather than the parameters.
      batch_size: pairs per pass over all devices.
      checkpoint: as of `RunSampler`.
      request: as for `request.build_request`; `classes` by label or by name.

    Raises:
      ConfigError: the run or an argument cannot be used; the message is one sentence.
    """

    def __init__(
        self,
        workdir: str | Path,
        asked: PairsRequest,
        *,
        ema: bool,
        batch_size: int,
        checkpoint: str = "newest",
        **request: Any,
    ):
        require(
            1 <= batch_size <= MAX_BATCH, f"batch_size is {batch_size}; allowed: 1 to {MAX_BATCH}"
        )
        folder = locate(workdir)
        folders = [folder, *(locate(other, "others") for other in asked.others)]
        fields = ["workdir", *["others"] * len(asked.others)]
        configs = [_config(*place) for place in zip(folders, fields, strict=True)]
        config = configs[0]
        model = config.model
        self.sides = asked.sides
        """What the images of a pair are called."""
        self.classes = model_classes(config.data, model, folder)
        self._asked, self._model = asked, model
        given = [read_pictures(path, "given", model) for path in asked.given]
        known = asked.known and read_pictures(asked.known, "known", model)
        if not request.get("classes"):
            found = [("given", pictures) for pictures in given]
            request["classes"] = self._own_classes([*found, ("known", known)])
        names = [str(name) for name in request["classes"]]
        request["classes"] = classes_to_draw(self.classes.labels(names), folder, model)
        self.request = build_request(config, **request)
        cache = self.request.cache
        require(
            cache is None,
            f"step_cache is {cache and cache.name!r} for pairs; allowed: none, as all of their "
            "evaluations are computed",
        )
        check_levels(self.request, asked.levels)
        self._arrays, self._mask = self._held(given, known, configs)
        runs = [load_run(folder, ema, checkpoint=checkpoint, pairs=True)]
        runs += [load_run(other, ema, pairs=True) for other in folders[1:]]
        config, parameters = combine(
            [(run.config, run.parameters) for run in runs],
            asked.weights or (1.0,) * len(runs),
            [str(place) for place in folders],
        )
        self._mesh = build_mesh(MeshConfig())
        self.batch_size = round_up(min(batch_size, self.request.num_samples), self._mesh.size)
        self._parameters = jax.device_put(parameters, replicated(self._mesh))
        self._sampler = build_pairs_sampler(
            config,
            self.request,
            self._streams,
            joint_scale=asked.joint_scale,
            condition_scale=asked.condition_scale,
        )
        self.description: dict[str, object] = {
            **dataclasses.asdict(self.request),
            "workdir": printable(str(folder.resolve())),
            **identity(runs[0], ema),
            "others": [
                {"workdir": printable(str(place.resolve())), **identity(run, ema)}
                for place, run in zip(folders[1:], runs[1:], strict=True)
            ],
            **{name: getattr(asked, name) for name in PLAIN},
            "levels": asked.levels,
            "given": {name: digest(array) for name, array in self._arrays.items()},
            "mask": self._mask and digest(np.asarray(self._mask.known)),
        }
        """What the pairs depend on, ready for JSON."""

    def _held(
        self,
        given: Sequence[KnownPictures],
        known: KnownPictures | None,
        configs: Sequence[Config],
    ) -> tuple[dict[str, np.ndarray], Mask | None]:
        """What is given, by what it is, and where a part is known."""
        asked, model = self._asked, self._model
        x = [_floats(pictures, "given", model) for pictures in given]
        if asked.derive:
            x = [_derived(x[0], config.data.pair) for config in configs]
        sides = self.sides[:1] if asked.task == "condition" else self.sides[1:]
        arrays = dict(zip(sides, x, strict=False))  # no images with `both`
        if not (known and asked.mask):
            return arrays, None
        height, width, _ = model.image_shape
        mask = Mask(jnp.asarray(read_mask(asked.mask, height, width)))
        return arrays | {"known": _floats(known, "known", model)}, mask

    def _own_classes(self, found: Sequence[tuple[str, KnownPictures | None]]) -> Sequence[int]:
        """The classes of the pictures, in turn; none where no file has labels."""
        for field, pictures in found:
            if pictures and pictures.labels is not None:
                check_labels(pictures, field, self._model)
                return own_labels(pictures.labels, pictures.classes, self.classes, field)
        return ()

    def batches(self) -> Iterator[np.ndarray]:
        """Yields all pairs: uint8 [n, I, H, W, C] of I images each.

        Raises:
          ConfigError: they are not finite, or a batch does not fit into the memory.
        """
        request, labels = self.request, self.request.labels()
        for first in range(0, request.num_samples, self.batch_size):
            # The last batch is filled up, so that the sampler is compiled once.
            index_N = np.arange(first, first + self.batch_size)
            number_N = index_N % request.num_samples
            given = [array[number_N % len(array)] for array in self._arrays.values()]
            with jax.set_mesh(self._mesh), fitting(self.batch_size):
                put = jax.device_put(
                    [image_keys(request.seed, index_N), labels[number_N], *given],
                    batch_sharding(self._mesh),
                )
                x = hosts.fetch(self._sampler(self._parameters, *put))
            yield images.to_uint8(x[: request.num_samples - first])

    def _streams(self, *arrays: jax.Array) -> Streams:
        """What becomes of the images of a pair, from the arrays of `self._arrays`."""
        named = dict(zip(self._arrays, arrays, strict=True))
        streams = []
        for side, level in zip(self.sides, self._asked.levels, strict=True):
            held = self._asked.inpaint == side
            streams.append(
                Stream(
                    level=level,
                    given=None if level == 1 else named[side],
                    mask=self._mask if held else None,
                    known=named["known"] if held else None,
                )
            )
        return streams


def _config(folder: Path, field: str) -> Config:
    """Of a run on pairs of pixels."""
    config = load_json(folder / "config.json")
    require(
        config.model.pairs is not None and config.data.pair is not None,
        f"{field} is {str(folder)!r}, whose model is of single images; allowed: a run of "
        "python -m dit_moe.pairs train",
    )
    require(
        read_latent_space(folder) is None,
        f"{field} is {str(folder)!r}, whose images are latents; allowed: a model of pixels",
    )
    return config


def _derived(x_MxHxWxC: np.ndarray, kind: PairKind | None) -> np.ndarray:
    """The second images of first ones, as training derives them."""
    assert kind is not None
    require(
        kind != "folder",
        "derive is given, but the second images of the run's data lie in a folder of their own; "
        "allowed: these as given",
    )
    derive = derivation(kind, x_MxHxWxC.shape[1:])
    return np.stack([derive(image) for image in x_MxHxWxC])


def _floats(found: KnownPictures, field: str, model: ModelConfig) -> np.ndarray:
    """Pictures as the network sees them: float32 [M, H, W, C] in [-1, 1]."""
    pictures = found.pictures
    if pictures.shape[-1] == 1 and model.channels == 3:
        pictures = np.repeat(pictures, 3, axis=-1)
    size, allowed = ("x".join(map(str, shape)) for shape in (pictures.shape[1:], model.image_shape))
    require(size == allowed, f"{field} has images of {size}; allowed: {allowed}")
    return pictures.astype(np.float32) / np.float32(127.5) - 1
