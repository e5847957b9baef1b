"""The concepts of docs/theory.md that no other test holds, on data of known scores."""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import GuidanceConfig
from dit_moe.diffusion.denoiser import Denoised
from dit_moe.diffusion.guidance import against_null_label, guide
from dit_moe.diffusion.integrate import sample, start_noise
from dit_moe.diffusion.measurements import steer_by_loss
from tests.diffusion.gaussian import FLOW

ROOT = Path(__file__).parents[2]
COUNT = 2000
KEY_N, NO_LABELS = jax.random.split(jax.random.key(0), COUNT), jnp.zeros(COUNT, jnp.int32)


def test_every_row_of_the_page_names_code_and_a_test_that_are_there():
    """A row ends in the cells of files and of tests, FILE::TEST each."""
    rows = [
        line.strip("|").split("|")
        for line in (ROOT / "docs/theory.md").read_text().splitlines()
        if line.startswith("| ") and "tests/" in line
    ]
    assert len(rows) >= 12
    for *_, files, tests in rows:
        for file in re.findall(r"`([^`]*)`", files):
            assert (ROOT / file).exists(), file
        named = re.findall(r"`(tests/[^`]*)`", tests)
        assert named, tests
        for name in named:
            file, test = name.split("::")
            tree = ast.parse((ROOT / file).read_text())
            assert test in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}, name


# --- A mixture of two Gaussians: classes 0 and 1 at -1 and 1, label 2 is of either ---

SPREAD, NULL = 0.7, 2
CENTRES = jnp.array([-1.0, 1.0])


def log_density(z, t):
    """The mixture's at a number z, with noise of time t."""
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    each = -((z - (1 - t) * CENTRES) ** 2) / (2 * variance) - jnp.log(2 * jnp.pi * variance) / 2
    return jax.scipy.special.logsumexp(each) - jnp.log(2)


def of_mixture(z, t, y_N):
    """The posterior mean by Bayes: that of each class, weighed by what z says of classes."""
    t = jnp.broadcast_to(t, y_N.shape)[:, None]
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    centred = z - (1 - t) * CENTRES  # [N, 2]
    known = jnp.where(y_N[:, None] == jnp.arange(2), 0.0, -jnp.inf)
    prior = jnp.where(y_N[:, None] == NULL, 0.0, known)
    weight = jax.nn.softmax(prior - centred**2 / (2 * variance))
    clean = (weight * (CENTRES + (1 - t) * SPREAD**2 / variance * centred)).sum(1, keepdims=True)
    noise = (z - (1 - t) * clean) / jnp.maximum(t, 1e-6)
    return Denoised(clean=clean, noise=noise, variance=jnp.zeros((len(z), 0)))


def test_the_score_is_the_predicted_noise():
    """Tweedie: grad log p_t(z) = -E[noise | z] / t, by autodiff of the density."""
    z = jnp.linspace(-3, 3, 41)
    y_N = jnp.full(41, NULL)
    for t in (0.1, 0.5, 0.9):
        score = jax.vmap(jax.grad(lambda z, t=t: log_density(z, t)))(z)
        noise = of_mixture(z[:, None], jnp.float32(t), y_N).noise[:, 0]
        np.testing.assert_allclose(score, -noise / t, rtol=1e-3, atol=1e-4)


def test_guidance_trades_diversity_for_confidence():
    """Wu et al. 2024: with the scale the share that shows the class grows, the spread falls."""
    y_N = jnp.ones(COUNT, jnp.int32)

    def draw(scale):
        config = GuidanceConfig(scale=scale)
        denoiser = guide(of_mixture, against_null_label(of_mixture, NULL), config)
        return sample(FLOW, denoiser, KEY_N, y_N, (1,), "heun", 40)[:, 0]

    scales = (1.0, 2.0, 4.0, 8.0)
    drawn = np.stack(jax.jit(lambda: [draw(scale) for scale in scales])())
    # The class's posterior at x, of equal priors: a logistic function of x.
    confidence = (1 / (1 + np.exp(-2 * drawn / SPREAD**2))).mean(axis=1)
    assert (np.diff(confidence) > 0).all(), confidence
    assert (np.diff(drawn.std(axis=1)) < -0.03).all(), drawn.std(axis=1)
    # Scale 1 is the class itself; guided samples lie beyond its centre, not on it.
    np.testing.assert_allclose([drawn[0].mean(), drawn[0].std()], [1, SPREAD], atol=0.05)
    assert (np.diff(drawn.mean(axis=1)) > 0).all()


# --- Gaussian vectors near a plane ---

SIZE, RANK, OFF = 12, 3, 0.05
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, SIZE)))[0]
PLANE, BESIDE = BASIS[:, :RANK], BASIS[:, RANK:]


def of_gaussian(covariance):
    """The exact denoiser of N(0, covariance), which may be singular."""
    value, vector = (jnp.asarray(a, jnp.float32) for a in np.linalg.eigh(covariance))

    def denoiser(z, t, y_N):
        t = jnp.broadcast_to(t, y_N.shape)[:, None]
        along = (z @ vector) / ((1 - t) ** 2 * jnp.maximum(value, 0) + t**2 + 1e-12)
        clean = (along * (1 - t) * jnp.maximum(value, 0)) @ vector.T
        return Denoised(clean=clean, noise=(along * t) @ vector.T, variance=jnp.zeros((len(z), 0)))

    return denoiser


def test_samples_stay_on_the_subspace_of_the_data():
    """And what 40 examples say of it does not get worse with the dimension around it."""
    known = np.random.default_rng(1).normal(size=(40, RANK))
    error = []
    for around in (RANK + 1, SIZE):
        plane = PLANE if around == SIZE else np.eye(around)[:, :RANK]
        x = known @ plane.T
        denoiser = of_gaussian(x.T @ x / len(x))
        drawn = np.asarray(sample(FLOW, denoiser, KEY_N, NO_LABELS, (around,), "euler", 100))
        energy = np.square(drawn - drawn @ plane @ plane.T).sum(axis=1).mean()
        assert energy < 1e-9 * np.square(drawn).sum(axis=1).mean()
        found = (drawn @ plane).T @ (drawn @ plane) / COUNT
        error.append(np.linalg.norm(found - np.eye(RANK)))
        np.testing.assert_allclose(found, known.T @ known / len(x), atol=0.15)
    np.testing.assert_allclose(*error, atol=0.15)
    # Noise itself is mostly beside the plane.
    noise = start_noise(KEY_N, (SIZE,)) @ PLANE
    assert np.square(noise).sum(axis=1).mean() < 0.3 * SIZE


def test_a_reward_rises_with_the_target_and_falls_beyond_the_data():
    """Steering by a fitted reward (Yuan et al. 2023): at first it gains, then what it does not
    know costs more. The fit is ridge regression on few examples; away from the plane the true
    reward falls by the square, which no example shows."""
    generator = np.random.default_rng(2)
    covariance = PLANE @ PLANE.T + OFF**2 * BESIDE @ BESIDE.T
    direction, cost = PLANE @ np.array([1.0, 0.5, 0.0]), 400.0
    x = generator.multivariate_normal(np.zeros(SIZE), covariance, 60)
    reward = x @ direction + 0.5 * generator.normal(size=len(x))
    fitted = np.linalg.solve(x.T @ x + 0.01 * np.eye(SIZE), x.T @ reward)

    def true_reward(x):
        return x @ direction - cost * np.square(x @ BESIDE).sum(axis=-1)

    strengths = np.array([0.0, 2.0, 8.0, 20.0, 40.0])
    by_loss = jnp.asarray(fitted, jnp.float32)
    denoiser = of_gaussian(covariance)

    def draw(strength):
        steered = steer_by_loss(denoiser, lambda x: -x @ by_loss, float(strength))
        return sample(FLOW, steered, KEY_N, NO_LABELS, (SIZE,), "heun", 60)

    drawn = np.stack(jax.jit(lambda: [draw(s) for s in strengths])())
    found = true_reward(drawn).mean(axis=1)
    # exp(c w x) N(0, S) is N(c S w, S), so the expected reward is a parabola in c.
    moved = strengths[:, None] * (covariance @ fitted)
    expected = true_reward(moved) - cost * OFF**2 * (SIZE - RANK)
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.4)
    assert found.argmax() not in (0, len(strengths) - 1)
    assert ((drawn @ fitted).mean(axis=1)[1:] > (drawn @ fitted).mean(axis=1)[:-1]).all()
