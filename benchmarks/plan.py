"""Temporary memory of a compiled train step over what `dit_moe.plan` counts. Nothing is run."""

import argparse
import dataclasses

import jax
import jax.numpy as jnp

from dit_moe.config import Config
from dit_moe.plan.memory import abstract_mesh, device_bytes
from dit_moe.presets import preset
from dit_moe.training.mesh import batch_sharding, build_mesh
from dit_moe.training.state import abstract_state
from dit_moe.training.step import build_step

SETTINGS = ("none", "dots", "full")
MADE = ("gradients", "activations", "working set")


def compile_step(config: Config) -> jax.stages.Compiled:
    """The train step of the config on its mesh, compiled from shapes alone."""
    model, mesh = config.model, build_mesh(config.mesh)
    n, split = config.train.batch_size, batch_sharding(mesh)
    shape = (n, model.image_size, model.image_size, model.channels)
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split)
    y = jax.ShapeDtypeStruct((n,), jnp.int32, sharding=split)
    with jax.set_mesh(mesh):
        state = abstract_state(config, mesh)
        step = jax.jit(build_step(config), donate_argnums=0)
        return step.lower(state, x, y).compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", nargs="+", default=["DiT-S/2", "DiT-MoE-S/2-8E2A"])
    parser.add_argument("--batch_size", type=int, default=8, help="images of each device")
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--expert", type=int, default=1)
    arguments = parser.parse_args()
    sizes = {"fsdp": arguments.fsdp, "expert": arguments.expert}
    devices = arguments.fsdp * arguments.expert
    jax.config.update("jax_num_cpu_devices", devices)

    print(f"fsdp {arguments.fsdp} x expert {arguments.expert}, {arguments.batch_size} images each:")
    for name in arguments.preset:
        config = preset(name)
        train = dataclasses.replace(config.train, batch_size=arguments.batch_size * devices)
        mesh = dataclasses.replace(config.mesh, data=1, **sizes)
        for remat in SETTINGS:
            model = dataclasses.replace(config.model, remat=remat)
            config = dataclasses.replace(config, model=model, train=train, mesh=mesh)
            parts = device_bytes(config, abstract_mesh(sizes), fused_attention=False)
            memory = compile_step(config).memory_analysis()
            assert memory is not None
            counted, planned = sum(parts[part] for part in MADE), memory.temp_size_in_bytes
            print(f"{name:20s} {remat:5s} {planned / 1e9:6.2f} GB, {planned / counted:5.2f} of it")


if __name__ == "__main__":
    main()
