from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dit_moe.config import TIME_GRIDS, DDPMConfig
from dit_moe.diffusion import ddpm
from dit_moe.diffusion.ddpm import DDPM
from dit_moe.diffusion.denoiser import unit_variance
from dit_moe.diffusion.integrate import sample
from dit_moe.diffusion.solvers import euler, step_noise
from dit_moe.models.prediction import Prediction

FIXTURE = dict(np.load(Path(__file__).parent.parent / "fixtures" / "ddpm.npz"))
LEARNED = DDPM(DDPMConfig(variance="learned_range"))


def nhwc(name: str) -> jax.Array:
    return jnp.asarray(FIXTURE[name].transpose(0, 2, 3, 1))


def prediction(value: jax.Array) -> Prediction:
    return Prediction(value=value, routing=None, losses={})


def test_tables():
    np.testing.assert_allclose(ddpm.betas(LEARNED.config), FIXTURE["betas"], rtol=1e-12)
    steps = LEARNED.steps()
    alpha_bar = FIXTURE["alphas_cumprod"]
    np.testing.assert_allclose(steps.signal, np.sqrt(alpha_bar), rtol=1e-6)
    np.testing.assert_allclose(steps.noise, np.sqrt(1 - alpha_bar), rtol=1e-6)
    np.testing.assert_allclose(
        steps.log_posterior_variance, FIXTURE["posterior_log_variance_clipped"], rtol=1e-6
    )


def test_cosine_betas():
    betas = ddpm.betas(DDPMConfig(timesteps=100, betas="cosine"))
    t = np.arange(101) / 100
    alpha_bar = (
        np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    )
    np.testing.assert_allclose(np.cumprod(1 - betas)[:-1], alpha_bar[1:-1], rtol=1e-10)
    assert betas.max() == 0.999


def test_linear_betas_keep_the_noise_of_fewer_steps():
    few, many = (np.cumprod(1 - ddpm.betas(DDPMConfig(timesteps=n)))[-1] for n in (250, 1000))
    np.testing.assert_allclose(np.log(few), np.log(many), rtol=0.05)


def test_respaced_timesteps():
    np.testing.assert_array_equal(ddpm.even_timesteps(1000, 250), FIXTURE["timesteps_250"])
    np.testing.assert_array_equal(ddpm.strided_timesteps(1000, 50), FIXTURE["timesteps_ddim50"])
    np.testing.assert_array_equal(ddpm.even_timesteps(1000, 1000), np.arange(1000))
    for timesteps in (ddpm.even_timesteps, ddpm.strided_timesteps):
        np.testing.assert_array_equal(timesteps(1000, 1), [999])


def test_loss_terms():
    x, noise, output, t = nhwc("x_start"), nhwc("noise"), nhwc("model_output"), FIXTURE["t"]
    x_t = nhwc("x_t")
    np.testing.assert_allclose(LEARNED.diffuse(x, t, noise), x_t, rtol=1e-5, atol=1e-6)
    terms = jax.jit(LEARNED.terms)(x, t, noise, output)
    np.testing.assert_allclose(terms["mse"], FIXTURE["mse"], rtol=1e-5)
    np.testing.assert_allclose(terms["vlb"], FIXTURE["vb"], rtol=1e-5)
    np.testing.assert_allclose(terms["mse"] + terms["vlb"], FIXTURE["loss"], rtol=1e-5)


def test_the_variational_term_leaves_the_mean_alone():
    def vlb(output):
        return LEARNED.terms(nhwc("x_start"), FIXTURE["t"], nhwc("noise"), output)["vlb"].sum()

    gradient = jax.jit(jax.grad(vlb))(nhwc("model_output"))
    np.testing.assert_array_equal(gradient[..., :4], 0)
    assert np.isfinite(gradient).all()
    assert (gradient[..., 4:] != 0).mean() > 0.9


def test_gradient_of_the_variational_term_by_finite_differences():
    x, noise, output = (nhwc(name)[1:] for name in ("x_start", "noise", "model_output"))
    direction = jnp.concatenate([jnp.zeros_like(x), jnp.ones_like(x)], axis=-1)

    # Step 0, the first image, is left out: its probabilities are too coarse in float32.
    @jax.jit
    def vlb(h):
        return LEARNED.terms(x, FIXTURE["t"][1:], noise, output + h * direction)["vlb"]

    # Late steps have gradients of 1e-8, below what differences of float32 can show.
    h = 0.03
    difference = (vlb(h) - vlb(-h)) / (2 * h)
    np.testing.assert_allclose(jax.jacrev(vlb)(0.0), difference, rtol=1e-3, atol=1e-6)


def test_loss_of_a_learned_variance_has_finite_gradients():
    """At large t the decoder's likelihood, which only step 0 uses, is far out in its tails."""
    x = jnp.clip(jax.random.normal(jax.random.key(2), (64, 4, 4, 2)), -1, 1)
    key_N, y_N = jax.random.split(jax.random.key(3), 64), jnp.zeros(64, jnp.int32)

    def loss(w):
        def network(z, t, y):
            return prediction(jnp.concatenate([w[0] * z, w[1] * z], axis=-1))

        return LEARNED.loss(network, key_N, x, y_N)

    gradient, (metrics, _) = jax.jit(jax.grad(loss, has_aux=True))(jnp.array([0.5, 0.1]))
    assert np.isfinite(gradient).all()
    assert (gradient != 0).all()
    np.testing.assert_allclose(metrics["mse"] + metrics["vlb"], metrics["loss"], rtol=1e-6)


def test_ddim_trajectory():
    def network(x, t, y):
        return prediction(0.3 * x + t[:, None, None, None] / 1000)

    start = nhwc("ddim_noise")
    key_N, y_N = jax.random.split(jax.random.key(0), 2), jnp.zeros(2, jnp.int32)
    denoiser, times = LEARNED.denoiser(network), LEARNED.times(50)
    z = start / unit_variance(times[0])
    actual = jax.jit(lambda z: euler(denoiser, z, key_N, y_N, times))(z)
    expected = nhwc("ddim50_sample")
    assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_variances(variance):
    objective = DDPM(DDPMConfig(variance=variance))
    step = objective.steps().at(jnp.int32(500))
    x = jnp.zeros((1, 2, 2, 1))
    for extreme, table in ((-1.0, "log_posterior_variance"), (1.0, "log_beta")):
        value = jnp.concatenate([x, jnp.full_like(x, extreme)], axis=-1)
        _, log_variance = objective.reverse(x, step, value)
        expected = {
            "fixed_small": step.log_posterior_variance,
            "fixed_large": step.log_beta,
            "learned_range": getattr(step, table),
        }[variance]
        np.testing.assert_allclose(log_variance, np.broadcast_to(expected, log_variance.shape))


def test_posterior_is_that_of_bayes():
    """q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0)."""
    beta = ddpm.betas(LEARNED.config)
    alpha_bar = np.cumprod(1 - beta)
    t = 300
    precision = (1 - beta[t]) / beta[t] + 1 / (1 - alpha_bar[t - 1])
    step = LEARNED.steps()
    np.testing.assert_allclose(step.log_posterior_variance[t], -np.log(precision), rtol=1e-6)
    np.testing.assert_allclose(
        step.posterior_mean_xt[t], np.sqrt(1 - beta[t]) / beta[t] / precision, rtol=1e-5
    )
    np.testing.assert_allclose(
        step.posterior_mean_x0[t],
        np.sqrt(alpha_bar[t - 1]) / (1 - alpha_bar[t - 1]) / precision,
        rtol=1e-5,
    )


@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_a_single_step_returns_the_predicted_x0(solver):
    """With nothing predicted as noise, x_0 is the initial noise over the signal's factor."""
    key_N, y_N = jax.random.split(jax.random.key(0), 2), jnp.zeros(2, jnp.int32)
    objective = DDPM(DDPMConfig())
    x = sample(
        objective,
        objective.denoiser(lambda x, t, y: prediction(0 * x)),
        key_N,
        y_N,
        (2, 2, 1),
        solver,
        1,
    )
    expected = step_noise(key_N, 0, (2, 2, 1)) / objective.steps().signal[-1]
    assert np.isfinite(x).all()
    np.testing.assert_allclose(x, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "solver", [("ancestral", {}), *(("ddim", {"time_grid": grid}) for grid in TIME_GRIDS)]
)
def test_small_errors_at_the_noisy_end_of_cosine_betas_stay_small(solver):
    """At the last timestep, whose signal is 5e-5, an error of 0.02 would be one of 400 in x_0."""
    name, options = solver
    objective, largest = DDPM(DDPMConfig(betas="cosine")), []
    steps = objective.steps()
    assert (np.exp(steps.log_beta) <= 0.5).sum() == objective.config.sampled_timesteps == 997

    def network(x, t, y):  # of images that are 0.5 everywhere
        jax.debug.callback(lambda x: largest.append(np.abs(x).max()), x)
        signal, noise = (
            jnp.interp(t, steps.timestep, table)[:, None, None, None]
            for table in (steps.signal, steps.noise)
        )
        return prediction((x - 0.5 * signal) / noise + 0.02)

    key_N, y_N = jax.random.split(jax.random.key(0), 2), jnp.zeros(2, jnp.int32)
    denoiser = objective.denoiser(network)
    x = sample(objective, denoiser, key_N, y_N, (2, 2, 1), name, 16, **options)
    jax.effects_barrier()
    assert max(largest) < 5
    np.testing.assert_allclose(x, 0.5, atol=0.05)


@pytest.mark.parametrize(("betas", "steps", "most"), [("linear", 0, 1000), ("cosine", 998, 997)])
def test_impossible_number_of_steps(betas, steps, most):
    key_N, y_N = jax.random.split(jax.random.key(0), 2), jnp.zeros(2, jnp.int32)
    objective = DDPM(DDPMConfig(betas=betas))
    with pytest.raises(ValueError, match=f"steps is {steps}; allowed: 1 to {most}"):
        sample(objective, None, key_N, y_N, (2, 2, 1), "ddim", steps)


@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_samples_of_gaussian_data_have_its_moments(solver):
    mean, deviation = 0.5, 0.3
    objective = DDPM(DDPMConfig(variance="fixed_small"))
    alpha_bar = jnp.square(objective.steps().signal)

    def network(x, t, y):
        a = alpha_bar[t.astype(jnp.int32)][:, None, None, None]
        variance = a * deviation**2 + 1 - a
        return prediction(jnp.sqrt(1 - a) * (x - jnp.sqrt(a) * mean) / variance)

    key_N = jax.random.split(jax.random.key(1), 64)
    y_N = jnp.zeros(64, jnp.int32)
    run = jax.jit(
        lambda k, y: sample(objective, objective.denoiser(network), k, y, (8, 8, 1), solver, 250)
    )
    x = np.asarray(run(key_N, y_N))
    assert abs(x.mean() - mean) < 0.02
    assert abs(x.std() - deviation) < 0.02
    assert stats.kstest((x.ravel() - x.mean()) / x.std(), "norm").pvalue > 1e-4
