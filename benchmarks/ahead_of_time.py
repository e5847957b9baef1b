"""Compiles train steps for meshes of 64 and 256 devices that are not there.

Virtual CPU devices stand in for them: the program of one device is what XLA's partitioner makes of
the real one's, and nothing is allocated. Prints what a device holds beside the total over the
number of devices, and the collectives with the bytes that a device receives. Exit code 1 if a
collective makes the full stack of a layer's experts anywhere.

    python -m benchmarks.ahead_of_time [--case DiT-MoE-XL/2-8E2A:8x1x8] [--tokens_side 8]

With `--tokens_side` images are smaller than the model's (the weights and their collectives stay as
they are), so that the compiler does not fold large constants for hours.
"""

import argparse
import collections
import dataclasses
import math
import os
import re
import subprocess
import sys

CASES = [
    "DiT-MoE-XL/2-8E2A:8x1x8",
    "DiT-MoE-XL/2-8E2A:8x4x8",
    "DiT-MoE-G/2-16E2A:1x4x16",
    "DiT-MoE-G/2-16E2A:4x4x16",
]
_COLLECTIVE = re.compile(
    r"= (\(?[a-z0-9]+\[.*?) (all-gather|all-to-all|all-reduce|reduce-scatter|"
    r"collective-permute|ragged-all-to-all)(?:-start)?\("
)
_ARRAY = re.compile(r"([a-z]+)(\d+)[a-z0-9]*\[([\d,]*)\]")


def collectives(hlo: str) -> dict[str, list[list[tuple[int, ...]]]]:
    """The shapes that each collective of a compiled program makes, by its kind."""
    found = collections.defaultdict(list)
    for line in hlo.splitlines():
        match = _COLLECTIVE.search(line)
        if match:
            arrays = _ARRAY.findall(match[1])
            shapes = [tuple(int(d) for d in dims.split(",") if d) for _, _, dims in arrays]
            found[match[2]].append(shapes)
    return found


def compile_case(name: str, mesh_text: str, side: int) -> bool:
    """Compiles and prints one case; whether no collective makes a full stack of experts."""
    import jax

    from benchmarks.plan import compile_step
    from dit_moe.config import MeshConfig, TrainConfig
    from dit_moe.config.presets import preset
    from dit_moe.devices.mesh import build_mesh, check_mesh, in_words
    from dit_moe.runs.state import abstract_state

    config = preset(name)
    mesh_config = MeshConfig(*map(int, mesh_text.split("x")))
    mesh = build_mesh(mesh_config)
    image_size = side * config.model.patch_size
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, image_size=image_size, remat="full"),
        train=TrainConfig(batch_size=mesh.size),
        mesh=mesh_config,
    )
    model = config.model
    check_mesh(mesh, model)
    compiled = compile_step(config)
    state = abstract_state(config.model, config.train, mesh)
    memory = compiled.memory_analysis()
    total = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(state))
    print(f"\n{name}, mesh {in_words(mesh.shape)} ({mesh.size} devices), {side**2} tokens")
    share = total * mesh.shape["data"] / mesh.size
    print(f"  state {memory.argument_size_in_bytes / 1e9:.3f} GB a device")
    print(f"  ratio to an even share: {memory.argument_size_in_bytes / share:.3f}")
    print(f"  temporaries {memory.temp_size_in_bytes / 1e9:.3f} GB")
    hlo = compiled.as_text()
    assert hlo is not None
    assert model.moe is not None
    full = model.moe.total_experts
    bad = []
    for kind, made in sorted(collectives(hlo).items()):
        largest = max((math.prod(s) for shapes in made for s in shapes), default=0)
        print(f"  {kind}: {len(made)} in the program, largest {largest / 1e6:.2f} M elements")
        bad += [
            s
            for shapes in made
            for s in shapes
            if len(s) >= 3 and full in s and math.prod(s) >= full * model.width**2
        ]
    print(f"  collectives that make the full stack of experts: {bad or 'none'}")
    return not bad


def main() -> int:
    """Runs every case in a process of its own, for its number of devices."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", metavar="PRESET:DATAxFSDPxEXPERT")
    parser.add_argument("--tokens_side", type=int, default=8)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cases = arguments.case or CASES
    if arguments.here:
        name, _, mesh = cases[0].rpartition(":")
        return 0 if compile_case(name, mesh, arguments.tokens_side) else 1
    code = 0
    for case in cases:
        devices = math.prod(int(size) for size in case.rpartition(":")[2].split("x"))
        flags = f"--xla_force_host_platform_device_count={devices}"
        command = [sys.executable, "-m", "benchmarks.ahead_of_time", "--here", "--case", case]
        command += ["--tokens_side", str(arguments.tokens_side)]
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        code = max(code, subprocess.run(command, env=environment, check=False).returncode)
    return code


if __name__ == "__main__":
    sys.exit(main())
