"""Model FLOP utilisation of whole train steps on an accelerator, and what attention compiles to.

Batches are halved until one fits. Utilisation is counted model FLOPs, recomputation excluded, over
the data sheet's peak.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp

from benchmarks.plan import compile_step
from benchmarks.timing import fastest, machine
from dit_moe.config import Config
from dit_moe.config.presets import preset
from dit_moe.devices.accelerators import peak_flops
from dit_moe.devices.mesh import build_mesh
from dit_moe.plan.flops import image_flops
from dit_moe.runs.state import init_state

FUSED = ("flash", "fmha", "cudnn$fmha", "splash", "mha")
"""Names of fused attention in a compiled program."""


def configure(name: str, batch_size: int) -> Config:
    config = preset(name)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dtype="bfloat16"),
        train=dataclasses.replace(config.train, batch_size=batch_size),
    )


def measure(config: Config, repeats: int) -> tuple[float, bool]:
    """Seconds of a step, and whether attention is fused in the compiled program."""
    step = compile_step(config)
    text = step.as_text() or ""
    n, model, mesh = config.train.batch_size, config.model, build_mesh(config.mesh)
    with jax.set_mesh(mesh):
        state = init_state(config.model, config.train, mesh, config.seed)
    x = jax.random.normal(jax.random.key(0), (n, model.image_size, model.image_size, 4))
    y = jnp.arange(n, dtype=jnp.int32) % model.num_classes

    def run() -> None:
        nonlocal state
        state, metrics = step(state, x, y)
        jax.block_until_ready(metrics)

    return fastest({"step": run}, repeats)["step"], any(name in text.lower() for name in FUSED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["DiT-XL/2"], metavar="PRESET")
    parser.add_argument("--batch_size", type=int, default=256, help="tried first (default: 256)")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    peak = peak_flops(jax.devices()[0].device_kind, "bfloat16")
    print(f"bfloat16; {machine()}")
    print("| model | batch | images/s | utilisation | fused attention |\n|---|---|---|---|---|")
    for name in arguments.models:
        batch_size = arguments.batch_size
        while batch_size:
            config = configure(name, batch_size)
            try:
                seconds, fused = measure(config, arguments.repeats)
                break
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                batch_size //= 2
        else:
            print(f"| {name} | does not fit | | | |")
            continue
        rate = batch_size / seconds
        used = f"{rate * image_flops(config.model).training / peak:.1%}" if peak else "unknown"
        print(f"| {name} | {batch_size} | {rate:.1f} | {used} | {'yes' if fused else 'no'} |")


if __name__ == "__main__":
    main()
