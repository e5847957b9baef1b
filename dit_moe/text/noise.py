"""How much of a token is left at each time: alpha-bar, by the place in the target.

x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, with abar_0 = 1 for the data themselves and times
1 to T.
"""

import jax
import jax.numpy as jnp
import numpy as np

_OFFSET = 1e-4
_MOST = 0.999
"""Largest share of noise that one time adds."""
_UNSEEN = -1.0
_LEAST_RISE = 1e-4
RATE = 0.05
"""How much a batch counts in the mean error of a part of the times."""


def sqrt_schedule(times: int) -> np.ndarray:
    """abar of the times 0 to T, float32 [T + 1] (Diffusion-LM, Li et al. 2022).

    The noise that each time adds is that of abar(t) = 1 - sqrt(t / T + 1e-4), of which each at most
    0.999, as there: abar_t is abar(t) / abar(0) but for the last times.
    """
    place = np.arange(times + 1) / times
    abar = 1 - np.sqrt(place + _OFFSET)
    added = np.minimum(1 - abar[1:] / abar[:-1], _MOST)
    return np.concatenate([[1.0], np.cumprod(1 - added)]).astype(np.float32)


def bin_of(t_N: jax.Array, times: int, bins: int) -> jax.Array:
    """The part of the times 1 to T in which each lies: int32 [N]."""
    return (t_N - 1) * bins // times


def unseen(bins: int, length: int) -> jax.Array:
    """The mean errors [bins, S] of which none is known."""
    return jnp.full((bins, length), _UNSEEN)


def remembered(error_BxS: jax.Array, bin_N: jax.Array, error_NxS: jax.Array) -> jax.Array:
    """The mean errors by part of the times and place, with those of a batch."""
    is_N_B = jax.nn.one_hot(bin_N, len(error_BxS))
    count_Bx1 = is_N_B.sum(axis=0)[:, None]
    mean_BxS = is_N_B.T @ error_NxS / jnp.maximum(count_Bx1, 1)
    moved = jnp.where(error_BxS < 0, mean_BxS, error_BxS + RATE * (mean_BxS - error_BxS))
    return jnp.where(count_Bx1 > 0, moved, error_BxS)


def adapted(abar_SxT: jax.Array, error_BxS: jax.Array) -> jax.Array:
    """abar under which errors grow evenly from time 1 to T, place by place (SeqDiffuSeq).

    Errors are taken to lie at the middle of their part of the times, to grow with noise, and to go
    on at both ends as they come there; in between abar is a linear function of them. abar of the
    times 0, 1 and T stays. Where no error is known of a part, all of it stays.

    Args:
      abar_SxT: [S, T + 1] by which the errors were found.
      error_BxS: [B, S], from `remembered`.
    """
    times, bins = abar_SxT.shape[1] - 1, len(error_BxS)
    middle_B = (jnp.arange(bins) + 0.5) * times / bins + 0.5
    known_K = jnp.concatenate([jnp.ones(1), middle_B, jnp.full(1, times)])

    def of_place(abar_T: jax.Array, error_B: jax.Array) -> jax.Array:
        rising_B = jax.lax.cummax(error_B) + _LEAST_RISE * jnp.arange(bins)
        first = rising_B[0] - (rising_B[1] - rising_B[0]) / 2
        last = rising_B[-1] + (rising_B[-1] - rising_B[-2]) / 2
        error_K = jnp.concatenate([first[None], rising_B, last[None]])
        abar_K = jnp.interp(known_K, jnp.arange(times + 1), abar_T)
        even_T = jnp.linspace(first, last, times)
        return jnp.concatenate([abar_T[:1], jnp.interp(even_T, error_K, abar_K)])

    new_SxT = jax.vmap(of_place, in_axes=(0, 1))(abar_SxT, error_BxS)
    return jnp.where((error_BxS >= 0).all(), new_SxT, abar_SxT)


def posterior(
    x: jax.Array, clean: jax.Array, abar: jax.Array, abar_next: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation of x at a time of less noise, given x and the data (Ho et al. 2020).

    Args:
      x: [N, S, D] at the time of `abar`.
      clean: [N, S, D], the data.
      abar: [S] of now.
      abar_next: [S] of the time that is gone to, no smaller; 1 gives the data themselves.
    """
    kept = abar / abar_next
    of_clean = jnp.sqrt(abar_next) * (1 - kept) / (1 - abar)
    of_x = jnp.sqrt(kept) * (1 - abar_next) / (1 - abar)
    deviation = jnp.sqrt((1 - abar_next) / (1 - abar) * (1 - kept))
    return of_clean[:, None] * clean + of_x[:, None] * x, deviation[:, None]
