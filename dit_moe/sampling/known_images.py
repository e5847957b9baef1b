"""What samples are held to: pictures from files, checked, measured and ready for the sampler."""

import dataclasses
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from dit_moe.config import ConfigError, ModelConfig, divisors
from dit_moe.config.sizes import size_text
from dit_moe.data.classes import ModelClasses
from dit_moe.diffusion.measurements import BlockMean, ChannelMean, Luma, Mask, Measurement
from dit_moe.sampling.known_pictures import check_labels, digest, read_mask, read_pictures
from dit_moe.storage import images

STEERS = ("inpaint", "super_resolution", "colorize", "colorize_luma")


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
    measurement, shape, told = _measured(request, model)
    if request.images is None:
        raise ConfigError(
            f"steer is {steer!r} without steer_images; allowed: with an .npz or a folder of images"
        )
    found = read_pictures(request.images, "steer_images", model)
    pictures, label_M, classes = found
    x = pictures.astype(np.float32) / np.float32(127.5) - 1
    if x.shape[1:] == model.image_shape:
        x = np.asarray(measurement.measure(jnp.asarray(x)))
    if x.shape[1:] != shape:
        sizes = dict.fromkeys(_size(s) for s in (shape, model.image_shape))
        raise ConfigError(
            f"steer_images has images of {_size(x.shape[1:])}; allowed: {' or '.join(sizes)}"
        )
    check_labels(found, "steer_images", model)
    asked = {"steer": steer, "steer_strength": strength}
    description = {**asked, **told, "steer_images": digest(pictures)}
    return Steering(measurement, strength, x, label_M, classes, description)


def _measured(
    request: SteeringRequest, model: ModelConfig
) -> tuple[Measurement, tuple[int, int, int], dict[str, object]]:
    """What is known of an image: how it is measured, the shape of it, and what is told of that."""
    height, width, channels = model.image_shape
    match request.steer:
        case "inpaint":
            if request.mask is None:
                raise ConfigError(
                    "steer is 'inpaint' without mask; allowed: with a picture, white is new"
                )
            known = read_mask(request.mask, height, width)
            return Mask(jnp.asarray(known)), model.image_shape, {"mask": digest(known)}
        case "super_resolution":
            factor = 2 if request.factor is None else request.factor
            allowed = [d for d in divisors(math.gcd(height, width)) if d > 1]
            if factor not in allowed:
                listed = ", ".join(map(str, allowed))
                raise ConfigError(
                    f"factor is {factor}; allowed: a divisor of image_size "
                    f"{size_text(model.image_size)} ({listed})"
                )
            shape = (height // factor, width // factor, channels)
            return BlockMean(factor), shape, {"factor": factor}
        case steer:
            if channels != 3:
                raise ConfigError(
                    f"steer is {steer!r} but the model has {channels} "
                    f"channel{'s' * (channels > 1)}; allowed: a model with 3"
                )
            kind = ChannelMean if steer == "colorize" else Luma
            return kind(channels), (height, width, 1), {}


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
