"""Times the whole train step of small published models beside the same step in plain PyTorch.

Both run the same network from the same parameters under rectified flow with AdamW and a moving
average of the parameters; before timing, their losses on one batch are compared. PyTorch's experts
run as the peers' do, in a loop, and its AdamW is the fused one. Freed memory stays with the
process, as in this package's commands, for both. Each has a process of its own, where it is timed
in turns with a plain matmul; the fastest repeat counts, and ratios are of times over that matmul's.
"""

import argparse
import dataclasses
import importlib.util
import json
import subprocess
import sys
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import (
    MATMUL_FLOPS,
    Timed,
    fastest,
    machine,
    peak_rss,
    spent,
    square_matmul,
)
from dit_moe.config import Config, ModelConfig, RectifiedFlowConfig
from dit_moe.config.files import load_file
from dit_moe.config.own_process import hold_memory
from dit_moe.config.presets import preset
from dit_moe.convert.constructors import constructor_arguments
from dit_moe.convert.peers import to_peer
from dit_moe.devices.mesh import build_mesh
from dit_moe.diffusion.integrate import build_objective
from dit_moe.models.parameters import Parameters, functional, init_parameters
from dit_moe.models.prediction import Prediction
from dit_moe.plan.flops import image_flops
from dit_moe.runs.state import start_state
from dit_moe.training.step import build_step

COLUMNS = """\
columns
  images/s        of the whole step
  of peak         counted model FLOPs per second over those of a plain matmul: of the step, and of
                  loss and gradient alone
  /first          time over that of the first model
  torch/          PyTorch's time over ours
  processor s     of one step, of all threads: ours, PyTorch's
  faults          pages that one step has to be given anew: ours, PyTorch's
  peak GiB        most resident memory of a process that makes two steps, libraries included
"""
MODELS = ("DiT-MoE-S/2-8E2A", "DiT-S/2", "DiT-MoE-S/2-16E2A", "DiT-MoE-S/2-32E2A", "ProMoE-S/2")
BASE = "DiT-MoE-S/2-8E2A"
MATMUL_REPEATS = 20
FAMILIES = {"top_k": "dit-moe", "prototype": "promoe"}


def build_config(name: str, batch_size: int, dtype: str) -> Config:
    """A preset under rectified flow, also for numbers of experts that were not published; or what a
    file makes of its argument."""
    experts = name.partition("2-")[2]
    config = load_file(name) if ".py" in name else preset(BASE if experts else name)
    # ProMoE's own network knows no other number of classes.
    model = dataclasses.replace(config.model, dtype=dtype, num_classes=1000)
    if experts:
        moe = dataclasses.replace(model.moe, num_experts=int(experts.removesuffix("E2A")))
        model = dataclasses.replace(model, moe=moe)
    return dataclasses.replace(
        config,
        model=model,
        objective=RectifiedFlowConfig(time_scale=1000),
        train=dataclasses.replace(config.train, batch_size=batch_size, gradient_clip=None),
    )


def example_batch(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """x [N, H, W, C] float32 and labels [N] int32, one of them null."""
    rng = np.random.default_rng(0)
    n, side = config.train.batch_size, config.model.image_size
    x = rng.standard_normal((n, side, side, config.model.channels), dtype=np.float32)
    y = rng.integers(0, config.model.num_classes, n, dtype=np.int32)
    y[0] = config.model.null_label
    return x, y


def random_parameters(model: ModelConfig) -> Parameters:
    """All of them random: zero layers would hide most of the network."""

    def draw(path: str, value: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(1), zlib.crc32(path.encode()))
        return value + 0.02 * jax.random.normal(key, value.shape)

    fresh = init_parameters(model, jax.random.key(0))
    return {path: draw(path, fresh.pop(path)) for path in list(fresh)}


def ours(config: Config) -> tuple[Timed, Timed]:
    """The jitted step, and loss and gradient alone."""
    x, y = map(jnp.asarray, example_batch(config))
    objective, bind = build_objective(config.objective), functional(config.model)
    key_N = jax.random.split(jax.random.key(0), len(y))
    mesh = build_mesh(config.mesh)
    with jax.set_mesh(mesh):
        step = jax.jit(
            build_step(config.model, config.objective, config.train, config.seed), donate_argnums=0
        )

        @jax.jit
        def gradient(parameters):
            return jax.value_and_grad(lambda p: objective.loss(bind(p), key_N, x, y)[0])(parameters)

        parameters = random_parameters(config.model)
        state = start_state(config.model, config.train, mesh, parameters, config.seed)

    def run_step() -> None:
        nonlocal state
        state, metrics = step(state, x, y)
        jax.block_until_ready(metrics)
        jax.block_until_ready(state)

    return run_step, lambda: jax.block_until_ready(gradient(state.parameters))


def peer(config: Config, parameters: Parameters) -> Any:
    """The network in PyTorch, a `torch_nets.Net`, with these parameters."""
    import torch

    from benchmarks.torch_nets import Net

    tensors = to_peer(config.model, {k: np.asarray(v) for k, v in parameters.items()})
    family = "dit" if config.model.moe is None else FAMILIES[config.model.moe.router.name]
    net = Net(family, constructor_arguments(family, config.model, config.objective))
    net.load_state_dict({key: torch.from_numpy(np.array(x)) for key, x in tensors.items()})
    return net


def theirs(config: Config) -> Timed:
    """The same step in PyTorch, from the same parameters, on the same draws of time and noise.

    Raises:
      AssertionError: the two networks disagree about the loss.
    """
    import torch

    parameters = random_parameters(config.model)
    net = peer(config, parameters)
    trained = [p for p in net.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in trained]
    optimizer = torch.optim.AdamW(
        trained, lr=config.train.learning_rate, weight_decay=0, fused=True
    )

    x, y = example_batch(config)
    drawn: list[np.ndarray] = []
    objective = build_objective(config.objective)
    key_N = jax.random.split(jax.random.key(0), len(y))

    def record(z_NxHxWxC: jax.Array, t_N: jax.Array, y_N: jax.Array) -> Prediction:
        drawn.extend(np.array(a) for a in (z_NxHxWxC, t_N))
        return functional(config.model)(parameters)(z_NxHxWxC, t_N, y_N)

    loss = float(objective.loss(record, key_N, jnp.asarray(x), jnp.asarray(y))[0])
    parameters.clear()  # two copies of the largest would not fit
    z, t = (torch.from_numpy(a) for a in drawn)
    z, clean = z.permute(0, 3, 1, 2), torch.from_numpy(x).permute(0, 3, 1, 2)
    share = (t / config.objective.time_scale)[:, None, None, None]
    # z = (1 - t) x + t noise, so noise - x = (z - x) / t.
    target, label = (z - clean) / share, torch.from_numpy(y).long()

    def forward() -> torch.Tensor:
        error = net(z, t, label)[:, : clean.shape[1]] - target
        auxiliary = [m.auxiliary for m in net.modules() if hasattr(m, "auxiliary")]
        return error.square().mean() + sum(auxiliary)

    with torch.no_grad():
        np.testing.assert_allclose(float(forward()), loss, rtol=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, trained, 1 - config.train.ema_decay)

    return step


def measure(config: Config, side: str, repeats: int) -> dict[str, Any]:
    """Seconds of one side's programs, in turns with a plain matmul, and what a step uses.

    The process that calls it is that side's alone: its peak of memory is taken after two steps.
    """
    if side == "torch":
        programs = {"step": theirs(config)}
    else:
        programs = dict(zip(("step", "gradient"), ours(config), strict=True))
    step = programs["step"]
    step()
    step()
    peak = peak_rss() / 2**30
    # A few times the matmul alone would not show the machine's peak.
    counts = {"matmul": MATMUL_REPEATS, **dict.fromkeys(programs, repeats)}
    seconds = fastest({"matmul": square_matmul(config.model.dtype), **programs}, counts)
    processor, faults = spent(step)
    return {"seconds": seconds, "processor": processor, "faults": faults, "peak": peak}


def apart(name: str, side: str, args: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a process of its own: two large states would not fit into memory.

    Raises:
      SystemExit: the process failed; with the last thing it said, or that it was killed.
    """
    command = [sys.executable, "-m", "benchmarks.train_step", "--models", name, "--side", side]
    command += [f"--{key}={getattr(args, key)}" for key in ("batch_size", "dtype", "repeats")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["killed, as where memory ends"]
        sys.exit(f"{name}, {side}: {said[-1]}")
    return json.loads(done.stdout)


def row(config: Config, sides: dict[str, dict[str, Any]], base: float) -> list[str]:
    """The cells of one model behind its name, from what `measure` found; base is the first's."""
    relative = {
        side: found["seconds"]["step"] / found["seconds"]["matmul"] for side, found in sides.items()
    }
    seconds = sides["ours"]["seconds"]
    flops = image_flops(config.model).training * config.train.batch_size
    shares = [
        f"{flops / MATMUL_FLOPS * seconds['matmul'] / seconds[part]:.0%}"
        for part in ("step", "gradient")
    ]
    return [
        f"{config.train.batch_size / seconds['step']:.2f}",
        ", ".join(shares),
        f"{relative['ours'] / base:.2f}",
        f"{relative['torch'] / relative['ours']:.2f}" if "torch" in sides else "-",
        ", ".join(f"{found['processor']:.2f}" for found in sides.values()),
        ", ".join(f"{found['faults']}" for found in sides.values()),
        ", ".join(f"{found['peak']:.2f}" for found in sides.values()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=COLUMNS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=list(MODELS), metavar="NAME", help="presets or FILE:ARGUMENT"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="of all models, default 8")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3, help="default 3")
    parser.add_argument("--side", choices=["ours", "torch"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        hold_memory()
        config = build_config(args.models[0], args.batch_size, args.dtype)
        print(json.dumps(measure(config, args.side, args.repeats)))
        return

    with_torch = importlib.util.find_spec("torch") is not None and args.dtype == "float32"
    print(f"Batch {args.batch_size}, {args.dtype}; {machine()}")
    print(
        "| model | images/s | of peak: step, gradient | /first | torch/ | processor s | faults "
        "| peak GiB |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    base = None
    for name in args.models:
        sides = {side: apart(name, side, args) for side in ("ours", "torch")[: 1 + with_torch]}
        seconds = sides["ours"]["seconds"]
        base = base or seconds["step"] / seconds["matmul"]
        cells = row(build_config(name, args.batch_size, args.dtype), sides, base)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
