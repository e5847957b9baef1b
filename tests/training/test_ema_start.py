"""The decay of the moving average, and what is left of its start."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.config import MeshConfig, TrainConfig
from dit_moe.devices.mesh import build_mesh
from dit_moe.runs.ema_start import decay_of_step, start_share, start_warning
from dit_moe.runs.state import init_state
from dit_moe.training.step import build_step
from tests.tiny import tiny


def average(config: TrainConfig, theta_TxD: np.ndarray) -> np.ndarray:
    """That of parameters theta[0], from which a run starts, and those after each step."""

    @jax.jit
    def update(average_D, theta_D, number):
        decay = decay_of_step(config, number)
        return decay * average_D + (1 - decay) * theta_D

    average_D = jnp.float32(theta_TxD[0])
    for number, theta_D in enumerate(theta_TxD[1:], start=1):
        average_D = update(average_D, jnp.float32(theta_D), jnp.int32(number))
    return np.asarray(average_D)


def growing_weights(steps: int) -> np.ndarray:
    """What the start and each step weigh while the decay grows: products that telescope."""
    end = math.prod(steps + k for k in range(2, 11))
    start = Fraction(math.factorial(10), end)
    rest = [Fraction(9 * math.prod(s + k for k in range(2, 10)), end) for s in range(1, steps + 1)]
    assert start + sum(rest) == 1
    return np.array([float(w) for w in (start, *rest)])


def test_weights_while_the_decay_grows():
    theta_TxD = np.random.default_rng(0).normal(size=(41, 3))
    found = average(TrainConfig(ema_decay=0.9999), theta_TxD)
    np.testing.assert_allclose(found, growing_weights(40) @ theta_TxD, rtol=1e-5, atol=1e-6)


def test_weights_after_the_decay_has_grown():
    theta_TxD = np.random.default_rng(1).normal(size=(61, 3))
    # (1 + t) / (10 + t) is 0.7 at t = 20.
    weight_T = np.array([*(growing_weights(20) * 0.7**40), *(0.3 * 0.7 ** np.arange(39, -1, -1))])
    found = average(TrainConfig(ema_decay=0.7), theta_TxD)
    np.testing.assert_allclose(found, weight_T @ theta_TxD, rtol=1e-5, atol=1e-6)


def test_the_training_step_averages_so():
    config = tiny(None, batch_size=4, ema_warmup=True, ema_decay=0.2)
    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    x_NxHxWxC, y_N = jax.random.normal(jax.random.key(5), (4, 8, 8, 1)), jnp.arange(4)
    with jax.set_mesh(mesh):
        step = jax.jit(build_step(config.model, config.objective, config.train, config.seed))
        states = [init_state(config.model, config.train, mesh, config.seed)]
        for _ in range(2):
            states.append(step(states[-1], x_NxHxWxC, y_N)[0])
    # 2 / 11, and then no longer 3 / 12.
    weights = 2 / 11 * 0.2, 9 / 11 * 0.2, 0.8
    for path, value in states[-1].ema.items():
        expected = sum(w * s.parameters[path] for w, s in zip(weights, states, strict=True))
        np.testing.assert_allclose(value, expected, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.05, 0.1, 0.5, 0.7, 0.995, 0.9999, 1 - 2**-53])
def test_the_share_of_the_start_is_the_product_of_the_decays(warmup, decay):
    config = TrainConfig(ema_decay=decay, ema_warmup=warmup)
    product = 1.0
    for steps in range(2000):
        assert start_share(config, steps) == pytest.approx(product, rel=1e-9, abs=1e-300)
        t = steps + 1
        product *= min(decay, (1 + t) / (10 + t)) if warmup else decay


def test_a_large_share_is_told():
    fixed = TrainConfig(ema_decay=0.9, ema_warmup=False)
    told = "The moving average of step 28 still is 5% the parameters that the run started from"
    assert told in str(start_warning(fixed, 28))
    assert "more steps, a lower decay or ema_warmup mend" in str(start_warning(fixed, 28))
    assert start_warning(fixed, 29) is None
    assert "step 1 still is 18%" in str(start_warning(TrainConfig(), 1))
    assert start_warning(TrainConfig(), 2) is None
