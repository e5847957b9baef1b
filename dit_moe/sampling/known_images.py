"""What samples are held to: pictures from files, checked, measured and ready for the sampler."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image

from dit_moe.config import ConfigError, ModelConfig, divisors
from dit_moe.config.sizes import size_text
from dit_moe.data.classes import ModelClasses
from dit_moe.data.npz_classes import MEMBERS, stored_classes
from dit_moe.data.picture_files import has_picture_name
from dit_moe.diffusion.measurements import BlockMean, ChannelMean, Mask, Measurement
from dit_moe.storage import images
from dit_moe.storage.colours import MODES, as_mode
from dit_moe.storage.npz import NpzError, read_npz
from dit_moe.storage.pictures import ImageError, read_picture

STEERS = ("inpaint", "super_resolution", "colorize")


@dataclasses.dataclass(frozen=True)
class SteeringRequest:
    """What is known of the images, as a user says it."""

    steer: str
    """One of `STEERS`."""
    images: Path | None
    """An .npz with arr_0, uint8 [M, H, W, C], and perhaps labels arr_1; or a folder of images.
    Sample i is held to image i % M. Images of the model's size are measured; smaller ones
    (super-resolution) and grey ones (colourisation) are the measurement itself. Files become grey,
    or get alpha, as the model draws; a model of RGB takes grey ones as they are."""
    mask: Path | None = None
    """For `inpaint`, a picture of the model's size: white is painted anew, black is kept."""
    factor: int | None = None
    """For `super_resolution`, how often the small image fits into a side; None is 2."""
    strength: float = 1.0
    """0 to 1, for `diffusion.steering.steer_by_measurement`."""


@dataclasses.dataclass(frozen=True)
class Hold:
    """How samples are held to what is known."""

    measurement: Measurement
    strength: float


@dataclasses.dataclass(frozen=True)
class Steering(Hold):
    """The same with what is known."""

    known: np.ndarray
    """[M, ...] float32 measurements."""
    labels: np.ndarray | None
    """[M] int of the images, where the file has them."""
    classes: ModelClasses | None
    """What the labels stand for, where the file tells it."""
    description: dict[str, object]
    """Ready for JSON."""

    def measured(self, number_N: np.ndarray) -> np.ndarray:
        """What is known of the samples with these numbers: [N, ...] float32."""
        return self.known[number_N % len(self.known)]

    def pictures(self, number_N: np.ndarray) -> np.ndarray:
        """The same to look at, grey where nothing is known: uint8 [N, H, W, C]."""
        known = jnp.asarray(self.measured(number_N))
        return images.to_uint8(np.asarray(self.measurement.lift(known)))


def read_steering(request: SteeringRequest, model: ModelConfig) -> Steering:
    """Reads the files of a request.

    Raises:
      ConfigError: naming the value that cannot be used.
    """
    steer, strength = request.steer, request.strength
    if steer not in STEERS:
        raise ConfigError(f"steer is {steer!r}; allowed: {', '.join(STEERS)}")
    if not 0 <= strength <= 1:
        raise ConfigError(f"steer_strength is {strength}; allowed: 0 to 1")
    for name, owner in (("mask", "inpaint"), ("factor", "super_resolution")):
        if getattr(request, name) is not None and steer != owner:
            raise ConfigError(
                f"{name} is {str(getattr(request, name))!r} with steer {steer!r}; allowed: only "
                f"with steer {owner!r}"
            )
    height, width, channels = model.image_shape
    description: dict[str, object] = {"steer": steer, "steer_strength": strength}
    match steer:
        case "inpaint":
            known = _read_mask(request.mask, height, width)
            measurement, shape = Mask(jnp.asarray(known)), model.image_shape
            description["mask"] = _digest(known)
        case "super_resolution":
            factor = 2 if request.factor is None else request.factor
            allowed = [d for d in divisors(math.gcd(height, width)) if d > 1]
            if factor not in allowed:
                listed = ", ".join(map(str, allowed))
                raise ConfigError(
                    f"factor is {factor}; allowed: a divisor of image_size "
                    f"{size_text(model.image_size)} ({listed})"
                )
            measurement = BlockMean(factor)
            shape = (height // factor, width // factor, channels)
            description["factor"] = factor
        case _:
            if channels != 3:
                raise ConfigError(
                    f"steer is 'colorize' but the model has {channels} "
                    f"channel{'s' * (channels > 1)}; allowed: a model with 3"
                )
            measurement, shape = ChannelMean(channels), (height, width, 1)
    pictures, label_M, classes = _read_images(request.images, steer, channels)
    x = pictures.astype(np.float32) / np.float32(127.5) - 1
    if x.shape[1:] == model.image_shape:
        x = np.asarray(measurement.measure(jnp.asarray(x)))
    if x.shape[1:] != shape:
        sizes = dict.fromkeys(_size(s) for s in (shape, model.image_shape))
        raise ConfigError(
            f"steer_images has images of {_size(x.shape[1:])}; allowed: {' or '.join(sizes)}"
        )
    most = model.num_classes if classes is None else len(classes.numbers)
    if label_M is not None and not np.all((label_M >= 0) & (label_M < most)):
        raise ConfigError(
            f"steer_images has labels from {label_M.min()} to {label_M.max()}; allowed: 0 to "
            f"{most - 1}"
        )
    description["steer_images"] = _digest(pictures)
    return Steering(measurement, strength, x, label_M, classes, description)


def _read_mask(path: Path | None, height: int, width: int) -> np.ndarray:
    """[H, W, 1] bool: where the image is known."""
    if path is None:
        raise ConfigError("steer is 'inpaint' without mask; allowed: with a picture, white is new")
    mask = _open(path, "mask").convert("L")
    if (mask.height, mask.width) != (height, width):
        raise ConfigError(
            f"mask is {str(path)!r} of {mask.height}x{mask.width}; allowed: {height}x{width}"
        )
    return np.asarray(mask)[..., None] < 128


def _read_images(
    path: Path | None, steer: str, channels: int
) -> tuple[np.ndarray, np.ndarray | None, ModelClasses | None]:
    """uint8 [M, H, W, C], the labels [M], where there are any, and what they stand for.

    Files are read for a model of so many channels.
    """
    if path is None:
        raise ConfigError(
            f"steer is {steer!r} without steer_images; allowed: with an .npz or a folder of images"
        )
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if has_picture_name(p.name) and p.is_file())
        pictures = [_open(file, "steer_images", alpha=channels in (2, 4)) for file in files]
        if channels != 3:
            pictures = [as_mode(picture, MODES[channels]) for picture in pictures]
        arrays = [np.asarray(picture) for picture in pictures]
        if len({array.shape for array in arrays}) != 1:
            raise ConfigError(
                f"steer_images is {str(path)!r} with {len(files)} images of "
                f"{len({array.shape for array in arrays})} sizes or kinds; allowed: images of one "
                "size, all grey or all in colour"
            )
        x, label_M, classes = np.stack(arrays), None, None
    else:
        x, label_M, classes = _read_npz(path)
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or x.ndim != 4 or not len(x):
        raise ConfigError(
            f"steer_images is {str(path)!r} with {x.dtype} {list(x.shape)}; allowed: uint8 "
            "[M, H, W] or [M, H, W, C]"
        )
    return x, label_M, classes


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None, ModelClasses | None]:
    try:
        arrays = read_npz(path, ("arr_0", "arr_1", *MEMBERS))
    except NpzError as error:
        raise _unreadable(path, f" ({error})") from error
    if "arr_0" not in arrays:
        raise _unreadable(path)
    x, label_M = arrays["arr_0"], arrays.get("arr_1")
    if label_M is not None and not np.issubdtype(label_M.dtype, np.integer):
        raise ConfigError(
            f"steer_images is {str(path)!r} with {label_M.dtype} labels; allowed: whole numbers"
        )
    if label_M is not None and label_M.shape != x.shape[:1]:
        raise ConfigError(
            f"steer_images is {str(path)!r} with {list(label_M.shape)} labels for images "
            f"{list(x.shape)}; allowed: one for each"
        )
    return x, label_M, _classes(path, label_M, arrays)


def _classes(
    path: Path, label_M: np.ndarray | None, arrays: Mapping[str, np.ndarray]
) -> ModelClasses | None:
    beside = {name: arrays[name] for name in MEMBERS if name in arrays}
    if label_M is None or not label_M.size or not beside:
        return None
    try:
        numbers, names = stored_classes(label_M, **beside)
    except ConfigError as error:
        raise ConfigError(f"steer_images is {str(path)!r}: {error}") from None
    return ModelClasses(numbers or tuple(range(len(names))), names)


def _unreadable(path: Path, reason: str = "") -> ConfigError:
    return ConfigError(
        f"steer_images is {str(path)!r}, which cannot be read; allowed: an .npz with arr_0, or a "
        f"folder of images{reason}"
    )


def _open(path: Path, name: str, *, alpha: bool = False) -> Image.Image:
    try:
        return read_picture(path.read_bytes(), alpha=alpha)
    except (OSError, ImageError) as error:
        raise ConfigError(
            f"{name} is {str(path)!r}, which is no picture; allowed: a PNG ({error})"
        ) from None


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()
