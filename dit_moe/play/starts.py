"""Where pictures begin: at the noise of a seed with a class, or on the way between two of them."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import ConfigError
from dit_moe.config.rules import check_seed
from dit_moe.diffusion.integrate import start_noise
from dit_moe.sampling.request import Request
from dit_moe.sampling.sampler import image_keys


@flax.struct.dataclass
class Starts:
    """The beginnings of N pictures."""

    key: jax.Array
    """[N] random keys, of which a solver draws what noise it adds on the way."""
    label: jax.Array
    """int32 [N]."""
    noise: jax.Array
    """[N, H, W, C] float32."""
    row: jax.Array | None = None
    """Float32 [N, D] embeddings that are no label's; None: those of the labels."""

    def of(self, places: np.ndarray) -> "Starts":
        """The beginnings of some of the pictures."""
        return jax.tree.map(lambda array: array[places], self)


def own_starts(request: Request, shape: tuple[int, ...]) -> Starts:
    """Those of a request: the pictures are then the ones that `sample.py` draws.

    Args:
      request: what is asked for.
      shape: [H, W, C] of what the network draws.
    """
    key_N = image_keys(request.seed, jnp.arange(request.num_samples))
    return Starts(key_N, jnp.asarray(request.labels()), start_noise(key_N, shape))


def walk(
    request: Request,
    shape: tuple[int, ...],
    seed: int,
    label: int,
    table_YxD: jax.Array | None = None,
) -> Starts:
    """From the first picture of a request to the first one of another seed and class.

    Noise moves along the arc between the two (`arc`). The noise that a stochastic solver adds on
    the way is the first seed's for all. The class is mixed, or is the other one from the middle on.

    Args:
      request: where the walk begins; it has as many pictures as are asked for.
      shape: [H, W, C] of what the network draws.
      seed: where it ends.
      label: the class there.
      table_YxD: the embeddings of the labels: the class is then mixed in proportion to the way, as
        embeddings, which the network has not been trained for; None: it is switched.

    Raises:
      ConfigError: the request is for one picture, or the seed out of range.
    """
    number = request.num_samples
    if number < 2:
        raise ConfigError(f"number of pictures is {number}; allowed: 2 or more for a walk")
    check_seed(seed, "seed at the end")
    way_N = jnp.linspace(0.0, 1.0, number)
    here = request.classes[0]
    key_N = image_keys(request.seed, jnp.zeros(number, int))
    one = jnp.zeros(1, int)
    first, last = (start_noise(image_keys(s, one), shape)[0] for s in (request.seed, seed))
    label_N = jnp.where(way_N < 0.5, here, label).astype(jnp.int32)
    row_NxD = None
    if table_YxD is not None:
        row_NxD = table_YxD[here] + way_N[:, None] * (table_YxD[label] - table_YxD[here])
    return Starts(key_N, label_N, arc(first, last, way_N), row_NxD)


def arc(a: jax.Array, b: jax.Array, way_N: jax.Array) -> jax.Array:
    """Spherical interpolation (Shoemake 1985): [N, ...] at shares of the way from a to b.

    What lies between two draws of normal noise has their length, as the network expects; on a
    straight line it would be shorter. Where the two point the same way it is that line.
    """
    cosine = jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    bent = jnp.sin(angle) > 1e-3

    def weight(share_N: jax.Array) -> jax.Array:
        weight_N = jnp.where(bent, jnp.sin(share_N * angle) / jnp.sin(angle), share_N)
        return weight_N.reshape(-1, *[1] * a.ndim)

    return weight(1 - way_N) * a + weight(way_N) * b
