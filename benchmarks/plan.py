"""Memory of a compiled train step: its state, and temporaries over what `dit_moe.plan` counts.

Nothing is run. With `--topology` it is compiled for a TPU that is not there, by libtpu (install
`jax[tpu]`); without, for CPU devices. What depends on the attention of a GPU is not counted.
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from dit_moe.config import Config
from dit_moe.config.presets import preset
from dit_moe.devices.mesh import batch_sharding, build_mesh, in_words
from dit_moe.plan.memory import abstract_mesh, device_bytes
from dit_moe.runs.state import abstract_state
from dit_moe.training.step import build_step

SETTINGS = ("none", "dots", "full")
MADE = ("gradients", "activations", "working set")


def compile_step(config: Config, devices: Sequence | None = None) -> jax.stages.Compiled:
    """The train step of the config on its mesh, compiled from shapes alone."""
    model, mesh = config.model, build_mesh(config.mesh, devices)
    n, split = config.train.batch_size, batch_sharding(mesh)
    shape = (n, *model.image_shape)
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split)
    y = jax.ShapeDtypeStruct((n,), jnp.int32, sharding=split)
    state = abstract_state(config.model, config.train, mesh)
    step = jax.jit(
        build_step(config.model, config.objective, config.train, config.seed), donate_argnums=0
    )
    # The devices may not be there: neither their mesh nor their platform is that of this process.
    platform = mesh.devices.flat[0].platform
    with (
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
        mock.patch.object(jax, "default_backend", return_value=platform),
    ):
        return step.lower(state, x, y).compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", nargs="+", default=["DiT-S/2", "DiT-MoE-S/2-8E2A"])
    parser.add_argument("--remat", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--batch_size", type=int, default=8, help="images of each device")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--expert", type=int, default=1)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--averages_on_host", action="store_true")
    parser.add_argument("--moments_on_host", action="store_true")
    parser.add_argument("--topology", help="of a TPU, such as v5e:2x2, with as many chips")
    arguments = parser.parse_args()
    sizes = {axis: getattr(arguments, axis) for axis in ("fsdp", "expert", "tensor")}
    count = math.prod(sizes.values())
    jax.config.update("jax_num_cpu_devices", count)
    devices = None
    if arguments.topology:
        devices = topologies.get_topology_desc(arguments.topology, platform="tpu").devices

    place = arguments.topology or "CPU"
    print(
        f"{place}, {in_words(sizes)}, {arguments.dtype}, "
        f"{arguments.batch_size} images each; GB of a device:"
    )
    print("| model | remat | state | on its host | temporaries | over the plan |")
    print("|---|---|---|---|---|---|")
    for name in arguments.preset:
        config = preset(name)
        train = dataclasses.replace(
            config.train,
            batch_size=arguments.batch_size * count,
            averages_on_host=arguments.averages_on_host,
            moments_on_host=arguments.moments_on_host,
        )
        mesh = dataclasses.replace(config.mesh, data=1, **sizes)
        for remat in arguments.remat:
            model = dataclasses.replace(config.model, remat=remat, dtype=arguments.dtype)
            config = dataclasses.replace(config, model=model, train=train, mesh=mesh)
            parts = device_bytes(
                config.model, config.train, abstract_mesh(sizes), fused_attention=False
            )
            memory = compile_step(config, devices).memory_analysis()
            assert memory is not None
            planned = memory.temp_size_in_bytes
            measured = (memory.argument_size_in_bytes, memory.host_argument_size_in_bytes, planned)
            cells = [f"{size / 1e9:.2f}" for size in measured]
            ratio = planned / sum(parts[part] for part in MADE)
            print(f"| {name} | {remat} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
