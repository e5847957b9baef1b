"""Denoising diffusion with noise prediction.

Equations: Ho et al. 2020 (DDPM), Nichol & Dhariwal 2021 (IDDPM). Step t counts from 0; the forward
process is q(x_t | x_0) = N(sqrt(abar_t) x_0, 1 - abar_t).
"""

import dataclasses
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import DDPMConfig
from dit_moe.diffusion.denoiser import (
    Denoised,
    Denoiser,
    broadcast_time,
    mean_per_example,
    unit_variance,
)
from dit_moe.diffusion.objective import Metrics, Network, total_loss
from dit_moe.models.prediction import Prediction


@flax.struct.dataclass
class Coefficients:
    """What every formula needs of a step; arrays over steps, or those of chosen steps.

    Made in float64, used in float32.
    """

    timestep: jax.Array
    """The step's number as the network knows it."""
    signal: jax.Array
    """sqrt(abar_t), the factor of x_0 in x_t."""
    noise: jax.Array
    """sqrt(1 - abar_t), the factor of the noise; near 0, so not to be computed in float32."""
    signal_previous: jax.Array
    noise_previous: jax.Array
    """The same of the step before in the chain."""
    posterior_mean_x0: jax.Array
    """Factor of x_0 in the mean of q(x_{t-1} | x_t, x_0) (DDPM eq. 7)."""
    posterior_mean_xt: jax.Array
    """Factor of x_t there."""
    log_beta: jax.Array
    log_posterior_variance: jax.Array
    """That of q(x_{t-1} | x_t, x_0); the first, which is log 0, takes the second's value."""

    def at(self, index: jax.Array) -> "Coefficients":
        """The coefficients of some steps."""
        return jax.tree.map(lambda table: table[index], self)


def betas(config: DDPMConfig) -> np.ndarray:
    """Noise variances [timesteps] float64."""
    n = config.timesteps
    if config.betas == "linear":
        # 1e-4 to 0.02 for 1000 steps; fewer steps are larger.
        return np.linspace(1e-4, 0.02, n) * (1000 / n)
    # IDDPM eq. 17; their bound on beta keeps the last steps from singularity.
    progress = np.arange(n + 1) / n
    alpha_bar = np.cos((progress + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def coefficients(alpha_bar: np.ndarray, timestep: np.ndarray) -> Coefficients:
    """Coefficients of the chain that visits the given timesteps, ascending.

    Args:
      alpha_bar: [S] float64, of the visited steps.
      timestep: [S] their numbers. With a subset of the steps this is IDDPM's respacing (eq. 19).
    """
    previous = np.append(1.0, alpha_bar[:-1])
    alpha = alpha_bar / previous
    beta = 1 - alpha
    posterior_variance = beta * (1 - previous) / (1 - alpha_bar)
    # The only step of a chain has no second, and adds no noise: any finite value will do.
    first = posterior_variance[1:2] if len(beta) > 1 else beta
    clipped = np.append(first, posterior_variance[1:])
    return Coefficients(
        timestep=jnp.asarray(timestep, jnp.float32),
        signal=jnp.asarray(np.sqrt(alpha_bar), jnp.float32),
        noise=jnp.asarray(np.sqrt(1 - alpha_bar), jnp.float32),
        signal_previous=jnp.asarray(np.sqrt(previous), jnp.float32),
        noise_previous=jnp.asarray(np.sqrt(1 - previous), jnp.float32),
        posterior_mean_x0=jnp.asarray(beta * np.sqrt(previous) / (1 - alpha_bar), jnp.float32),
        posterior_mean_xt=jnp.asarray(
            (1 - previous) * np.sqrt(alpha) / (1 - alpha_bar), jnp.float32
        ),
        log_beta=jnp.asarray(np.log(beta), jnp.float32),
        log_posterior_variance=jnp.asarray(np.log(clipped), jnp.float32),
    )


def even_timesteps(timesteps: int, steps: int) -> np.ndarray:
    """`steps` of the timesteps at even distance, the last one included (IDDPM, section 4)."""
    return np.rint(np.linspace(timesteps - 1, 0, steps)).astype(int)[::-1]


def strided_timesteps(timesteps: int, steps: int) -> np.ndarray:
    """`steps` of the timesteps: floor(i timesteps / steps) (DDIM, appendix D.2).

    A single one is the last: the first is no place to begin from noise.
    """
    return np.arange(steps) * timesteps // steps if steps > 1 else np.array([timesteps - 1])


@dataclasses.dataclass(frozen=True)
class DDPM:
    """The objective, and its network as a denoiser for the solvers."""

    config: DDPMConfig

    def loss(
        self, network: Network, key_N: jax.Array, x: jax.Array, y_N: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Prediction]]:
        """Squared error of the noise, plus the variational term; see `Objective.loss`."""
        n, shape = self.config.timesteps, x.shape[1:]
        time_key_N, noise_key_N = jax.vmap(jax.random.split, out_axes=1)(key_N)
        t_N = jax.vmap(lambda key: jax.random.randint(key, (), 0, n))(time_key_N)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(noise_key_N)
        x_t = self.diffuse(x, t_N, noise)
        prediction = network(x_t, t_N.astype(jnp.float32), y_N)
        terms = self.terms(x, t_N, noise, prediction.value)
        return total_loss(terms, t_N / n, prediction, noise)

    def steps(self, visited: np.ndarray | None = None) -> Coefficients:
        """The coefficients of all timesteps, or of a chain that visits only some."""
        alpha_bar = np.cumprod(1 - betas(self.config))
        visited = np.arange(self.config.timesteps) if visited is None else visited
        return coefficients(alpha_bar[visited], visited)

    def diffuse(self, x: jax.Array, t_N: jax.Array, noise: jax.Array) -> jax.Array:
        """x_t from x_0 and noise (DDPM eq. 4)."""
        step = self.steps().at(t_N)
        return broadcast_time(step.signal, x) * x + broadcast_time(step.noise, x) * noise

    def noised(
        self, x: jax.Array, place_N: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """x_t of the timestep whose part of the range the place is in; see `Objective.noised`."""
        n = self.config.timesteps
        t_N = jnp.minimum(jnp.floor(place_N * n).astype(jnp.int32), n - 1)
        return self.diffuse(x, t_N, noise), t_N.astype(jnp.float32)

    def target(self, x: jax.Array, noise: jax.Array) -> jax.Array:
        """The noise."""
        del x
        return noise

    def terms(
        self, x: jax.Array, t_N: jax.Array, noise: jax.Array, value: jax.Array
    ) -> dict[str, jax.Array]:
        """Loss terms per example, each [N].

        "mse": of the noise (DDPM eq. 14). "vlb", for a learned variance: the step's term of the
        variational bound in bits per dimension with the mean frozen (IDDPM, section 3.1).
        """
        channels = x.shape[-1]
        terms = {"mse": mean_per_example((value[..., :channels] - noise) ** 2)}
        if self.config.variance == "learned_range":
            step = jax.tree.map(lambda c: broadcast_time(c, x), self.steps().at(t_N))
            x_t = self.diffuse(x, t_N, noise)
            frozen = jnp.concatenate(
                [jax.lax.stop_gradient(value[..., :channels]), value[..., channels:]], axis=-1
            )
            terms["vlb"] = self._variational_term(x, x_t, step, frozen)
        return terms

    def denoiser(self, network: Network) -> Denoiser:
        """The network, which predicts the noise, as a denoiser.

        Times between two timesteps are given to the network in proportion; times beyond the
        first and the last are those.
        """
        times = self.path_times()

        def denoise(z: jax.Array, t: jax.Array, y_N: jax.Array) -> Denoised:
            t = jnp.clip(t, times[0], times[-1])
            timestep = jnp.interp(t, times, np.arange(len(times), dtype=np.float32))
            t = broadcast_time(t, z)
            x_t = unit_variance(t) * z
            value = network(x_t, jnp.broadcast_to(timestep, y_N.shape), y_N).value
            noise, variance = jnp.split(value, [z.shape[-1]], axis=-1)
            return Denoised(clean=(z - t * noise) / (1 - t), noise=noise, variance=variance)

        return denoise

    def path_times(self) -> np.ndarray:
        """Where every timestep lies on the straight path: [timesteps] float32."""
        alpha_bar = np.cumprod(1 - betas(self.config))
        signal, noise = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
        return (noise / (signal + noise)).astype(np.float32)

    @property
    def time_range(self) -> tuple[float, float]:
        """The times of the first and last timestep that sampling visits."""
        times = self.path_times()
        return float(times[0]), float(times[self.config.sampled_timesteps - 1])

    def times(self, steps: int) -> np.ndarray:
        """Times [steps + 1] of strided timesteps, descending, and 0 (`strided_timesteps`)."""
        visited = strided_timesteps(self.config.sampled_timesteps, steps)
        return np.append(self.path_times()[visited[::-1]], np.float32(0))

    def quadratic_times(self, steps: int) -> np.ndarray:
        """Times [steps + 1] of timesteps floor(c i^2) whose last is the chain's last, and 0.

        DDIM, appendix D.2; where two would be the same, the next free one.
        """
        last, i = self.config.sampled_timesteps - 1, np.arange(steps)
        spaced = np.floor(last * np.square(i / (steps - 1))) if steps > 1 else [last]
        visited = np.maximum(i, spaced).astype(int)
        return np.append(self.path_times()[visited[::-1]], np.float32(0))

    def places(self, steps: int) -> np.ndarray:
        """(t + 1) / timesteps of every timestep of `times`: [steps] float64."""
        visited = strided_timesteps(self.config.sampled_timesteps, steps)
        return (visited[::-1] + 1) / self.config.timesteps

    def predict_x0(self, x_t: jax.Array, step: Coefficients, noise: jax.Array) -> jax.Array:
        """x_0 from x_t and predicted noise (DDPM eq. 4 solved for x_0)."""
        return (x_t - step.noise * noise) / step.signal

    def reverse(
        self, x_t: jax.Array, step: Coefficients, value: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of p(x_{t-1} | x_t), given the network's output.

        The step's coefficients must broadcast against [N, ..., C].
        """
        channels = x_t.shape[-1]
        x_0 = self.predict_x0(x_t, step, value[..., :channels])
        mean = step.posterior_mean_x0 * x_0 + step.posterior_mean_xt * x_t
        match self.config.variance:
            case "learned_range":
                # IDDPM eq. 15, with the network's [-1, 1] mapped to [0, 1].
                v = (value[..., channels:] + 1) / 2
                log_variance = v * step.log_beta + (1 - v) * step.log_posterior_variance
            case "fixed_small":
                log_variance = step.log_posterior_variance
            case "fixed_large":
                # The first beta would blur the decoded image; the posterior's value stands there.
                first = step.timestep == 0
                log_variance = jnp.where(first, step.log_posterior_variance, step.log_beta)
        return mean, log_variance

    def _variational_term(
        self, x_0: jax.Array, x_t: jax.Array, step: Coefficients, value: jax.Array
    ) -> jax.Array:
        """KL(q || p) of a step, or the decoder's negative log-likelihood at step 0, in bits."""
        true_mean = step.posterior_mean_x0 * x_0 + step.posterior_mean_xt * x_t
        mean, log_variance = self.reverse(x_t, step, value)
        kl = _gaussian_kl(true_mean, step.log_posterior_variance, mean, log_variance)
        nll = -_discretized_log_likelihood(x_0, mean, log_variance / 2)
        term = jnp.where(step.timestep == 0, nll, kl)
        return mean_per_example(term) / math.log(2)


def _gaussian_kl(
    mean_p: jax.Array, log_variance_p: jax.Array, mean_q: jax.Array, log_variance_q: jax.Array
) -> jax.Array:
    """KL(p || q) of diagonal Gaussians per dimension, in nats."""
    difference = log_variance_p - log_variance_q
    distance = (mean_p - mean_q) ** 2 * jnp.exp(-log_variance_q)
    return 0.5 * (jnp.exp(difference) + distance - 1 - difference)


def _discretized_log_likelihood(
    x: jax.Array, mean: jax.Array, log_deviation: jax.Array
) -> jax.Array:
    """Log-probability of the 8-bit bin around x in [-1, 1] under a Gaussian (DDPM eq. 13)."""
    scale = jnp.exp(-log_deviation)
    above = _normal_cdf((x - mean + 1 / 255) * scale)
    below = _normal_cdf((x - mean - 1 / 255) * scale)
    probability = jnp.where(x < -0.999, above, jnp.where(x > 0.999, 1 - below, above - below))
    return jnp.log(jnp.maximum(probability, 1e-12))


def _normal_cdf(x: jax.Array) -> jax.Array:
    # The tanh approximation (Page 1977) of the published training, (1 + tanh(u)) / 2, in the form
    # whose float32 rounding in the upper tail comes closest to it. Beyond 6 it is 0 or 1 anyway;
    # unclipped, exp would overflow and its gradient be NaN, also where `where` discards the value.
    x = jnp.clip(x, -6, 6)
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * (1 + (1 - 2 / (1 + jnp.exp(2 * u))))
