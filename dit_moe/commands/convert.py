"""Converts models: published checkpoints in, open formats out, dense runs to sparse ones, two
sparse ones to one."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from dit_moe.commands.endings import say_sampling
from dit_moe.config.command_line import command_parser, end, run_command
from dit_moe.config.run_flags import add_parameters_flag, average_wanted
from dit_moe.config.verbs import spoken
from dit_moe.convert import FAMILIES

if TYPE_CHECKING:
    from dit_moe.convert.networks import Network

EPILOG = """\
examples:
  published checkpoint to run folder
    python -m dit_moe.convert --family dit --checkpoint DiT-XL-2-256x256.pt --output runs/dit-xl
    python -m dit_moe.convert --family dit --checkpoint facebook/DiT-XL-2-256 --output runs/dit-xl
    python sample.py --workdir runs/dit-xl --classes 207,360 --output out/
  run folder to an open folder (safetensors), to the hub, to a peer's own state_dict
    python -m dit_moe.convert --workdir runs/xl --output exported/xl
    python -m dit_moe.convert --workdir runs/xl --output exported/xl --upload user/name
    python -m dit_moe.convert --workdir runs/xl --format dit-moe --output dit-moe-xl.pt
  dense run to sparse run
    python -m dit_moe.convert --upcycle runs/dit-s --config configs/dit_moe.py:S/2-8E2A \\
        --config.model.moe.expert=gelu --config.model.moe.shared_hidden_ratio=0 --output runs/up
  dense run to experts cut out of it, with a router before the trunk
    python -m dit_moe.convert --cut runs/digits --config configs/digits.py:pre-gated \\
        --config.model.moe.router.name=null_top_k --config.model.moe.hidden_ratio=1 \\
        --config.model.moe.shared_hidden_ratio=1 --output runs/cut
  two sparse runs to one with the experts of both
    python -m dit_moe.convert --aggregate runs/a runs/b --output runs/ab

The output must be new; a command that fails leaves nothing. No pickled code is ever executed.
docs/convert.md says more.
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m dit_moe.convert", __doc__, EPILOG)
    ways = parser.add_mutually_exclusive_group(required=True)
    ways.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="to import: .safetensors, a folder of them or of diffusers, .pt, .pth, .bin, .ckpt, "
        "or on the Hugging Face hub USER/NAME or USER/NAME:FILE",
    )
    ways.add_argument("--workdir", metavar="RUN", help="to export: a run folder")
    ways.add_argument("--upcycle", metavar="RUN", help="to make sparse: a run folder")
    ways.add_argument("--cut", metavar="RUN", help="to cut experts out of: a dense run folder")
    ways.add_argument(
        "--aggregate", nargs=2, metavar="RUN", help="to join: two sparse runs of one network"
    )
    parser.add_argument("--output", required=True, type=Path, help="what is written; must be new")
    add_parameters_flag(parser, None)
    importing = parser.add_argument_group("with --checkpoint")
    importing.add_argument("--family", choices=FAMILIES, help="whose checkpoint it is; needed")
    importing.add_argument(
        "--model_json",
        type=Path,
        metavar="FILE",
        help="the constructor's arguments, for sizes that are not published (num_heads, top_k); "
        'and "objective": ddpm or rectified_flow',
    )
    importing.add_argument(
        "--network",
        metavar="NAME",
        help="in place of --parameters: which, where a checkpoint has several, such as averages",
    )
    exporting = parser.add_argument_group("with --workdir")
    exporting.add_argument(
        "--format",
        choices=("safetensors", "lora", "diffusers", *FAMILIES),
        help="a folder of safetensors, of low-rank additions alone (lora), of diffusers, or a "
        "family's state_dict in .pt or .safetensors (default: safetensors)",
    )
    exporting.add_argument(
        "--upload", metavar="USER/NAME", help="put the folder on the Hugging Face hub, too"
    )
    sparse = parser.add_argument_group("with --upcycle and --cut")
    sparse.add_argument(
        "--config",
        metavar="FILE[:ARGUMENT]",
        help="of the sparse model; needed; fields as in training: --config.FIELD=VALUE",
    )
    upcycling = parser.add_argument_group("with --upcycle")
    upcycling.add_argument(
        "--noise",
        type=float,
        help="added to the experts, in standard deviations of their weights (default: 0)",
    )
    cutting = parser.add_argument_group("with --cut")
    cutting.add_argument(
        "--by",
        choices=("class", "time"),
        help="what experts stand for: equal parts of the classes or of the times (default: class)",
    )
    cutting.add_argument("--images", type=int, help="by which units are chosen (default: 1024)")
    cutting.add_argument("--steps", type=int, help="of the router's training (default: 300)")
    aggregating = parser.add_argument_group("with --aggregate")
    aggregating.add_argument(
        "--keep_top_k",
        action="store_const",
        const=True,
        help="a token goes to as many experts as before (default: to twice as many)",
    )
    arguments, overrides = parser.parse_known_args(argv)
    _refuse_strangers(parser, arguments, overrides)
    return run_command(lambda: run(arguments, overrides))


def _refuse_strangers(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, overrides: list[str]
) -> None:
    """Ends the command if a flag does not belong to the chosen way, or one is missing."""
    if overrides and arguments.upcycle is None and arguments.cut is None:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    belongs = {
        "family": ("checkpoint",),
        "model_json": ("checkpoint",),
        "network": ("checkpoint",),
        "format": ("workdir",),
        "upload": ("workdir",),
        "config": ("upcycle", "cut"),
        "noise": ("upcycle",),
        "by": ("cut",),
        "images": ("cut",),
        "steps": ("cut",),
        "keep_top_k": ("aggregate",),
    }
    for flag, ways in belongs.items():
        given = getattr(arguments, flag) is not None
        chosen = next((way for way in ways if getattr(arguments, way) is not None), None)
        if given and chosen is None:
            parser.error(f"--{flag} is given without {' or '.join(f'--{way}' for way in ways)}")
        if not given and chosen is not None and flag in ("family", "config"):
            parser.error(f"--{flag} is needed with --{chosen}")
    if arguments.network is not None and arguments.parameters is not None:
        parser.error("--network is given with --parameters; allowed: one of them")
    if arguments.upload is not None and arguments.format not in (None, "safetensors"):
        parser.error(f"--upload is given with --format {arguments.format}; allowed: safetensors")


def run(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Converts."""
    if arguments.checkpoint is not None:
        _import(arguments)
    elif arguments.workdir is not None:
        _export(arguments)
    elif arguments.upcycle is not None:
        _upcycle(arguments, overrides)
    elif arguments.cut is not None:
        _cut(arguments, overrides)
    else:
        _aggregate(arguments)


def _import(arguments: argparse.Namespace) -> None:
    # Here and below after the arguments are parsed: JAX takes seconds to import.
    from dit_moe.convert.importing import import_checkpoint

    config, network = import_checkpoint(
        arguments.family,
        arguments.checkpoint,
        arguments.output,
        model_json=arguments.model_json,
        which=arguments.parameters,
        network=arguments.network,
    )
    model = config.model
    print(
        f"{config.name}: {model.depth} blocks of width {model.width}, {model.heads} heads, "
        f"objective {config.objective.name}. Took {_taken(network)}. Wrote {arguments.output}."
    )
    say_sampling(arguments.output)


def _taken(network: "Network") -> str:
    place = f" under {network.name!r}" if network.name else ""
    match network.kind:
        case "ema":
            return f"the moving average (ema){place}"
        case "raw":
            return f"the parameters (raw){place}, not a moving average"
        case None:
            return f"its one network{place}, which may be a moving average (ema) or not (raw)"


def _export(arguments: argparse.Namespace) -> None:
    from dit_moe.convert.export import export_run, upload

    form = arguments.format or "safetensors"
    ema = export_run(arguments.workdir, arguments.output, form, ema=average_wanted(arguments))
    taken = "the moving average (ema)" if ema else "the parameters (raw)"
    print(f"Took {taken}. Wrote {arguments.output}.")
    if arguments.upload is not None:
        print(f"Uploaded to {upload(arguments.output, arguments.upload)}.")


def _upcycle(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from dit_moe.config.files import load_file
    from dit_moe.surgery.upcycle import upcycle_run

    config = load_file(arguments.config, overrides)
    upcycle_run(
        arguments.upcycle,
        config,
        arguments.output,
        noise=arguments.noise or 0.0,
        ema=average_wanted(arguments),
    )
    print(f"{config.name} from {arguments.upcycle}. Wrote {arguments.output}.")
    _say_training(arguments.output)


def _cut(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from dit_moe.config.files import load_file
    from dit_moe.surgery.cut import cut_run

    config = load_file(arguments.config, overrides)
    given = {name: getattr(arguments, name) for name in ("by", "images", "steps")}
    agreement = cut_run(
        arguments.cut,
        config,
        arguments.output,
        **{name: value for name, value in given.items() if value is not None},
        ema=average_wanted(arguments),
    )
    print(f"{config.name} from {arguments.cut}. Wrote {arguments.output}.")
    print(f"The router sends {agreement:.0%} of the tokens to the expert with most of their units.")
    _say_training(arguments.output)


def _say_training(output: Path) -> None:
    next_line = "Next: python train.py with the same --config"
    print(spoken(f"{next_line}, --init_from {shlex.quote(str(output))} and a --workdir"))


def _aggregate(arguments: argparse.Namespace) -> None:
    from dit_moe.surgery.aggregate import aggregate_runs

    first, second = arguments.aggregate
    config = aggregate_runs(
        first,
        second,
        arguments.output,
        keep_top_k=bool(arguments.keep_top_k),
        ema=average_wanted(arguments),
    )
    print(f"{config.name}. Wrote {arguments.output}.")
    say_sampling(arguments.output)


if __name__ == "__main__":
    end(main)
