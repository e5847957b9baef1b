"""Steering: a denoiser that is held to what is known of the clean image, without training."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.diffusion.denoiser import Denoised, Denoiser, broadcast_time, unit_variance
from dit_moe.storage.colours import LUMA

EARLIEST = 0.99
"""The flow time above which a loss does not steer: nothing is known of the image there, and the
factor of the gradient has no bound."""

_BISECTIONS = 32


class Measurement(Protocol):
    """A linear map A of the clean image, such as a mask or a mean over pixels."""

    def measure(self, x_NxHxWxC: jax.Array) -> jax.Array:
        """y = A x."""
        ...

    def lift(self, y: jax.Array) -> jax.Array:
        """A^+ y, an image with this measurement: the smallest, or for luma the grey one."""
        ...

    def project(self, x_NxHxWxC: jax.Array, y: jax.Array) -> jax.Array:
        """x + A^+ (y - A x): the image nearest to x with this measurement, or for luma that of the
        same colours."""
        ...


@dataclasses.dataclass(frozen=True)
class Mask:
    """Some pixels are known: inpainting."""

    known: jax.Array
    """[H, W, 1] bool."""

    def measure(self, x_NxHxWxC: jax.Array) -> jax.Array:
        """The image with 0 where nothing is known."""
        return jnp.where(self.known, x_NxHxWxC, 0)

    def lift(self, y: jax.Array) -> jax.Array:
        """The same again."""
        return self.measure(y)

    def project(self, x_NxHxWxC: jax.Array, y: jax.Array) -> jax.Array:
        """Known pixels replaced, bit by bit."""
        return jnp.where(self.known, y, x_NxHxWxC)


@dataclasses.dataclass(frozen=True)
class BlockMean:
    """The means of factor x factor pixels are known: super-resolution."""

    factor: int

    def measure(self, x_NxHxWxC: jax.Array) -> jax.Array:
        """[N, H / factor, W / factor, C]."""
        n, h, w, c = x_NxHxWxC.shape
        f = self.factor
        return x_NxHxWxC.reshape(n, h // f, f, w // f, f, c).mean(axis=(2, 4))

    def lift(self, y: jax.Array) -> jax.Array:
        """Every mean in all pixels of its block."""
        return jnp.repeat(jnp.repeat(y, self.factor, axis=1), self.factor, axis=2)

    def project(self, x_NxHxWxC: jax.Array, y: jax.Array) -> jax.Array:
        """Every block shifted to its mean."""
        return x_NxHxWxC + self.lift(y - self.measure(x_NxHxWxC))


@dataclasses.dataclass(frozen=True)
class ChannelMean:
    """The mean of every pixel's channels is known: colourisation."""

    channels: int = 3

    def measure(self, x_NxHxWxC: jax.Array) -> jax.Array:
        """[N, H, W, 1]."""
        return x_NxHxWxC.mean(axis=-1, keepdims=True)

    def lift(self, y: jax.Array) -> jax.Array:
        """The mean in every channel: grey."""
        return jnp.repeat(y, self.channels, axis=-1)

    def project(self, x_NxHxWxC: jax.Array, y: jax.Array) -> jax.Array:
        """Every pixel shifted to its mean."""
        return x_NxHxWxC + self.lift(y - self.measure(x_NxHxWxC))


@dataclasses.dataclass(frozen=True)
class Luma(ChannelMean):
    """The luma of every pixel is known: colourisation with the differences of colour kept (YCbCr
    with Y replaced; Nair et al. 2023, Steered Diffusion)."""

    def measure(self, x_NxHxWxC: jax.Array) -> jax.Array:
        """[N, H, W, 1]."""
        return (x_NxHxWxC * jnp.asarray(LUMA, x_NxHxWxC.dtype)).sum(axis=-1, keepdims=True)


def steer_by_measurement(
    denoiser: Denoiser, measurement: Measurement, y: jax.Array, strength: float = 1.0
) -> Denoiser:
    """Corrects the predicted clean image in what is measured, and leaves the rest to the denoiser.

    clean' = clean + strength A^+ (y - A clean): the measurement decides in the range of A^+, the
    denoiser in the null space of A (DDNM, Wang et al. 2022). The noise is what z then still
    consists of, so that every solver moves on the path to clean'. It costs no evaluation. `fit`
    after the last step makes the sample fit exactly.

    Args:
      denoiser: of the images to be measured, guided or not.
      measurement: A.
      y: the measurement of every image, [N, ...] float32.
      strength: 0 (the denoiser itself) to 1; less than 1 is for a noisy y.
    """
    if strength == 0:
        return denoiser

    def steered(z: jax.Array, t: jax.Array, y_N: jax.Array) -> Denoised:
        denoised = denoiser(z, t, y_N)
        clean = measurement.project(denoised.clean, y)
        if strength != 1:
            clean = denoised.clean + strength * (clean - denoised.clean)
        return replace_clean(denoised, clean, t)

    return steered


def fit(measurement: Measurement, x_NxHxWxC: jax.Array, y: jax.Array) -> jax.Array:
    """The image nearest to x that has the measurement y and pixels in [-1, 1], up to rounding.

    It is clip(x + A^+ shift) for all measurements here, and its measurement grows with the shift:
    found by bisection. y must be in [-1, 1] too.
    """

    def moved(shift: jax.Array) -> jax.Array:
        return jnp.clip(x_NxHxWxC + measurement.lift(shift), -1, 1)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        short = measurement.measure(moved(middle)) < y
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    reach = 1 + jnp.abs(x_NxHxWxC).max(axis=(1, 2, 3), keepdims=True)
    reach = jnp.broadcast_to(reach, y.shape)
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (-reach, reach))
    return measurement.project(moved((low + high) / 2), y)


Loss = Callable[[jax.Array], jax.Array]
"""From predicted clean data [N, ..., C] to [N], each of its own example alone."""


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A loss of a sum, and when it counts."""

    loss: Loss
    weight: float = 1.0
    window: tuple[float, float] = (0.0, EARLIEST)
    """The flow times from the first to the second, both included: 0 is data, 1 is noise."""


def posterior_factor(t: jax.Array) -> jax.Array:
    """t^2 / (1 - t), with which the gradient of a negative log-likelihood makes the posterior; 0
    above `EARLIEST`."""
    return jnp.where(t <= EARLIEST, t**2 / jnp.maximum(1 - t, 1 - EARLIEST), 0)


def next_noise_factor(times: np.ndarray) -> Callable[[jax.Array], jax.Array]:
    """sqrt(1 - abar) of the time that comes next in `times`, by which Steered Diffusion scales the
    gradient by x_t, the path of variance 1; 0 above `EARLIEST`.

    Args:
      times: of the solver, descending.
    """
    grid = jnp.asarray(times[::-1])

    def factor(t: jax.Array) -> jax.Array:
        later = grid[jnp.maximum(jnp.searchsorted(grid, t, side="left") - 1, 0)]
        level = later * unit_variance(later)
        return jnp.where(t <= EARLIEST, level / unit_variance(t), 0)

    return factor


def steer_by_loss(denoiser: Denoiser, loss: Loss, strength: float = 1.0) -> Denoiser:
    """Lowers a loss of the predicted clean image: a classifier's, a similarity, any measurement.

    With a loss that is a negative log-likelihood and strength 1 the samples are of the posterior,
    as far as log p(y | z) is the likelihood of the predicted clean image (DPS, Chung et al. 2023;
    exact for a linear loss of Gaussian data). As the score becomes score - strength
    grad_z loss, noise' = noise + strength t grad and clean' = clean - strength t^2 / (1 - t) grad.

    An evaluation costs the network's backward pass with regard to z on top: about three times a
    forward pass. Times above `EARLIEST` are not steered.

    Args:
      denoiser: what to steer; differentiable.
      loss: what to lower.
      strength: 0 is the denoiser itself.
    """
    return steer_by_losses(denoiser, [Weighted(loss, strength)])


def steer_by_losses(
    denoiser: Denoiser,
    losses: Sequence[Weighted],
    factor: Callable[[jax.Array], jax.Array] = posterior_factor,
) -> Denoiser:
    """Lowers a weighted sum of losses, each in a window of time (Nair et al. 2023, Steered
    Diffusion): clean' = clean - factor(t) grad_z of the sum. See `steer_by_loss`.

    Where no loss counts, and with weights of 0 altogether, it is the denoiser itself. With a
    mixture of experts the gradient passes through the experts that were chosen, and not through the
    choice.

    Args:
      denoiser: what to steer; differentiable.
      losses: what to lower.
      factor: of the gradient, by flow time: `posterior_factor`, or a `next_noise_factor`.
    """
    counting = [part for part in losses if part.weight != 0]
    if not counting:
        return denoiser

    def inside(part: Weighted, t: jax.Array) -> jax.Array:
        low, high = part.window
        return (low <= t) & (t <= high)

    def steered(z: jax.Array, t: jax.Array, y_N: jax.Array) -> Denoised:
        def total(z: jax.Array) -> tuple[jax.Array, Denoised]:
            denoised = denoiser(z, t, y_N)
            sums = [
                jnp.where(inside(part, t), part.weight * part.loss(denoised.clean), 0).sum()
                for part in counting
            ]
            return jnp.sum(jnp.stack(sums)), denoised

        gradient, denoised = jax.grad(total, has_aux=True)(z)
        clean = denoised.clean - broadcast_time(factor(t), gradient) * gradient
        return replace_clean(denoised, clean, t)

    def within(z: jax.Array, t: jax.Array, y_N: jax.Array) -> Denoised:
        counts = jnp.any(jnp.stack([jnp.any(inside(part, t)) for part in counting]))
        return jax.lax.cond(counts, steered, denoiser, z, t, y_N)

    return within


def replace_clean(denoised: Denoised, clean: jax.Array, t: jax.Array) -> Denoised:
    """The decomposition of the same z with another clean image.

    At t = 0 z is the clean image whatever the noise, which stays.
    """
    t = broadcast_time(t, clean)
    ratio = jnp.where(t > 0, (1 - t) / jnp.where(t > 0, t, 1), 0)
    return dataclasses.replace(
        denoised, clean=clean, noise=denoised.noise - ratio * (clean - denoised.clean)
    )
