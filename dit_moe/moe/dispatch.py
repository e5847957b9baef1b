"""Dispatch of a mixture-of-experts layer: every assignment through its expert, none dropped.

One function, four back ends with one meaning:

    reference  every expert on every token, masked; what the others are tested against
    blocked    block-aligned matmuls with a backward pass of their own; for CPU
    ragged     `jax.lax.ragged_dot`; for TPU, where XLA skips what is masked
    tokamax    the same product by the kernels of tokamax; for GPU, where XLA skips nothing
"""

import importlib.util
from collections.abc import Callable
from functools import partial

import jax
from jax import lax

from dit_moe.moe.backends.blocked import grouped_ffn
from dit_moe.moe.backends.ragged import grouped, tokamax_dot
from dit_moe.moe.backends.reference import reference
from dit_moe.moe.experts.bank import ExpertBank
from dit_moe.moe.routing import Routing


def dispatch(
    x_TxD: jax.Array, routing: Routing, experts: ExpertBank, *, backend: str = "auto"
) -> jax.Array:
    """Sends each assignment's token through its expert and adds the weighted results.

        y[t] = sum over assignments a with token[a] = t of weight[a] * expert[a](x[t])

    Differentiable in `x_TxD`, `routing.weight` and, where they are `ExpertWeights`, `experts`.

    Args:
        x_TxD: [T, D] float32 or bfloat16, the tokens.
        routing: A assignments, A static. An assignment whose expert is E or more is left out (and
            costs nothing in the blocked back end). Experts must not be negative, and every token
            index must be valid, even where the weight is 0.
        experts: the bank of E experts; asked for its weights in the dtype of `x_TxD` for the
            matmuls, which accumulate in float32, as does the sum over assignments.
        backend: "reference", "blocked", "ragged", "tokamax" (needs the package), or "auto", see
            `resolve_backend`.

    Returns:
        [T, D] in the dtype of `x_TxD`.

    Raises:
        ValueError: the back end or the activation is unknown.
    """
    backend = resolve_backend(backend)
    if backend not in BACKENDS:
        allowed = ", ".join(["auto", *BACKENDS])
        raise ValueError(f"backend is {backend!r}, allowed are {allowed}")
    return BACKENDS[backend](x_TxD, routing.token, routing.expert, routing.weight, experts)


def resolve_backend(backend: str) -> str:
    """What "auto" means on this platform; other names as they are.

    "ragged" on TPU, "tokamax" on GPU where it is installed, otherwise "blocked".
    """
    if backend != "auto":
        return backend
    match jax.default_backend():
        case "tpu":
            return "ragged"
        case "gpu" if importlib.util.find_spec("tokamax"):
            return "tokamax"
    return "blocked"


Backend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, ExpertBank], jax.Array]
BACKENDS: dict[str, Backend] = {
    "reference": reference,
    "blocked": grouped_ffn,
    "ragged": partial(grouped, lax.ragged_dot),
    "tokamax": partial(grouped, tokamax_dot),
}
