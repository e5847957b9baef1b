"""Times one mixture-of-experts feed-forward against what it could cost, and prints ratios.

Every row is one number of experts under one load. All contestants of a row are timed in turns in
the same run, and the fastest of their repeats counts, so that a busy machine disturbs all alike.
"""

import argparse
import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import MATMUL_FLOPS, Timed, fastest, machine, square_matmul
from dit_moe.config import EXPERTS
from dit_moe.moe.dispatch import BACKENDS, dispatch
from dit_moe.moe.routing import Routing
from dit_moe.nn.feed_forward import ExpertWeights

COLUMNS = """\
columns
  fwd, fwd+bwd    forward alone; forward and all gradients (tokens, weights of the sum, experts)
  /dense          time over that of a dense feed-forward with the same matmul shapes (1 = free)
  of peak         matmul FLOPs per second over those of a plain matmul of this machine
  ragged/         time of jax.lax.ragged_dot over ours; "-" where its masks pass 1 GiB
  torch/          time of a loop over the experts in PyTorch over ours; "-" without torch
loads
  balanced        every expert is equally likely
  zipf            expert number i is chosen in proportion to 1 / i
  one-hot         one expert takes every assignment
"""
RAGGED_BYTES = 2**30


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=COLUMNS, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def names(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(part) for part in names(text)]

    parser.add_argument("--tokens", type=int, default=8192, help="tokens, T (default 8192)")
    parser.add_argument("--width", type=int, default=384, help="token width, D (default 384)")
    parser.add_argument("--hidden", type=int, default=1536, help="expert hidden, F (default 1536)")
    parser.add_argument("--top_k", type=int, default=2, help="experts per token (default 2)")
    parser.add_argument(
        "--experts", type=numbers, default=[8, 16, 32, 64], help="numbers of experts: 8,16,32,64"
    )
    parser.add_argument(
        "--loads", type=names, default=["balanced", "zipf", "one-hot"], help="balanced,zipf,one-hot"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--backend", choices=["auto", *BACKENDS], default="auto", help="ours")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of a row (default 5)")
    parser.add_argument(
        "--peers",
        type=names,
        default=["ragged", "torch"],
        help='others to time: "ragged,torch" (default; ragged once a row), "" for none',
    )
    args = parser.parse_args()
    if unknown := set(args.loads) - {"balanced", "zipf", "one-hot"}:
        parser.error(f"--loads: {', '.join(unknown)}; allowed are balanced, zipf, one-hot")
    if args.top_k > min(args.experts):
        parser.error(f"--top_k {args.top_k} is more than --experts {min(args.experts)}")
    return args


def choose_experts(
    load: str, tokens: int, top_k: int, num_experts: int, rng: np.random.Generator
) -> np.ndarray:
    """[T * k] int32: each token's experts, distinct unless the load is one-hot."""
    if load == "one-hot":
        return np.zeros(tokens * top_k, np.int32)
    rank = np.arange(1, num_experts + 1)
    log_p_E = -np.log(rank) if load == "zipf" else np.zeros(num_experts)
    # Gumbel noise and the k largest: k draws without replacement.
    score_TxE = log_p_E + rng.gumbel(size=(tokens, num_experts))
    return np.argsort(-score_TxE, axis=1)[:, :top_k].astype(np.int32).ravel()


def compiled(
    function: Callable[..., jax.Array], cotangent: jax.Array, args: tuple, extra: tuple = ()
) -> tuple[Timed, Timed]:
    """The forward pass of function(*args, *extra), and the gradients of all of `args`."""

    def loss(args: tuple, extra: tuple, cotangent: jax.Array) -> jax.Array:
        return jnp.sum(function(*args, *extra) * cotangent)

    forward, both = jax.jit(function), jax.jit(jax.grad(loss))
    return (
        lambda: jax.block_until_ready(forward(*args, *extra)),
        lambda: jax.block_until_ready(both(args, extra, cotangent)),
    )


def dense(x_AxD: jax.Array, w_in: jax.Array, w_out: jax.Array) -> jax.Array:
    h_AxG = x_AxD @ w_in.astype(x_AxD.dtype)
    return EXPERTS["swiglu"].activation(h_AxG) @ w_out.astype(x_AxD.dtype)


def routed(
    backend: str, x_TxD: jax.Array, weight_A: jax.Array, experts: ExpertWeights, routing: Routing
) -> jax.Array:
    routing = dataclasses.replace(routing, weight=weight_A)
    return dispatch(x_TxD, routing, experts, backend=backend)


def torch_loop(
    x_TxD: jax.Array, routing: Routing, experts: ExpertWeights, cotangent: jax.Array
) -> tuple[Timed, Timed]:
    """One pass per expert over the tokens that chose it, as PyTorch layers do it."""
    import torch

    def tensor(array: jax.Array) -> "torch.Tensor":
        return torch.from_numpy(np.array(array, copy=True))

    x, weight = tensor(x_TxD).requires_grad_(), tensor(routing.weight).requires_grad_()
    token, expert, dy = tensor(routing.token), tensor(routing.expert), tensor(cotangent)
    w_in = [tensor(w).requires_grad_() for w in experts.w_in]
    w_out = [tensor(w).requires_grad_() for w in experts.w_out]

    def run() -> "torch.Tensor":
        y = torch.zeros_like(x)
        for e in range(len(w_in)):
            (chosen,) = torch.where(expert == e)
            rows = token[chosen]
            gate, up = (x[rows] @ w_in[e]).chunk(2, dim=-1)
            out = (torch.nn.functional.silu(gate) * up) @ w_out[e]
            y = y.index_add(0, rows, out * weight[chosen, None])
        return y

    def forward() -> None:
        with torch.no_grad():
            run()

    def both() -> None:
        torch.autograd.grad((run() * dy).sum(), [x, weight, *w_in, *w_out], allow_unused=True)

    return forward, both


def main() -> None:
    args = parse()
    tokens, width, hidden, dtype = args.tokens, args.width, args.hidden, jnp.dtype(args.dtype)
    num = tokens * args.top_k
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, dtype=np.float32) / math.sqrt(shape[-2]))

    def rows(count: int) -> jax.Array:
        return normal(count, width).astype(dtype)

    x_TxD, cotangent_TxD = rows(tokens), rows(tokens)
    matmul = square_matmul(args.dtype)
    dense_args = (rows(num), normal(width, 2 * hidden), normal(hidden, width))
    dense_runs = compiled(dense, rows(num), dense_args)

    print(
        f"{tokens} tokens, width {width}, hidden {hidden}, top-{args.top_k}, {args.dtype}, swiglu; "
        f"back end {args.backend}; {machine()}"
    )
    if "torch" in args.peers and importlib.util.find_spec("torch") is None:
        print("torch is not installed: its columns stay empty")
        args.peers.remove("torch")
    print(
        "                  |       fwd        |     fwd+bwd      |  ragged/ours    |  torch/ours\n"
        "experts      load |  /dense  of peak |  /dense  of peak |    fwd  fwd+bwd |   fwd  fwd+bwd"
    )
    for num_experts in args.experts:
        experts = ExpertWeights(
            w_in=normal(num_experts, width, 2 * hidden), w_out=normal(num_experts, hidden, width)
        )
        for load in args.loads:
            chosen_A = choose_experts(load, tokens, args.top_k, num_experts, rng)
            routing = Routing(
                token=jnp.repeat(jnp.arange(tokens, dtype=jnp.int32), args.top_k),
                expert=jnp.asarray(chosen_A),
                weight=jnp.asarray(rng.random(num, dtype=np.float32)),
                scores=jnp.zeros((tokens, num_experts)),
                losses={},
            )

            def ours(
                backend: str, routing: Routing = routing, experts: ExpertWeights = experts
            ) -> tuple[Timed, Timed]:
                function = functools.partial(routed, backend)
                # The routing is an argument: XLA would sort a constant while it compiles.
                differentiated = (x_TxD, routing.weight, experts)
                return compiled(function, cotangent_TxD, differentiated, (routing,))

            runs = {"dense": dense_runs, "ours": ours(args.backend)}
            if "ragged" in args.peers and num_experts * num * hidden * 4 <= RAGGED_BYTES:
                runs["ragged"] = ours("ragged")
            if "torch" in args.peers:
                runs["torch"] = torch_loop(x_TxD, routing, experts, cotangent_TxD)
            contestants = {
                f"{name} {kind}": run
                for name, pair in runs.items()
                for kind, run in zip(("fwd", "both"), pair, strict=True)
            }
            contestants["matmul"] = matmul
            # ragged_dot takes minutes on CPU.
            repeats = {n: 1 if n.startswith("ragged") else args.repeats for n in contestants}
            seconds = fastest(contestants, repeats)

            flops = {"fwd": 2 * num * width * 3 * hidden, "both": 6 * num * width * 3 * hidden}
            peak = MATMUL_FLOPS / seconds["matmul"]
            line = f"{num_experts:7d}  {load:>8s}"
            for kind, count in flops.items():
                own = seconds[f"ours {kind}"]
                line += f" | {own / seconds[f'dense {kind}']:7.2f} {count / own / peak:8.0%}"
            for peer in ("ragged", "torch"):
                ratios = [
                    f"{seconds[f'{peer} {kind}'] / seconds[f'ours {kind}']:.2f}"
                    if f"{peer} {kind}" in seconds
                    else "-"
                    for kind in flops
                ]
                line += f" | {ratios[0]:>5s} {ratios[1]:>8s} "
            print(line, flush=True)


if __name__ == "__main__":
    main()
