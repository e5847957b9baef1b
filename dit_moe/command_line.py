"""What the commands have in common."""

import argparse
from typing import Any


def command_parser(prog: str, description: str | None, epilog: str) -> argparse.ArgumentParser:
    """A parser whose help keeps the lines of its texts, and which takes no shortened flags.

    `--config.FIELD=VALUE` would be taken for a shortened flag otherwise.
    """
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def numbers(name: str, text: str) -> list[int]:
    """The whole numbers of a flag's value, with commas between; none of an empty one.

    Raises:
      ConfigError: it holds something else.
    """
    from dit_moe.config import ConfigError  # not before the arguments are parsed

    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(
            f"{name} is {text!r}; allowed: numbers with commas, such as 0,1,2"
        ) from None


SOLVER_FLAGS = ("solver", "steps", "time_grid", "eta", "tolerance", "shift")


def add_solver_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `SOLVER_FLAGS`."""
    from dit_moe.config import SOLVERS, TIME_GRIDS

    add = parser.add_argument_group(
        "solver (docs/sampling.md); what is not given is the run's own"
    ).add_argument
    add("--solver", help=f"{', '.join(SOLVERS)}; ancestral for DDPM alone")
    add("--steps", type=int, help="how many; for dopri5 the most that an image may try")
    add("--time_grid", metavar="GRID", help=f"where steps lie: {', '.join(TIME_GRIDS)}")
    add("--eta", type=float, help="with ddim: noise, 0 to 1 (default: 0, none)")
    add("--tolerance", type=float, help="with dopri5: error of a step (default: 0.001)")
    add("--shift", type=float, help="with --time_grid shifted: steps to noise (default: 3)")


def solver_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `SOLVER_FLAGS` ask of a `RunSampler`."""
    return {name: getattr(arguments, name) for name in SOLVER_FLAGS}


GUIDANCE_FLAGS = (
    "guidance",
    "guidance_schedule",
    "guidance_interval",
    "guidance_rescale",
    "guidance_channels",
    "guide",
    "guide_parameters",
    "weak_routing",
)


def add_guidance_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `GUIDANCE_FLAGS`: all of guidance but its scale."""
    add = parser.add_argument_group("guidance (docs/sampling.md)").add_argument
    add(
        "--guidance",
        default="cfg",
        metavar="GUIDE",
        help="cfg: away from the network without a class; auto: from a worse network, --guide; "
        "self_contrast: from the network with its tokens at other experts (default: cfg)",
    )
    add(
        "--guidance_schedule",
        metavar="SCHEDULE",
        help="constant, linear or cosine, growing from noise to data (default: the run's own)",
    )
    add(
        "--guidance_interval",
        type=_interval,
        metavar="LOW,HIGH",
        help="guidance only at these flow times, 0 data and 1 noise (default: the run's own)",
    )
    add(
        "--guidance_rescale",
        type=float,
        metavar="PHI",
        help="0 to 1: takes back contrast that guidance adds (default: the run's own)",
    )
    add(
        "--guidance_channels",
        choices=("all", "first_three"),
        default="all",
        help="channels that are guided; first_three is DiT's published habit (default: all)",
    )
    add("--guide", metavar="RUN", help="with auto: run folder, exported folder or hub name")
    add(
        "--guide_parameters",
        choices=("ema", "raw"),
        default="ema",
        help="the guide's (default: ema)",
    )
    add(
        "--weak_routing",
        metavar="ROUTING",
        help="with self_contrast: least_likely or top_1 (default: least_likely)",
    )


def guidance_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `GUIDANCE_FLAGS` ask of a `RunSampler`."""
    settings = {name: getattr(arguments, name) for name in GUIDANCE_FLAGS}
    settings["guide_ema"] = settings.pop("guide_parameters") == "ema"
    return settings


def _interval(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers such as 0.1,0.8") from None
