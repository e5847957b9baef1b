"""Exponential integrators of the data prediction: DPM-Solver++ and UniPC.

With lambda = log((1 - t) / t) the probability flow from t to t' is exactly

    z' = (t' / t) z + (1 - t' / t) mean of x_0 over the step,

where the mean's weight over lambda is exp(lambda). The methods take for x_0 a polynomial in lambda
through what the network said at earlier steps, so that the mean is a weighted sum; the weights
depend on the times alone. At t = 1 and at t = 0 lambda is infinite and t' / t is not.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.diffusion.denoiser import Denoiser
from dit_moe.diffusion.solvers.steps import Solver, over_steps


def multistep(order: int, corrector: bool) -> Solver:
    """A multistep method with one evaluation per step.

    Without corrector it is DPM-Solver++ (Lu et al. 2022), with it UniPC with B_2 (Zhao et al.
    2023), whose corrector looks back at the step before once the network has spoken of its end.
    The first steps have lower order, and so have the last ones before t = 0: the n-th from the end
    has order n at most. The last goes to x_0 as predicted.

    With two nodes the weights are 1/2 of the slope, as both papers have it; three are exact for
    polynomials. DPM-Solver++'s third order in public code takes half of the second derivative; here
    it is whole, without which the order is two.

    Args:
      order: how many predictions the predictor uses, 1 to 3. UniPC's order of convergence is
        one more.
      corrector: whether to correct.
    """

    def solver(
        denoiser: Denoiser, z: jax.Array, key_N: jax.Array, y_N: jax.Array, times: np.ndarray
    ) -> jax.Array:
        del key_N
        predict_SxP, correct_SxP = weights(times, order)
        ratio_S = np.asarray(times[1:], np.float64) / times[:-1]
        # The first step has none before it to correct.
        ratio_before_S = np.append(1.0, ratio_S[:-1])

        def step(
            state: tuple[jax.Array, jax.Array, jax.Array],
            t: jax.Array,
            t_next: jax.Array,
            predict_P: jax.Array,
            ratio: jax.Array,
            correct_P: jax.Array,
            ratio_before: jax.Array,
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            del t_next
            z, z_before, history = state
            history = jnp.concatenate([denoiser(z, t, y_N).clean[None], history])
            if corrector:
                mean = jnp.tensordot(correct_P, history, 1)
                z = ratio_before * z_before + (1 - ratio_before) * mean
            mean = jnp.tensordot(predict_P, history, 1)
            return ratio * z + (1 - ratio) * mean, z, history[:-1]

        history = jnp.zeros((order, *z.shape), z.dtype)
        state = (z, z, history)
        return over_steps(step, state, times, predict_SxP, ratio_S, correct_SxP, ratio_before_S)[0]

    return solver


def weights(times: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """The weights of x_0 as predicted at times i, i - 1, ..., i - order, for every i.

    Args:
      times: [S + 1], strictly descending.
      order: of the predictor.

    Returns:
      [S, order + 1] float64 twice: of the step from i to i + 1, and of the step from i - 1 to i
      (unused for i = 0). Each row has the sum 1.
    """
    times = np.asarray(times, np.float64)
    with np.errstate(divide="ignore"):
        log_snr = np.log1p(-times) - np.log(times)
    infinite = int(np.isinf(log_snr[0]))  # a polynomial has no node there
    steps = len(times) - 1
    predict, correct = np.zeros((2, steps, order + 1))
    for i in range(steps):
        left = steps - i if np.isinf(log_snr[-1]) else order
        count = max(1, min(order, i + 1 - infinite, left))
        predict[i, :count] = _mean_weights(log_snr[i::-1][:count], log_snr[i], log_snr[i + 1])
        if i > 0:
            count = max(2, min(order + 1, i + 1 - infinite))
            correct[i, :count] = _mean_weights(log_snr[i::-1][:count], log_snr[i - 1], log_snr[i])
    return predict, correct


def _mean_weights(nodes: np.ndarray, start: float, end: float) -> np.ndarray:
    """How much each node's value counts in the mean of the polynomial through them."""
    n = len(nodes)
    if n == 1:
        return np.ones(1)
    if np.isinf(start):
        return np.full(n, 1 / n)  # UniPC's first correction: the trapezoidal rule
    h = end - start
    place = (nodes - start) / h
    if n == 2:
        moments = np.array([1, 1 / 2])
    else:
        # Of the weight h exp(-h (1 - p)) over the step's part p, by parts.
        moments = [-np.expm1(-h)]
        for power in range(1, n):
            moments.append(1 - power * moments[-1] / h)
        moments = np.array(moments) / moments[0]
    return np.linalg.solve(np.vander(place, increasing=True).T, moments)
