"""A set of samples on disk, made in parts so that an interrupted one can go on."""

import dataclasses
import functools
import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from dit_moe import images, sampling
from dit_moe.config import Config, ConfigError, MeshConfig
from dit_moe.data.latents import read_latent_space, same_latents
from dit_moe.data.model_classes import ModelClasses, model_classes
from dit_moe.files import atomic
from dit_moe.guides import check_guide
from dit_moe.loading import Run, load_run, locate
from dit_moe.nn.parameters import Parameters
from dit_moe.rendering import Renderer, build_renderer
from dit_moe.steering import Steering, SteeringRequest, read_steering
from dit_moe.training.mesh import batch_sharding, build_mesh, replicated

GRID_ROWS, GRID_COLUMNS = 16, 12


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
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; allowed: 1 or more")
        workdir = locate(workdir)
        run = load_run(workdir, ema)
        self.steering = _read_steering(steering, workdir, run.config)
        if self.steering and self.steering.labels is not None and not request.get("classes"):
            request["classes"] = self.steering.labels.tolist()
        self.request = sampling.build_request(run.config, **request)
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
        if self._renderer is not None:
            side *= self._renderer.scale
            self.image_shape = (side, side, min(channels, 3))
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
        """Yields images from number `start`, a multiple of `batch_size`, on.

        uint8 [n, H, W, C], or float32 latents; n is `batch_size` but for the last batch.
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
            with jax.set_mesh(self._mesh):
                x_NxHxWxC = next(drawn, None)
            if x_NxHxWxC is None:
                return
            yield x_NxHxWxC if self._renderer is None else self._renderer.render(x_NxHxWxC)


def write_sample_set(sampler: RunSampler, output: Path) -> tuple[Path, Path]:
    """Draws a set into `output`/samples.npz and `output`/grid.png, and returns their paths.

    Finished batches lie in `output`/samples.parts until the set is complete; the same call with
    the same weights resumes after them, or returns the set if it is complete. Another one starts
    anew. `output`/samples.json says what was drawn. Where labels are not the numbers of the data's
    classes, or those have names, samples.npz holds `class_numbers` [K] or `class_names` [K] too.

    Raises:
      ConfigError: `output` holds something else.
      OSError: the output cannot be written.
    """
    num_samples = sampler.request.num_samples
    npz, png, made_of = (output / name for name in ("samples.npz", "grid.png", "samples.json"))
    description = json.dumps(sampler.identity, indent=2) + "\n"
    whole = npz.is_file() and png.is_file() and made_of.is_file()
    if whole and made_of.read_text() == description:
        print(f"{npz} is there already.")
        return npz, png
    parts = output / "samples.parts"
    done = _open_parts(parts, description) * sampler.batch_size
    if done:
        print(f"Resuming after {min(done, num_samples):,} images in {parts}.")
    with tqdm(
        total=num_samples, initial=min(done, num_samples), unit="image", dynamic_ncols=True
    ) as bar:
        for number, x_NxHxWxC in enumerate(sampler.batches(done), start=done // sampler.batch_size):
            with atomic(parts / f"{number:06d}.npy") as temporary:
                np.save(temporary, x_NxHxWxC)
            bar.update(len(x_NxHxWxC))

    made_of.unlink(missing_ok=True)  # of the set that is replaced
    labels = sampler.request.labels()
    shown = _grid_choice(labels)
    beside = {"arr_1": labels, **_class_arrays(sampler.classes)}
    picture = _join(sorted(parts.glob("[0-9]*.npy")), beside, npz, shown)
    picture = picture if sampler.image_shape else images.to_uint8(picture)
    if sampler.steering is not None:  # what was known of an image, and then the image
        pairs = np.stack([sampler.steering.pictures(shown), picture], axis=1)
        picture, shown = pairs.reshape(-1, *picture.shape[1:]), np.repeat(shown, 2)
    with atomic(png) as temporary:
        images.grid(picture, labels[shown]).save(temporary)
    with atomic(made_of) as temporary:
        temporary.write_text(description)
    shutil.rmtree(parts)
    return npz, png


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
    """Writes the parts as one array, a part at a time, and returns the images to be shown."""
    first = np.load(files[0], allow_pickle=False)
    shape = (len(beside["arr_1"]), *first.shape[1:])
    header = {"descr": first.dtype.str, "fortran_order": False, "shape": shape}
    kept = np.empty((len(shown), *first.shape[1:]), first.dtype)
    start = 0
    with atomic(npz) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for file in files:
                part = np.load(file, allow_pickle=False)
                member.write(part.tobytes())
                here = (shown >= start) & (shown < start + len(part))
                kept[here] = part[shown[here] - start]
                start += len(part)
        for name, array in beside.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return kept


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


def _open_parts(parts: Path, description: str) -> int:
    """How many parts of the same request exist; parts of another request are removed.

    Raises:
      ConfigError: the folder holds something that is not ours to remove.
    """
    request_file = parts / "request.json"
    if request_file.is_file() and request_file.read_text() == description:
        return len(list(parts.glob("[0-9]*.npy")))
    if parts.exists():
        if any(parts.iterdir()) and not request_file.is_file():
            raise ConfigError(f"{parts} holds no samples of ours; allowed: another --output")
        shutil.rmtree(parts)
    with atomic(request_file) as temporary:
        temporary.write_text(description)
    return 0


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
