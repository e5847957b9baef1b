"""Auxiliary losses against direct numpy transcriptions of the papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dit_moe.moe import losses

RNG = np.random.default_rng(0)


def numpy_contrastive(x_TxD, p_ExD, expert_TxK, temperature):
    valid = [e for e in range(len(p_ExD)) if (expert_TxK == e).any()]
    if len(valid) < 2:
        return 0.0
    means = np.stack([x_TxD[(expert_TxK == e).any(axis=1)].mean(axis=0) for e in valid])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    centers = p_ExD[valid] / np.linalg.norm(p_ExD[valid], axis=1, keepdims=True)
    logits = centers @ means.T / temperature
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - np.diag(logits)))


def test_balance_loss():
    probabilities = RNG.dirichlet(np.ones(5), size=40).astype(np.float32)
    expert = np.argsort(-probabilities, axis=1)[:, :2]
    f = np.array([5 * (expert == e).sum() / expert.size for e in range(5)])
    expected = np.sum(f * probabilities.mean(axis=0))
    np.testing.assert_allclose(losses.balance_loss(probabilities, expert), expected, rtol=1e-6)


def test_balance_loss_is_one_when_even():
    probabilities = np.full((8, 4), 0.25, np.float32)
    expert = np.arange(16).reshape(8, 2) % 4
    np.testing.assert_allclose(losses.balance_loss(probabilities, expert), 1.0)


@pytest.mark.parametrize(
    ("top_k", "used"), [(1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (2, 4), (4, 4)]
)
def test_contrastive_loss(top_k, used):
    x = RNG.normal(size=(30, 8)).astype(np.float32)
    prototypes = RNG.normal(size=(4, 8)).astype(np.float32)
    expert = np.stack([RNG.permutation(used)[:top_k] for _ in range(30)])
    actual = losses.routing_contrastive_loss(x, prototypes, expert, 0.07)
    expected = numpy_contrastive(x, prototypes, expert, 0.07)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_contrastive_loss_ignores_the_unconditional_expert():
    x = RNG.normal(size=(30, 8)).astype(np.float32)
    prototypes = RNG.normal(size=(4, 8)).astype(np.float32)
    expert = RNG.integers(0, 4, size=(30, 1))
    expert[:10] = 4
    actual = losses.routing_contrastive_loss(x, prototypes, expert, 0.07)
    expected = numpy_contrastive(x[10:], prototypes, expert[10:], 0.07)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


@pytest.mark.parametrize("experts", [[0], [4]])
def test_contrastive_loss_is_zero_with_fewer_than_two_valid_experts(experts):
    x = jnp.asarray(RNG.normal(size=(6, 8)), jnp.float32)
    prototypes = jnp.asarray(RNG.normal(size=(4, 8)), jnp.float32)
    expert = jnp.full((6, 1), experts[0])

    def loss(x, prototypes):
        return losses.routing_contrastive_loss(x, prototypes, expert, 0.07)

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(x, prototypes)
    assert value == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


def test_image_contrastive_loss():
    """The loss of all tokens, image by image: each expert's tokens there are its own."""
    x = RNG.normal(size=(3, 10, 8)).astype(np.float32)
    prototypes = RNG.normal(size=(4, 8)).astype(np.float32)
    place = np.stack([[RNG.permutation(10)[:5] for _ in range(4)] for _ in range(3)])

    def loss(conditional):
        return losses.image_contrastive_loss(x, prototypes, place, jnp.array(conditional), 0.07)

    expected = []
    for n in range(3):
        means = np.stack([x[n, place[n, e]].mean(axis=0) for e in range(4)])
        expected.append(numpy_contrastive(means, prototypes, np.arange(4)[:, None], 0.07))
    np.testing.assert_allclose(loss([True] * 3), np.mean(expected), rtol=1e-4)
    np.testing.assert_allclose(
        loss([True, False, True]), (expected[0] + expected[2]) / 2, rtol=1e-4
    )
    assert loss([False] * 3) == 0


def test_contrastive_gradient_by_finite_differences():
    x = jnp.asarray(RNG.normal(size=(12, 6)), jnp.float32)
    prototypes = jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32)
    expert = jnp.asarray(RNG.integers(0, 3, size=(12, 1)))  # expert 3 is empty
    check_grads(
        lambda x, p: losses.routing_contrastive_loss(x, p, expert, 0.5),
        (x, prototypes),
        order=1,
        modes=["rev"],
        rtol=1e-2,
    )


def test_cosine_similarity_of_a_zero_vector_has_a_finite_gradient():
    gradient = jax.grad(lambda a: losses.cosine_similarity(a, jnp.ones((1, 3))).sum())(
        jnp.zeros((2, 3))
    )
    assert np.isfinite(gradient).all()
