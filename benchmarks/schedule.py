"""Fits what travel to the experts and their arithmetic take on the devices that are here.

Times one all-to-all and one layer's experts at several sizes, and prints and writes the costs that
`python -m dit_moe.plan --costs FILE` reads to tell in how many rounds tokens should travel.
"""

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.timing import fastest, machine
from dit_moe.config import EXPERTS, ConfigError, MeshConfig
from dit_moe.config.files import load_file
from dit_moe.devices.mesh import build_mesh
from dit_moe.moe.dispatch import dispatch
from dit_moe.moe.routing import Routing
from dit_moe.nn.feed_forward import ExpertWeights
from dit_moe.plan.rounds import Costs
from dit_moe.plan.schedule import fit
from dit_moe.storage.records import write_record


def exchange_seconds(sizes: list[int], repeats: int) -> tuple[list[float], list[float]]:
    """Bytes that a device sends to others, and seconds, of one all-to-all over all devices."""
    mesh = build_mesh(MeshConfig(data=1, fsdp=1, expert=-1))
    shards, spec = mesh.shape["expert"], PartitionSpec(mesh.axis_names)
    swap = functools.partial(jax.lax.all_to_all, axis_name="expert", split_axis=0, concat_axis=0)
    run = jax.jit(jax.shard_map(swap, mesh=mesh, in_specs=spec, out_specs=spec))
    timed = {}
    for size in sizes:
        rows = jnp.zeros((shards * shards, max(size // shards // 4, 1)), jnp.float32)
        rows = jax.device_put(rows, NamedSharding(mesh, spec))
        timed[str(size)] = lambda rows=rows: jax.block_until_ready(run(rows))
    seconds = fastest(timed, repeats)
    sent = [max(size // shards // 4, 1) * 4.0 * (shards - 1) for size in sizes]
    return sent, [seconds[str(size)] for size in sizes]


def expert_seconds(
    rows: list[int], width: int, hidden: int, kind: str, experts: int, dtype: str, repeats: int
) -> tuple[list[float], list[float]]:
    """Operations and seconds of one device's experts under an even load of so many rows."""
    rng, facts = np.random.default_rng(0), EXPERTS[kind]

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), dtype)

    weights = ExpertWeights(
        w_in=draw(experts, width, facts.in_matrices * hidden),
        w_out=draw(experts, hidden, width),
        b_in=None,
        b_out=None,
        activation=kind,
    )
    run, timed = jax.jit(dispatch), {}
    for number in rows:
        expert = jnp.asarray(np.arange(number) % experts, jnp.int32)
        token = jnp.arange(number, dtype=jnp.int32)
        routing = Routing(
            token, expert, jnp.ones(number), scores=jnp.zeros((number, experts)), losses={}
        )
        x = draw(number, width)
        timed[str(number)] = lambda x=x, r=routing: jax.block_until_ready(run(x, r, weights))
    seconds = fastest(timed, repeats)
    flops = [number * facts.flops(width, hidden) for number in rows]
    return flops, [seconds[str(number)] for number in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="a model with experts")
    parser.add_argument("--sizes", type=int, default=6, help="how many sizes (default 6)")
    parser.add_argument("--smallest", type=int, default=2**18, help="bytes (default 2^18)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("costs.json"))
    args, overrides = parser.parse_known_args()
    model = load_file(args.config, overrides).model
    if not model.mixtures or jax.device_count() < 2:
        raise ConfigError("needs a model with experts, and two devices or more")
    moe, shards = model.mixtures[0], jax.device_count()
    sizes = [args.smallest * 2**i for i in range(args.sizes)]
    itemsize = jnp.dtype(model.dtype).itemsize
    rows = [max(size // model.width // itemsize, 8) for size in sizes]
    hidden = int(moe.hidden_ratio * model.width)
    own = max(moe.num_experts // shards, 1)  # of a device
    exchange = fit(*exchange_seconds(sizes, args.repeats))
    arithmetic = fit(
        *expert_seconds(rows, model.width, hidden, moe.expert, own, model.dtype, args.repeats)
    )
    write_record(args.output, Costs(*exchange, *arithmetic, device=machine()))
    print(f"{machine()}\n\n| | alpha, s | beta |\n|---|---|---|")
    print(f"| all-to-all of {shards} | {exchange[0]:.3g} | {exchange[1]:.3g} s a byte |")
    print(f"| experts | {arithmetic[0]:.3g} | {arithmetic[1]:.3g} s an operation |")


if __name__ == "__main__":
    main()
