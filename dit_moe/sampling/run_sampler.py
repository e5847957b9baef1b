"""A run made ready to draw images: its network, what guides it, and what decodes them."""

import dataclasses
import functools
import hashlib
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dit_moe.autoencoder.latent_space import read_latent_space, same_latents
from dit_moe.config import ConfigError, MeshConfig, ModelConfig
from dit_moe.config.caching import CacheSettings
from dit_moe.config.files import load_json
from dit_moe.config.rules import listing
from dit_moe.data.classes import model_classes, read_classes
from dit_moe.data.picture_files import printable
from dit_moe.devices import hosts
from dit_moe.devices.mesh import batch_sharding, build_mesh, replicated
from dit_moe.models.dit import DiT
from dit_moe.models.parameters import Parameters, functional
from dit_moe.runs.loading import Run, load_run, locate
from dit_moe.sampling import sampler as sampling
from dit_moe.sampling.asked import experts_asked
from dit_moe.sampling.caches import open_caches, sentence, told
from dit_moe.sampling.calibration import calibrated
from dit_moe.sampling.evaluations import function_evaluations
from dit_moe.sampling.guides import check_guide
from dit_moe.sampling.known_classes import own_labels
from dit_moe.sampling.known_images import Steering, SteeringRequest, read_steering
from dit_moe.sampling.losses import read_losses
from dit_moe.sampling.rendering import picture_shape, run_renderer
from dit_moe.sampling.request import build_request
from dit_moe.storage.colours import MODES
from dit_moe.streaming.bank import streamed
from dit_moe.streaming.opening import OpenStore, is_store, memory_bytes, open_store
from dit_moe.streaming.running import StreamingProgram


class RunSampler:
    """A run made ready to draw one set of images.

    Args:
      workdir: a run folder, an exported folder or a name on the Hugging Face hub.
      ema: its parameters' moving average rather than its parameters.
      batch_size: images per pass over all devices, rounded up to divide evenly over them.
      autoencoder: what decodes a latent model's samples; None: the one that its training data
        were encoded with; "none": nothing, samples then stay the network's latents.
      checkpoint: of the run: "newest", "best" of those that were judged, or a step.
      guide: with guidance `auto`, the model that guides, as `workdir`; its newest checkpoint.
      guide_ema: as `ema`, of the guide.
      memory: with a store of experts (streaming/) as `workdir`, what the process may hold, such as
        "4GB"; None: what it needs.
      bits: of a quantised model whose matrices are nested, how many they have at most.
      steering: what the images are held to. If its file has labels, their classes are the classes
        in turn, unless the request has others.
      losses: what is lowered while samples are drawn, as of `losses.read_losses`.
      request: what to draw, as for `request.build_request`; `classes` by label or by name.

    Raises:
      ConfigError: the run or an argument cannot be used; the message is one sentence.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        ema: bool,
        batch_size: int,
        autoencoder: str | None = None,
        checkpoint: str = "newest",
        guide: str | Path | None = None,
        guide_ema: bool = True,
        memory: str | None = None,
        bits: int | None = None,
        steering: SteeringRequest | None = None,
        losses: Sequence[str] = (),
        **request: Any,
    ):
        if not 1 <= batch_size <= sampling.MAX_BATCH:
            raise ConfigError(f"batch_size is {batch_size}; allowed: 1 to {sampling.MAX_BATCH}")
        workdir = locate(workdir)
        config = load_json(workdir / "config.json")
        self.steering = _read_steering(steering, workdir, config.model)
        self.classes = model_classes(config.data, config.model, workdir)
        """What the labels stand for."""
        if self.steering and self.steering.labels is not None and not request.get("classes"):
            labels, classes = self.steering.labels, self.steering.classes
            request["classes"] = own_labels(labels, classes, self.classes)
        names = [str(name) for name in request.get("classes", ())]
        request["classes"] = classes_to_draw(self.classes.labels(names), workdir, config.model)
        # All is checked before parameters are read, which may take long.
        asked = build_request(config, **request)
        self.request = dataclasses.replace(asked, cache=calibrated(asked.cache, workdir))
        self._memory = None if memory is None else memory_bytes(memory)
        self._store = _open_store(workdir, config.model, memory, ema=ema, checkpoint=checkpoint)
        self._losses = read_losses(losses, config.model)
        _check_together(self._store, asked.cache, losses)
        if self._store is not None and bits is not None:
            raise ConfigError(
                f"bits is {bits} with a store of experts, which are whole; allowed: none"
            )
        if self._store is None:
            run = load_run(workdir, ema, checkpoint=checkpoint, bits=bits)
        else:
            run = Run(config, self._store.store.step, self._store.rest)
        chosen = self.request.guidance.guide
        weaker = _load_guide(guide, guide_ema, chosen, workdir, run.config.model)
        # A store feeds one device.
        devices = None if self._store is None else jax.local_devices()[:1]
        self._mesh = build_mesh(MeshConfig(), devices)
        self._renderer = run_renderer(workdir, run.config.model, autoencoder, self._mesh)
        self.batch_size = sampling.round_up(
            min(batch_size, self.request.num_samples), self._mesh.size
        )
        self.image_shape = self._renderer and picture_shape(run.config.model, self._renderer)
        """[H, W, C] of the pictures; None if samples stay latents."""
        self.image_bytes = math.prod(self.image_shape or (4, *run.config.model.image_shape))
        self._caches = open_caches(config, self.request, weaker and weaker.config)
        computed = told(self._caches)
        for found in computed.values():
            hosts.say(sentence(found))
        self.identity: dict[str, object] = {
            **self._described(run),
            **computed,
            "workdir": printable(str(workdir.resolve())),
            **identity(run, ema, self._store),
            "guide": weaker and {"workdir": printable(str(guide)), **identity(weaker, guide_ema)},
        }
        """What the images depend on, ready for JSON."""
        if losses:
            self.identity["losses"] = [loss.description() for loss in self._losses]
        self._parameters = jax.device_put(run.parameters, replicated(self._mesh))
        self._sampler = self._build(run, weaker)

    def _described(self, run: Run) -> dict[str, object]:
        """What the images depend on beside the parameters and what is computed of them."""
        config, names = run.config, self.classes.names
        return {
            **self.request.description(),
            "function_evaluations": function_evaluations(
                config.model, config.objective, self.request
            ),
            "class_names": [names[c] for c in self.request.classes] if names else None,
            "start_share": run.start_share,
            "batch_size": self.batch_size,
            "latents": self._renderer and self._renderer.description,
            "steering": self.steering and self.steering.description,
        }

    def _build(self, run: Run, weaker: Run | None) -> sampling.Sampler:
        """The jitted sampler, bound to the parameters of the network that guides."""
        guiding = weaker and weaker.config
        sampler = sampling.build_sampler(
            run.config,
            self.request,
            weaker=guiding,
            steering=self.steering,
            losses=self._losses,
            network=self._network,
        )
        if self._store is not None:
            asked = experts_asked(self._store.store, run.config, self.request, self._caches)
            sampler = StreamingProgram(sampler, self._store, self._memory, *asked)
            weakref.finalize(self, sampler.close)
        if weaker is None:
            return sampler
        parameters = jax.device_put(weaker.parameters, replicated(self._mesh))
        return functools.partial(sampler, weaker=parameters)

    def _network(self, model: ModelConfig) -> Callable[[Parameters], DiT]:
        return functional(model) if self._store is None else streamed(model, self._store.source)

    def batches(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yields images from number `start` on.

        uint8 [n, H, W, C], or float32 latents; n is `batch_size` but for the last batch.

        Raises:
          ConfigError: the samples are not finite, or a batch does not fit into the memory.
        """
        drawn = sampling.generate(
            self._sampler,
            self._parameters,
            self.request,
            self.batch_size,
            start=start,
            sharding=batch_sharding(self._mesh),
            steering=self.steering,
        )
        while True:
            # Not around the loop: the mesh belongs to a thread, and the caller may be in another.
            with jax.set_mesh(self._mesh), sampling.fitting(self.batch_size):
                x_NxHxWxC = next(drawn, None)
            if x_NxHxWxC is None:
                return
            yield x_NxHxWxC if self._renderer is None else self._renderer.render(x_NxHxWxC)


def classes_to_draw(asked: Sequence[int], workdir: Path, model: ModelConfig) -> Sequence[int]:
    """The classes to draw in turn: those asked for, or those that the training data have."""
    known = read_classes(workdir)
    if known is None:
        return asked
    learnt = known.learnt()
    if not asked and len(learnt) < model.num_classes:
        hosts.say(
            f"Draws the {len(learnt)} of {model.num_classes:,} classes that the training data have."
        )
    strange = sorted(set(asked) - set(learnt))
    if strange:
        hosts.say(f"The training data have no image of class {listing(strange)}.")
    return asked or learnt


def _load_guide(
    guide: str | Path | None, ema: bool, guidance: str, workdir: Path, model: ModelConfig
) -> Run | None:
    """The model that guides, if it is one of its own."""
    if (guide is not None) != (guidance == "auto"):
        given = "without guide" if guide is None else f"with guide {str(guide)!r}"
        raise ConfigError(
            f"guidance is {guidance!r} {given}; allowed: 'auto' with a guide, or neither"
        )
    if guide is None:
        return None
    folder = locate(guide, "guide")
    if not same_latents(read_latent_space(workdir), read_latent_space(folder)):
        raise ConfigError(
            f"guide is {str(guide)!r}, whose latents are not those of {str(workdir)!r}; allowed: "
            "a run on the same autoencoder's latents, scaled alike"
        )
    weaker = load_run(folder, ema)
    check_guide(model, weaker.config.model)
    return weaker


def _read_steering(
    request: SteeringRequest | None, workdir: Path, model: ModelConfig
) -> Steering | None:
    if request is None:
        return None
    if read_latent_space(workdir) is not None or model.channels not in MODES:
        raise ConfigError(
            f"steer is {request.steer!r} but {str(workdir)!r} draws latents; allowed: a model of "
            "pixels, since pixels are what is known"
        )
    return read_steering(request, model)


def _open_store(
    workdir: Path, model: ModelConfig, memory: str | None, *, ema: bool, checkpoint: str
) -> OpenStore | None:
    """The store that a workdir is, if it is one."""
    if is_store(workdir):
        return open_store(workdir, model, ema=ema, checkpoint=checkpoint)
    if memory is not None:
        raise ConfigError(
            f"memory is {memory!r}, but workdir {str(workdir)!r} is no store of experts; allowed: "
            f"a store, as python -m dit_moe.streaming --workdir {workdir} --output NEW makes it"
        )
    return None


def _check_together(
    store: OpenStore | None, cache: CacheSettings | None, losses: Sequence[str]
) -> None:
    """Refuses losses with what lets no gradient through the network."""
    for name, stands in (("a store of experts", store), ("step_cache", cache)):
        if losses and stands is not None:
            raise ConfigError(
                f"steer_loss is {losses[0]!r} with {name}, through which there is no gradient; "
                "allowed: a run of which everything is computed in memory"
            )


def identity(run: Run, ema: bool, store: OpenStore | None = None) -> dict[str, object]:
    """Which parameters these are, ready for JSON."""
    weights = _digest(run.parameters) if store is None else store.store.weights
    return {"step": run.step, "ema": ema, "weights": weights}


def _digest(parameters: Parameters) -> str:
    """SHA-256 of all weights: a run retrained in the same place is another run."""
    digest = hashlib.sha256()
    for path in sorted(parameters):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(parameters[path]).data)
    return digest.hexdigest()
