import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dit_moe.config import ConfigError, DDPMConfig, RectifiedFlowConfig
from dit_moe.diffusion.integrate import build_objective, sample
from dit_moe.diffusion.rectified_flow import RectifiedFlow
from dit_moe.models.prediction import Prediction

KEYS = jax.random.split(jax.random.key(0), 4096)
MEAN, DEVIATION = 0.7, 0.3


def prediction(value: jax.Array, **losses: jax.Array) -> Prediction:
    return Prediction(value=value, routing=None, losses=losses)


def gaussian_network(z, t, y):
    """The exact velocity for data N(MEAN, DEVIATION^2)."""
    t = t[:, None, None, None]
    variance = (1 - t) ** 2 * DEVIATION**2 + t**2
    slope = (t - (1 - t) * DEVIATION**2) / variance
    return prediction(slope * (z - (1 - t) * MEAN) - MEAN)


def test_logit_normal_times():
    t = np.asarray(RectifiedFlow(RectifiedFlowConfig()).draw_times(KEYS), np.float64)
    assert stats.kstest(np.log(t / (1 - t)), "norm").pvalue > 1e-3


def test_uniform_times():
    config = RectifiedFlowConfig(time_distribution="uniform")
    assert stats.kstest(RectifiedFlow(config).draw_times(KEYS), "uniform").pvalue > 1e-3


def test_shift():
    t = np.linspace(0, 1, 11)
    flow = RectifiedFlow(RectifiedFlowConfig(shift=3.0))
    np.testing.assert_allclose(flow.shift(t), 3 * t / (1 + 2 * t), rtol=1e-6)
    np.testing.assert_array_equal(RectifiedFlow(RectifiedFlowConfig()).shift(t), t)
    uniform = RectifiedFlowConfig(time_distribution="uniform", shift=3.0)
    drawn = np.asarray(RectifiedFlow(uniform).draw_times(KEYS), np.float64)
    assert stats.kstest(drawn / (3 - 2 * drawn), "uniform").pvalue > 1e-3


def test_loss():
    """A network that knows x recovers the drawn time and noise, and so the expected loss."""
    x = jax.random.normal(jax.random.key(1), (64, 4, 4, 2))
    seen = {}

    def network(z, t, y):
        seen.update(z=np.asarray(z, np.float64), t=np.asarray(t, np.float64))
        return prediction(jnp.zeros((64, 4, 4, 4)), balance=jnp.float32(0.25))

    flow = RectifiedFlow(RectifiedFlowConfig(time_scale=1000))
    loss, (metrics, _) = flow.loss(network, KEYS[:64], x, jnp.zeros(64, jnp.int32))
    t = seen["t"][:, None, None, None] / 1000
    noise = (seen["z"] - (1 - t) * np.asarray(x)) / t
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    per_image = np.mean((noise - np.asarray(x)) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(metrics["mse"], per_image.mean(), rtol=1e-3)
    np.testing.assert_allclose(loss, per_image.mean() + 0.25, rtol=1e-3)
    assert metrics["balance"] == 0.25
    assert metrics["loss"] == loss
    for b in range(4):
        inside = (t.ravel() >= b / 4) & (t.ravel() < (b + 1) / 4)
        np.testing.assert_allclose(metrics[f"loss_t{b}"], per_image[inside].mean(), rtol=1e-2)


def test_empty_time_bin_is_nan():
    flow = RectifiedFlow(RectifiedFlowConfig())
    x = jnp.zeros((1, 2, 2, 1))
    _, (metrics, _) = flow.loss(lambda z, t, y: prediction(z), KEYS[:1], x, jnp.zeros(1, jnp.int32))
    assert sum(np.isnan(metrics[f"loss_t{b}"]) for b in range(4)) == 3


@pytest.mark.parametrize("config", [RectifiedFlowConfig(), DDPMConfig()])
def test_loss_gradient_by_finite_differences(config):
    objective = build_objective(config)
    x = jax.random.normal(jax.random.key(1), (8, 4, 4, 1))

    def loss(w):
        def network(z, t, y):
            return prediction(w * z + w**2)

        return objective.loss(network, KEYS[:8], x, jnp.zeros(8, jnp.int32))[0]

    w, h = jnp.float32(0.7), 1e-2
    difference = (loss(w + h) - loss(w - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(loss)(w), difference, rtol=1e-3)


@pytest.mark.parametrize("config", [RectifiedFlowConfig(), DDPMConfig()])
def test_draws_depend_on_the_key_alone(config):
    objective = build_objective(config)
    x = jax.random.normal(jax.random.key(1), (8, 4, 4, 1))
    seen = []

    def network(z, t, y):
        seen.append((np.asarray(z), np.asarray(t)))
        return prediction(z)

    objective.loss(network, KEYS[:8], x, jnp.zeros(8, jnp.int32))
    objective.loss(network, KEYS[4:8], x[4:], jnp.zeros(4, jnp.int32))
    np.testing.assert_array_equal(seen[0][0][4:], seen[1][0])
    np.testing.assert_array_equal(seen[0][1][4:], seen[1][1])


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_order_of_convergence(solver, order, shift):
    """Gaussian data: the flow maps noise e to MEAN + DEVIATION e."""
    flow = RectifiedFlow(RectifiedFlowConfig(shift=shift))
    key_N, y_N = KEYS[:16], jnp.zeros(16, jnp.int32)
    noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), (2, 2, 1)))(key_N)
    exact = MEAN + DEVIATION * noise
    counts = np.array([32, 64, 128, 256])
    errors = [
        np.abs(
            sample(flow, flow.denoiser(gaussian_network), key_N, y_N, (2, 2, 1), solver, n) - exact
        ).max()
        for n in counts.tolist()
    ]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.2


@pytest.mark.parametrize(
    ("config", "solver"),
    [
        (RectifiedFlowConfig(), "heun"),
        (DDPMConfig(), "ancestral"),
        (DDPMConfig(), "ddim"),
    ],
)
def test_a_sample_depends_on_its_key_alone(config, solver):
    objective = build_objective(config)
    y_N = jnp.arange(8)

    def network(z, t, y):
        return prediction(jnp.tanh(z + y[:, None, None, None] / 10))

    def run(part):
        return sample(
            objective, objective.denoiser(network), KEYS[part], y_N[part], (4, 4, 1), solver, 5
        )

    np.testing.assert_array_equal(run(slice(0, 8))[4:], run(slice(4, 8)))


def test_solver_of_the_other_objective():
    flow = build_objective(RectifiedFlowConfig())
    with pytest.raises(ConfigError, match="solver is 'ancestral' with objective 'rectified_flow'"):
        sample(flow, None, KEYS[:1], None, (2, 2, 1), "ancestral", 5)
