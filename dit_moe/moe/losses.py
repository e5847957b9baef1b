"""Auxiliary routing losses, over all tokens of the batch."""

import jax
import jax.numpy as jnp


def balance_loss(probabilities_TxE: jax.Array, expert_TxK: jax.Array) -> jax.Array:
    """Expert-level balance loss: sum_i f_i P_i (DiT-MoE, section 3.2).

    f_i is E times the share of the T K assignments that went to expert i, P_i its mean router
    probability. 1 when the load is even.

    Args:
      probabilities_TxE: [T, E] float32 router probabilities.
      expert_TxK: [T, K] int32 chosen experts.

    Returns:
      float32 scalar, not scaled by the coefficient. The gradient flows through P_i.
    """
    num_experts = probabilities_TxE.shape[-1]
    f_E = num_experts * assignment_counts(expert_TxK, num_experts) / expert_TxK.size
    return jnp.sum(f_E * probabilities_TxE.mean(axis=0))


def null_balance_loss(
    probabilities_TxE: jax.Array, expert_TxK: jax.Array, num_true: int
) -> jax.Array:
    """Balance loss that leaves open which null experts share their load: E sum_i f_i P_i (AdaMoE,
    section 3.2).

    f_i is the share of the tokens that choose expert i, but the mean of these shares over all null
    experts for each of them; P_i its mean router probability. K when the load is even.

    Args:
      probabilities_TxE: [T, E] float32 router probabilities.
      expert_TxK: [T, K] int32 chosen experts, those of a token different.
      num_true: how many experts come before the null ones.

    Returns:
      float32 scalar, not scaled by the coefficient. The gradient flows through P_i.
    """
    (num_tokens, num_experts), nulls = probabilities_TxE.shape, slice(num_true, None)
    f_E = assignment_counts(expert_TxK, num_experts) / num_tokens
    if num_true < num_experts:
        f_E = f_E.at[nulls].set(f_E[nulls].mean())
    return num_experts * jnp.sum(f_E * probabilities_TxE.mean(axis=0))


def uneven_balance_loss(
    probabilities_TxE: jax.Array, expert_TxK: jax.Array, eta_E: jax.Array
) -> jax.Array:
    """Balance loss in which experts weigh as much as they should be spared: sum_i eta_i f_i P_i
    (MoE++, section 3.4).

    f_i is the share of the tokens that choose expert i, P_i its mean router probability. There is
    no factor for the number of experts. K over the sum of 1 / eta where the load is in proportion
    to 1 / eta, from where no change of probabilities that all tokens share makes it less.

    Args:
      probabilities_TxE: [T, E] float32 router probabilities.
      expert_TxK: [T, K] int32 chosen experts, those of a token different.
      eta_E: [E] float32.

    Returns:
      float32 scalar, not scaled by the coefficient. The gradient flows through P_i.
    """
    f_E = assignment_counts(expert_TxK, len(eta_E)) / len(expert_TxK)
    return jnp.sum(eta_E * f_E * probabilities_TxE.mean(axis=0))


def router_similarity_loss(probabilities_TxE: jax.Array, chosen_TxE: jax.Array) -> jax.Array:
    """Lets experts have unlike tokens: (1 / T) sum_ij W_ij P'_ij (Expert Race, Yuan et al. 2025).

    P' = P^T P of the router's probabilities and M' = M^T M of who computes what. W_ij is M'_ij over
    its mean: over the diagonal where i = j, over all else where not, and there 0 where no token has
    two experts. 1 when all probabilities are even.

    Args:
      probabilities_TxE: [T, E] float32.
      chosen_TxE: [T, E], 1 where the expert computes the token and 0 elsewhere.

    Returns:
      float32 scalar, not scaled by the coefficient. The gradient flows through P.
    """
    num_tokens, num_experts = probabilities_TxE.shape
    p_ExE, m_ExE = (
        jnp.matmul(a.T, a, precision=jax.lax.Precision.HIGHEST)
        for a in (probabilities_TxE, chosen_TxE.astype(jnp.float32))
    )
    same_ExE = jnp.eye(num_experts, dtype=bool)
    pairs = num_experts * (num_experts - 1)
    of_same = num_experts / jnp.maximum(m_ExE.sum(where=same_ExE), 1)
    of_pairs = pairs / jnp.maximum(m_ExE.sum(where=~same_ExE), 1)
    w_ExE = m_ExE * jnp.where(same_ExE, of_same, of_pairs)
    return jnp.sum(jax.lax.stop_gradient(w_ExE) * p_ExE) / num_tokens


def z_loss(logits_TxE: jax.Array) -> jax.Array:
    """Router z-loss: the mean of log(sum_i exp(logit_i))^2 over tokens (ST-MoE, eq. 5).

    Args:
      logits_TxE: [T, E] float32.

    Returns:
      float32 scalar, not scaled by the coefficient.
    """
    return jnp.mean(jnp.square(jax.nn.logsumexp(logits_TxE, axis=-1)))


def routing_contrastive_loss(
    x_TxD: jax.Array, prototypes_ExD: jax.Array, expert_TxK: jax.Array, temperature: float
) -> jax.Array:
    """Pulls each prototype to the mean of its tokens, away from the other means (ProMoE, eq. 7).

    With m_j the mean token of expert j, expert i's term is the cross-entropy of
    softmax_j(cos(p_i, m_j) / temperature) at j = i, averaged over the experts with any token.

    Args:
      x_TxD: [T, D] float32 tokens.
      prototypes_ExD: [E, D] float32.
      expert_TxK: [T, K] int32; indices from E on (the unconditional expert) are ignored.
      temperature: divides the cosines.

    Returns:
      float32 scalar, not scaled by the coefficient; 0 when fewer than two experts have tokens.
    """
    num_experts = prototypes_ExD.shape[0]
    # A token's K experts differ, so the sum over K is a 0/1 membership.
    member_TxE = jax.nn.one_hot(expert_TxK, num_experts).sum(axis=1)
    count_E = member_TxE.sum(axis=0)
    valid_E = count_E > 0
    sum_ExD = jnp.matmul(member_TxE.T, x_TxD, precision=jax.lax.Precision.HIGHEST)
    mean_ExD = sum_ExD / jnp.maximum(count_E, 1)[:, None]
    logits_ExE = cosine_similarity(prototypes_ExD, mean_ExD) / temperature
    # Finite, so that a batch without any routed token still has a gradient (of zero).
    logits_ExE = jnp.where(valid_E[None, :], logits_ExE, -1e30)
    terms_E = jax.nn.logsumexp(logits_ExE, axis=-1) - jnp.diagonal(logits_ExE)
    num_valid = valid_E.sum()
    loss = jnp.where(valid_E, terms_E, 0.0).sum() / jnp.maximum(num_valid, 1)
    return jnp.where(num_valid >= 2, loss, 0.0)


def image_contrastive_loss(
    x_NxSxD: jax.Array,
    prototypes_ExD: jax.Array,
    place_NxExC: jax.Array,
    conditional_N: jax.Array,
    temperature: float,
) -> jax.Array:
    """`routing_contrastive_loss` of each image by itself, where experts choose tokens (ProMoE).

    With m_nj the mean of the tokens that expert j chose in image n, expert i's term is the
    cross-entropy of softmax_j(cos(p_i, m_nj) / temperature) at j = i, averaged over experts and
    conditional images, as in ProMoE's public code.

    Args:
      x_NxSxD: [N, S, D] float32 tokens.
      prototypes_ExD: [E, D] float32.
      place_NxExC: [N, E, C] int32 places in the image of the tokens that each expert chose.
      conditional_N: [N] bool: images that count.
      temperature: divides the cosines.

    Returns:
      float32 scalar, not scaled by the coefficient; 0 without conditional images or with a single
      expert.
    """
    (n, s, d), e = x_NxSxD.shape, len(prototypes_ExD)
    member_NxExS = jnp.put_along_axis(
        jnp.zeros((n, e, s)), place_NxExC, 1.0, axis=-1, inplace=False
    )
    # Sums will do: cosines do not depend on lengths.
    sum_NxExD = jnp.matmul(member_NxExS, x_NxSxD, precision=jax.lax.Precision.HIGHEST)
    similarity_ExNxE = cosine_similarity(prototypes_ExD, sum_NxExD.reshape(-1, d)).reshape(e, n, e)
    log_p_ExNxE = jax.nn.log_softmax(similarity_ExNxE / temperature)
    loss_N = -jnp.einsum("ene->n", log_p_ExNxE) / e
    count = conditional_N.sum()
    return jnp.where(conditional_N, loss_N, 0.0).sum() / jnp.maximum(count, 1)


def assignment_counts(expert: jax.Array, num_experts: int) -> jax.Array:
    """How many assignments each of experts 0 to num_experts - 1 received, float32 [E].

    Larger indices (the unconditional expert) are not counted. `expert` is int32 of any shape.
    """
    return (
        (expert[..., None] == jnp.arange(num_experts))
        .reshape(-1, num_experts)
        .sum(axis=0, dtype=jnp.float32)
    )


def cosine_similarity(a_AxD: jax.Array, b_BxD: jax.Array) -> jax.Array:
    """[A, B] cosines between rows, in float32 at full matmul precision."""
    return jnp.matmul(_normalize(a_AxD), _normalize(b_BxD).T, precision=jax.lax.Precision.HIGHEST)


def mean_similarity(a_AxD: jax.Array) -> jax.Array:
    """Mean cosine between different rows, float32 scalar; 0 for a single one."""
    a = len(a_AxD)
    similarity_AxA = cosine_similarity(a_AxD, a_AxD)
    return (similarity_AxA.sum() - jnp.trace(similarity_AxA)) / max(a * (a - 1), 1)


def _normalize(x_TxD: jax.Array) -> jax.Array:
    # The floor sits inside the root so that a zero vector has a finite gradient.
    square = jnp.sum(jnp.square(x_TxD), axis=-1, keepdims=True)
    return x_TxD * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
