"""A set of samples on disk, made in parts so that an interrupted one can go on."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL.Image import Image
from tqdm import tqdm

from dit_moe.autoencoder.latent_space import read_latent_space, same_latents
from dit_moe.config import Config, ConfigError, MeshConfig
from dit_moe.config.files import load_json
from dit_moe.config.rules import listing
from dit_moe.data.classes import read_classes
from dit_moe.data.model_classes import ModelClasses, model_classes
from dit_moe.devices import hosts
from dit_moe.devices.mesh import batch_sharding, build_mesh, replicated
from dit_moe.models.parameters import Parameters
from dit_moe.runs.loading import Run, load_run, locate
from dit_moe.sampling import sampler as sampling
from dit_moe.sampling.guides import check_guide
from dit_moe.sampling.known_images import Steering, SteeringRequest, read_steering
from dit_moe.sampling.rendering import Renderer, build_renderer
from dit_moe.sampling.sample_parts import Parts, differences, read_description
from dit_moe.storage import images
from dit_moe.storage.files import atomic, lock

GRID_ROWS, GRID_COLUMNS = 16, 12
MAX_BATCH = 2**16


class RunSampler:
    """A run made ready to draw one set of images.

    Args:
      workdir: a run folder, an exported folder or a name on the Hugging Face hub.
      ema: its parameters' moving average rather than its parameters.
      batch_size: images per pass over all devices, rounded up to divide evenly over them.
      autoencoder: what decodes a latent model's samples; None: the one that its training data
        were encoded with; "none": nothing, samples then stay the network's latents.
      guide: with guidance `auto`, the model that guides, as `workdir`.
      guide_ema: as `ema`, of the guide.
      steering: what the images are held to. If its file has labels, they are the classes in turn,
        unless the request has others.
      request: what to draw, as for `sampling.build_request`.

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
        guide: str | Path | None = None,
        guide_ema: bool = True,
        steering: SteeringRequest | None = None,
        **request: Any,
    ):
        if not 1 <= batch_size <= MAX_BATCH:
            raise ConfigError(f"batch_size is {batch_size}; allowed: 1 to {MAX_BATCH}")
        workdir = locate(workdir)
        config = load_json(workdir / "config.json")
        self.steering = _read_steering(steering, workdir, config)
        if self.steering and self.steering.labels is not None and not request.get("classes"):
            request["classes"] = self.steering.labels.tolist()
        request["classes"] = _classes(request.get("classes", ()), workdir, config)
        # All is checked before parameters are read, which may take long.
        self.request = sampling.build_request(config, **request)
        run = load_run(workdir, ema)
        weaker = _load_guide(guide, guide_ema, self.request.guidance, workdir, run.config)
        self.classes = model_classes(run.config, workdir)
        """What the labels stand for."""
        self._mesh = build_mesh(MeshConfig())
        self._renderer = _renderer(workdir, run.config, autoencoder, self._mesh)
        self.batch_size = sampling.round_up(
            min(batch_size, self.request.num_samples), self._mesh.size
        )
        side, channels = run.config.model.image_size, run.config.model.channels
        self.image_shape: tuple[int, int, int] | None = None
        """[H, W, C] of the pictures; None if samples stay latents."""
        self.image_bytes = 4 * side**2 * channels
        if self._renderer is not None:
            side *= self._renderer.scale
            self.image_shape = (side, side, min(channels, 3))
            self.image_bytes = math.prod(self.image_shape)
        self.identity: dict[str, object] = {
            **dataclasses.asdict(self.request),
            "function_evaluations": sampling.function_evaluations(run.config, self.request),
            "workdir": str(workdir.resolve()),
            **_identity(run, ema),
            "batch_size": self.batch_size,
            "latents": self._renderer and self._renderer.description,
            "guide": weaker and {"workdir": str(guide), **_identity(weaker, guide_ema)},
            "steering": self.steering and self.steering.description,
        }
        """What the images depend on, ready for JSON."""
        self._parameters = jax.device_put(run.parameters, replicated(self._mesh))
        self._sampler = sampling.build_sampler(
            run.config,
            self.request,
            weaker=weaker and weaker.config,
            steering=self.steering,
        )
        if weaker is not None:
            parameters = jax.device_put(weaker.parameters, replicated(self._mesh))
            self._sampler = functools.partial(self._sampler, weaker=parameters)

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
            with jax.set_mesh(self._mesh), self._fitting():
                x_NxHxWxC = next(drawn, None)
            if x_NxHxWxC is None:
                return
            yield x_NxHxWxC if self._renderer is None else self._renderer.render(x_NxHxWxC)

    @contextlib.contextmanager
    def _fitting(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ConfigError(
                f"batch_size is {self.batch_size}, for which the devices lack memory; allowed: a "
                "smaller one"
            ) from error


def write_sample_set(sampler: RunSampler, output: Path) -> tuple[Path, Path]:
    """Draws a set into `output`/samples.npz and `output`/grid.png, and returns their paths.

    Finished batches lie in `output`/samples.parts until the set is complete. The same call with
    the same weights, whatever its number of images or batch size, goes on from them, or from the
    complete set. Another one replaces a complete set when its own is drawn, and says so.
    `output`/samples.json says what was drawn. Where labels are not the
    numbers of the data's classes, or those have names, samples.npz holds `class_numbers` [K] or
    `class_names` [K] too.

    Raises:
      ConfigError: `output` holds something else, or batches of another set, or is too small, or
        another process draws into it; or the samples are not finite.
      OSError: the output cannot be written.
    """
    npz, png, made_of = (output / name for name in ("samples.npz", "grid.png", "samples.json"))
    num_samples = sampler.request.num_samples
    known = read_description(made_of) if npz.is_file() else None
    other = [made_of.name] if known is None else differences(known, sampler.identity)
    if known and not other and known["num_samples"] == num_samples and png.is_file():
        print(f"{npz} is there already.")
        return npz, png
    _check_room(sampler, output)
    busy = ConfigError(
        f"output is {str(output)!r}, into which another process draws; allowed: another --output"
    )
    with lock(output / ".lock", busy):
        parts = Parts(output / "samples.parts", sampler.identity)
        if other and npz.exists():
            print(f"{npz} differs in {', '.join(other)}; it is replaced when the set is drawn.")
        elif known and not parts.done:
            parts.adopt(npz, known["num_samples"])
        _draw(sampler, parts)
        made_of.unlink(missing_ok=True)  # of the set that is replaced
        labels = sampler.request.labels()
        shown = _grid_choice(labels)
        beside = {"arr_1": labels, **_class_arrays(sampler.classes)}
        picture = _join(parts.files, beside, npz, shown)
        with atomic(png) as temporary:
            _grid(sampler, picture, shown).save(temporary)
        with atomic(made_of) as temporary:
            temporary.write_text(json.dumps(sampler.identity, indent=2) + "\n")
        if parts.done == num_samples:  # those of a larger set may be gone on from
            parts.remove()
    return npz, png


def _check_room(sampler: RunSampler, output: Path) -> None:
    """Checks that the disk can hold the set at all."""
    there = next(
        folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists()
    )
    size, free = sampler.request.num_samples * sampler.image_bytes, shutil.disk_usage(there).free
    if size > free:
        raise ConfigError(
            f"num_samples is {sampler.request.num_samples}, which takes {size / 1e9:.3g} GB, but "
            f"output {str(output)!r} has {free / 1e9:.3g} GB free; allowed: fewer, or another "
            "--output"
        )


def _draw(sampler: RunSampler, parts: Parts) -> None:
    """Draws what is missing."""
    num_samples = sampler.request.num_samples
    done = min(parts.done, num_samples)
    if done:
        print(f"Goes on after {done:,} images that are there.")
    with tqdm(total=num_samples, initial=done, unit="image", dynamic_ncols=True) as bar:
        for x_NxHxWxC in sampler.batches(done):
            parts.add(x_NxHxWxC)
            bar.update(len(x_NxHxWxC))


def _grid(sampler: RunSampler, picture: np.ndarray, shown: np.ndarray) -> Image:
    """The images with the numbers `shown`, and beside each what was known of it."""
    picture = picture if sampler.image_shape else images.to_uint8(picture)
    if sampler.steering is not None:
        pairs = np.stack([sampler.steering.pictures(shown), picture], axis=1)
        picture, shown = pairs.reshape(-1, *picture.shape[1:]), np.repeat(shown, 2)
    return images.grid(picture, sampler.request.labels()[shown])


def _class_arrays(classes: ModelClasses) -> dict[str, np.ndarray]:
    """What tells which classes of the data the labels are, where they are more than numbers."""
    arrays: dict[str, np.ndarray] = {}
    if classes.numbers != tuple(range(len(classes.numbers))):
        arrays["class_numbers"] = np.asarray(classes.numbers, np.int64)
    if classes.names:
        arrays["class_names"] = np.asarray(classes.names, np.str_)
    return arrays


def _join(
    files: Sequence[Path], beside: Mapping[str, np.ndarray], npz: Path, shown: np.ndarray
) -> np.ndarray:
    """Writes as many images as labels, a part at a time; returns those that are to be shown."""
    first = np.load(files[0], mmap_mode="r")
    shape = (len(beside["arr_1"]), *first.shape[1:])
    header = {"descr": first.dtype.str, "fortran_order": False, "shape": shape}
    kept = np.empty((len(shown), *first.shape[1:]), first.dtype)
    start = 0
    with atomic(npz) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for file in files:
                part = np.load(file, mmap_mode="r")[: shape[0] - start]
                member.write(part.data)
                here = (shown >= start) & (shown < start + len(part))
                kept[here] = part[shown[here] - start]
                start += len(part)
        for name, array in beside.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return kept


def _classes(asked: Sequence[int], workdir: Path, config: Config) -> Sequence[int]:
    """The classes to draw in turn: those asked for, or those that the training data have."""
    known = read_classes(workdir)
    if known is None:
        return asked
    learnt = known.learnt()
    if not asked and len(learnt) < config.model.num_classes:
        hosts.say(
            f"Draws the {len(learnt)} of {config.model.num_classes:,} classes that the training "
            f"data have."
        )
    strange = sorted(set(asked) - set(learnt))
    if strange:
        hosts.say(f"The training data have no image of class {listing(strange)}.")
    return asked or learnt


def _load_guide(
    guide: str | Path | None, ema: bool, guidance: str, workdir: Path, config: Config
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
    check_guide(config, weaker.config)
    return weaker


def _read_steering(
    request: SteeringRequest | None, workdir: Path, config: Config
) -> Steering | None:
    if request is None:
        return None
    if read_latent_space(workdir) is not None or config.model.channels not in (1, 3):
        raise ConfigError(
            f"steer is {request.steer!r} but {str(workdir)!r} draws latents; allowed: a model of "
            "pixels, since pixels are what is known"
        )
    return read_steering(request, config.model)


def _identity(run: Run, ema: bool) -> dict[str, object]:
    return {"step": run.step, "ema": ema, "weights": _digest(run.parameters)}


def _renderer(
    workdir: Path, config: Config, autoencoder: str | None, mesh: Mesh
) -> Renderer | None:
    """None: samples stay what the network draws."""
    space = read_latent_space(workdir)
    if autoencoder == "none" or (space is None and config.model.channels not in (1, 3)):
        return None
    if space is None and autoencoder is not None:
        raise ConfigError(
            f"autoencoder is {autoencoder!r} but {str(workdir)!r} is no model of latents; "
            "allowed: no --autoencoder"
        )
    return build_renderer(space, autoencoder, mesh)


def _digest(parameters: Parameters) -> str:
    """SHA-256 of all weights: a run retrained in the same place is another run."""
    digest = hashlib.sha256()
    for path in sorted(parameters):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(parameters[path]).data)
    return digest.hexdigest()


def _grid_choice(labels_N: np.ndarray) -> np.ndarray:
    """The first few images of the first few classes."""
    classes = list(dict.fromkeys(labels_N.tolist()))[:GRID_ROWS]
    return np.concatenate([np.flatnonzero(labels_N == c)[:GRID_COLUMNS] for c in classes])
