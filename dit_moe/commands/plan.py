"""Estimates memory, FLOPs and step time of a training run before it starts."""

import argparse
from pathlib import Path

from dit_moe.config.command_line import command_parser, end, run_command

EPILOG = """\
examples:
  python -m dit_moe.plan --preset DiT-MoE-XL/2-8E2A --device h100 --devices 8
  python -m dit_moe.plan --config configs/promoe.py:XL/2@512 --device v5p --devices 64 --fsdp 16
  python -m dit_moe.plan --preset DiT-XL/2 --devices 8 --config.model.dtype=bfloat16
  python -m dit_moe.plan --preset DiT-MoE-S/2-8E2A --memory 1GB --disk auto
  python -m dit_moe.plan --preset DiT-MoE-G/2-16E2A --tiers 0.5
  python -m dit_moe.plan --table --config.model.dtype=bfloat16

Without mesh sizes, here or in the config's mesh, the plainest mesh that fits is taken: the fewest
parts of a batch (train.accumulation), then the smallest fsdp x expert, then the shortest predicted
step. With a mesh size, the axis data takes the rest.
Any field of the config can be set with --config.FIELD=VALUE, as in training.

Memory of the state is exact, of the rest a count of what is kept; times are predictions from data
sheets, not measurements. See docs/scale.md.
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m dit_moe.plan", __doc__, EPILOG)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--preset", metavar="NAME", help="a published model, such as DiT-XL/2")
    what.add_argument("--config", metavar="FILE[:ARGUMENT]", help="config file, see configs/")
    what.add_argument("--table", action="store_true", help="presets x devices, as a Markdown table")
    add("--device", help="a100-40, a100-80, h100 (default), v5e, v5p, ...")
    add("--devices", type=int, metavar="N", help="how many (default: 1)")
    add("--data", type=int, metavar="N", help="size of the mesh axis data")
    add("--fsdp", type=int, metavar="N", help="size of the mesh axis fsdp")
    add("--expert", type=int, metavar="N", help="size of the mesh axis expert")
    add("--tensor", type=int, metavar="N", help="size of the mesh axis tensor")
    add("--batch_size", type=int, metavar="N", help="images per step (default: the config's)")
    add(
        "--costs",
        type=Path,
        metavar="FILE",
        help="what travel and experts take there, as benchmarks.schedule of a checkout measures it "
        "(default: by the data sheet)",
    )
    add("--memory", metavar="4GB", help="time a pass that draws in so much memory, on this machine")
    add(
        "--disk",
        metavar="auto|GB/S",
        help="with --memory: GB/s that the disk reads (default: auto, measured in this folder)",
    )
    add(
        "--tiers",
        type=float,
        metavar="SHARE",
        help="what SE-MoE would keep on devices, hosts and disks with this share of the experts in "
        "use at a time",
    )
    arguments, overrides = parser.parse_known_args(argv)
    return run_command(lambda: run(arguments, overrides))


def run(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Prints the estimate."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.config import ConfigError
    from dit_moe.devices.mesh import AXES
    from dit_moe.plan.choose import plan, table

    if arguments.batch_size is not None:
        overrides = [*overrides, f"--config.train.batch_size={arguments.batch_size}"]
    training = ("device", "devices", *AXES, "costs")
    if arguments.table:
        _refuse(arguments, "table", *training, "memory", "disk", "tiers")
        print(table(overrides))
        return
    if arguments.tiers is not None:
        _refuse(arguments, "tiers", *training, "memory", "disk")
        print(_tiers(arguments, overrides))
        return
    if arguments.memory is not None:
        _refuse(arguments, "memory", *training)
        print(_streaming(arguments, overrides))
        return
    if arguments.disk is not None:
        raise ConfigError(f"disk is {arguments.disk!r} without memory; allowed: with --memory")
    mesh = {axis: size for axis in AXES if (size := getattr(arguments, axis)) is not None}
    found = plan(
        arguments.preset,
        arguments.config,
        overrides,
        device="h100" if arguments.device is None else arguments.device,
        num_devices=1 if arguments.devices is None else arguments.devices,
        mesh=mesh,
        costs=arguments.costs,
    )
    print(found)


def _refuse(arguments: argparse.Namespace, asked: str, *others: str) -> None:
    """Refuses flags that have no meaning beside the one that is asked for."""
    from dit_moe.config import ConfigError

    given = [name for name in others if getattr(arguments, name) is not None]
    if given:
        raise ConfigError(
            f"{given[0]} is given with --{asked}, which it says nothing of; allowed: one of the two"
        )


def _tiers(arguments: argparse.Namespace, overrides: list[str]) -> str:
    """What a scheme takes that moves experts between devices, hosts and disks."""
    from dit_moe.plan import tiers
    from dit_moe.plan.choose import chosen_config

    config = chosen_config(arguments.preset, arguments.config, overrides)
    return tiers.told(config.model, arguments.tiers)


def _streaming(arguments: argparse.Namespace, overrides: list[str]) -> str:
    """What a pass takes of a model whose experts are read."""
    from dit_moe.config import ConfigError
    from dit_moe.plan.choose import chosen_config
    from dit_moe.streaming.layout import layers_of
    from dit_moe.streaming.measuring import Disk, measure, measure_disk
    from dit_moe.streaming.opening import memory_bytes
    from dit_moe.streaming.speed import told

    memory = memory_bytes(arguments.memory)
    config = chosen_config(arguments.preset, arguments.config, overrides)
    if arguments.disk in (None, "auto"):
        disk = measure_disk(Path.cwd())
    else:
        try:
            speed = float(arguments.disk)
        except ValueError:
            speed = 0.0
        if not 1e-3 <= speed <= 1e3:
            raise ConfigError(
                f"disk is {arguments.disk!r}; allowed: auto, or GB/s from 0.001 to 1000"
            )
        disk = Disk(speed * 1e9, 0.0)
    model = config.model
    machine = measure(model, model.dtype, disk)
    sentences = told(layers_of(model, model.dtype), machine, memory)
    return f"{config.name} in {arguments.memory}: {sentences}"


if __name__ == "__main__":
    end(main)
