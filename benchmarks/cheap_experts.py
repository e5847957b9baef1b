"""Times forward and gradients of a network as more of its experts cost nothing.

Every row has as many experts with weights, and as many choices of a token; null experts beside
them take more and more of these. All rows are timed in turns, and the fastest of their repeats
counts.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp

from benchmarks.timing import Timed, fastest, machine
from dit_moe.config import ModelConfig, MoEConfig, NullTopKRouterConfig
from dit_moe.models.parameters import functional, init_parameters
from dit_moe.moe.assignments import ExpertRanges
from dit_moe.moe.statistics import routing_statistics
from dit_moe.plan.flops import image_flops

COLUMNS = """\
columns
  null            null experts beside the others
  even, measured  experts with weights that compute a token: k n / (n + m), and here
  FLOPs           of the network at this load, over those of the first row
  time            the time over that of the first row
"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=COLUMNS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nulls", type=int, nargs="+", default=[0, 4, 8, 24], help="a row each")
    parser.add_argument("--experts", type=int, default=8, help="with weights (default 8)")
    parser.add_argument("--top_k", type=int, default=4, help="choices of a token (default 4)")
    parser.add_argument("--width", type=int, default=256, help="of the network (default 256)")
    parser.add_argument("--depth", type=int, default=2, help="blocks, all MoE (default 2)")
    parser.add_argument("--batch_size", type=int, default=8, help="images of 256 tokens")
    parser.add_argument("--repeats", type=int, default=5, help="of each row (default 5)")
    return parser.parse_args()


def contestant(model: ModelConfig, batch_size: int) -> tuple[Timed, float]:
    """Forward and gradients of a fresh network, and the experts with weights of a token there."""
    bind, parameters = functional(model), init_parameters(model, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (batch_size, *model.image_shape))
    t, y = jnp.linspace(0, 1, batch_size), jnp.arange(batch_size) % model.num_classes

    @jax.jit
    def run(parameters: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
        def loss(parameters: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            prediction = bind(parameters)(x, t, y, train=True)
            (routing,), ranges = prediction.routing, ExpertRanges.of(model.mixtures[0])
            computed = routing_statistics(routing, ranges)["capacity"].mean()
            return jnp.sum(prediction.value**2) + sum(prediction.losses.values()), computed

        return jax.grad(loss, has_aux=True)(parameters)

    return lambda: jax.block_until_ready(run(parameters)), float(run(parameters)[1])


def main() -> None:
    args = parse()
    plain = MoEConfig(
        router=NullTopKRouterConfig(),
        num_experts=args.experts,
        top_k=args.top_k,
        shared_hidden_ratio=0,
    )
    runs, load, flops = {}, {}, {}
    for nulls in args.nulls:
        moe = dataclasses.replace(plain, cheap_experts=("zero",) * nulls)
        heads = max(args.width // 64, 1)
        model = ModelConfig(width=args.width, depth=args.depth, heads=heads, moe=moe)
        name, planned = str(nulls), image_flops(model)
        runs[name], computed = contestant(model, args.batch_size)
        load[name] = moe.computed_experts, computed
        of_experts = planned.experts * computed / moe.computed_experts
        flops[name] = planned.total - planned.experts + of_experts
    print(
        f"{args.experts} experts, {args.top_k} choices, width {args.width}, depth {args.depth}, "
        f"{args.batch_size} images; {machine()}"
    )
    seconds = fastest(runs, args.repeats)
    first = next(iter(runs))
    print("  null |   even  measured | FLOPs   time |  seconds")
    for name, (even, computed) in load.items():
        ratios = flops[name] / flops[first], seconds[name] / seconds[first]
        cells = "  ".join(f"{ratio:5.2f}" for ratio in ratios)
        print(f"{name:>6s} |  {even:5.2f}  {computed:8.2f} | {cells} | {seconds[name]:8.3f}")


if __name__ == "__main__":
    main()
