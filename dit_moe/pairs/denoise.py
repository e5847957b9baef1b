"""The network of pairs as a denoiser: of rows, guided, and of what is drawn of every pair.

Each image of a pair has a path and a time of its own. An image that is drawn goes from noise to
data, one that is given stays at its end, and one that is given roughly starts between both: at the
solver's time t it is at time `level` t of its own.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dit_moe.config import GuidanceConfig
from dit_moe.diffusion.denoiser import Denoised, Denoiser
from dit_moe.diffusion.guidance import against_null_label, mix
from dit_moe.diffusion.measurements import Mask, steer_by_measurement


@dataclasses.dataclass(frozen=True)
class Stream:
    """What becomes of one image of every pair while pairs are drawn."""

    level: float = 1.0
    """How noisy it is at first: 1 is noise, 0 the image that is given, which then stays as it is;
    between, it starts from that image with so much noise."""
    given: jax.Array | None = None
    """[N, H, W, C] float32, of a level below 1."""
    mask: Mask | None = None
    """Where it is known: it is painted anew elsewhere."""
    known: jax.Array | None = None
    """[N, H, W, C] float32, with a mask."""

    @property
    def drawn(self) -> bool:
        """Whether it changes at all."""
        return self.level > 0

    def start(self, noise: jax.Array, t: jax.typing.ArrayLike) -> jax.Array:
        """Where the path of a given image begins at the solver's time t: [N, H, W, C]."""
        own, given = self.level * jnp.asarray(t), _given(self)
        return (1 - own) * given + own * noise


def guided_rows(
    joined: Denoiser,
    apart: Denoiser,
    null_label: int,
    guidance: GuidanceConfig,
    condition_scale: float,
) -> Denoiser:
    """A denoiser of rows, guided by class and by the other image of the pair.

    To what guidance by class says, condition_scale (joined - apart) is added: away from what the
    network says of each image by itself (UniCon's code). With scale 1 and 0 it is `joined`.

    Args:
      joined: of rows of pairs one after another.
      apart: the same with the attention between the images off.
      null_label: that stands for no class.
      guidance: of guide `cfg`.
      condition_scale: 0 or more.
    """

    def denoise(z: jax.Array, t: jax.Array, y_N: jax.Array) -> Denoised:
        if guidance.scale == 1:
            strong = pushed = joined(z, t, y_N)
        else:
            strong, weak = against_null_label(joined, null_label)(z, t, y_N)
            pushed = mix(guidance, strong, weak, t)
        if condition_scale == 0:
            return pushed
        alone = apart(z, t, y_N)
        return dataclasses.replace(
            pushed,
            clean=pushed.clean + condition_scale * (strong.clean - alone.clean),
            noise=pushed.noise + condition_scale * (strong.noise - alone.noise),
        )

    return denoise


def of_streams(rows: Denoiser, streams: Sequence[Stream]) -> Denoiser:
    """The denoiser of the images that are drawn: z [N, D, H, W, C] of D of those of a pair.

    A drawn image of level l at the solver's time t is z = (1 - l t) clean + l t noise. On the
    solver's own path that is (1 - t) clean + t ((1 - l) clean + l noise), whose second part is what
    it is told for the noise.
    """

    def denoise(z: jax.Array, t: jax.Array, y_N: jax.Array) -> Denoised:
        t_N = jnp.broadcast_to(t, y_N.shape)
        drawn = iter(jnp.moveaxis(z, 1, 0))
        images = [next(drawn) if s.drawn else _given(s) for s in streams]
        times = [s.level * t_N for s in streams]
        labels = [y_N] * len(streams)
        found = rows(_interleave(images), _interleave(times), _interleave(labels))
        parts = []
        for i, stream in enumerate(streams):
            if stream.drawn:
                own = jax.tree.map(lambda a, i=i: a[i :: len(streams)], found)
                parts.append(_on_the_path(stream, _held(stream, images[i], times[i], own)))
        return jax.tree.map(lambda *arrays: jnp.stack(arrays, axis=1), *parts)

    return denoise


def _given(stream: Stream) -> jax.Array:
    assert stream.given is not None
    return stream.given


def _interleave(arrays: Sequence[jax.Array]) -> jax.Array:
    stacked = jnp.stack(arrays, axis=1)
    return stacked.reshape(-1, *stacked.shape[2:])


def _held(stream: Stream, z: jax.Array, t_N: jax.Array, found: Denoised) -> Denoised:
    """What was found of an image, held to what is known of it."""
    if stream.mask is None or stream.known is None:
        return found
    steered = steer_by_measurement(lambda *_: found, stream.mask, stream.mask.measure(stream.known))
    return steered(z, t_N, t_N)  # there are no labels to it


def _on_the_path(stream: Stream, found: Denoised) -> Denoised:
    if stream.level == 1:
        return found
    level = stream.level
    return dataclasses.replace(found, noise=(1 - level) * found.clean + level * found.noise)
