"""Flags of commands that take a run: which of its parameters, and how it draws."""

import argparse
from typing import Any

from dit_moe.config.command_line import numbers

SOLVER_FLAGS = ("solver", "steps", "time_grid", "eta", "repeats", "tolerance", "shift")
"""Flags and fields of `SolverConfig` alike."""

GUIDANCE_FLAGS = {
    "guidance": "guide",
    "guidance_scale": "scale",
    "guidance_schedule": "schedule",
    "guidance_interval": "interval",
    "guidance_rescale": "rescale",
    "guidance_channels": "channels",
    "weak_routing": "weak_routing",
}
"""Each flag's field of `GuidanceConfig`."""

GUIDE_FLAGS = ("guide", "guide_parameters")
"""The network that guides, if it is one of its own."""


def add_parameters_flag(parser: argparse._ActionsContainer, default: str | None = "ema") -> None:
    """Adds `--parameters`, which of a checkpoint's parameters are taken.

    Args:
      parser: of the command, or a group of it.
      default: "ema"; None: the moving average where there is one.
    """
    told = default or "ema where there is one"
    parser.add_argument(
        "--parameters",
        choices=("ema", "raw"),
        default=default,
        help=f"the parameters' moving average, or the parameters themselves (default: {told})",
    )


def average_wanted(arguments: argparse.Namespace) -> bool | None:
    """Whether `--parameters` asks for the moving average; None: where there is one."""
    return None if arguments.parameters is None else arguments.parameters == "ema"


def add_checkpoint_flag(parser: argparse._ActionsContainer) -> None:
    """Adds `--checkpoint`, which of a run's checkpoints is read."""
    parser.add_argument(
        "--checkpoint",
        default="newest",
        metavar="newest|best|STEP",
        help="of the run; best: of those that were judged while it trained (default: newest)",
    )


def add_memory_flag(parser: argparse._ActionsContainer) -> None:
    """Adds `--memory`, in which a store of experts is drawn from."""
    parser.add_argument(
        "--memory",
        metavar="4GB",
        help="with a store of experts as --workdir (docs/large-models.md): what the process may "
        "hold; layers that do not fit are read while it draws (default: all fit)",
    )


def add_solver_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `SOLVER_FLAGS` and `--step_cache`."""
    from dit_moe.config import SOLVERS, TIME_GRIDS
    from dit_moe.config.caching import CACHES

    add = parser.add_argument_group(
        "solver (docs/sampling.md); what is not given is the run's own"
    ).add_argument
    add("--solver", help=f"{', '.join(SOLVERS)}; ancestral for DDPM alone")
    add("--steps", type=int, help="how many; for dopri5 the most that an image may try")
    add("--time_grid", metavar="GRID", help=f"where steps lie: {', '.join(TIME_GRIDS)}")
    add("--eta", type=float, help="with ddim: noise, 0 to 1 (default: 0, none)")
    add("--repeats", type=int, help="with ddim: times that each step is done (default: 1)")
    add("--tolerance", type=float, help="with dopri5: error of a step (default: 0.001)")
    add("--shift", type=float, help="with --time_grid shifted: steps to noise (default: 3)")
    add(
        "--step_cache",
        metavar="METHOD[:FIELD=VALUE,...]",
        help="leaves out what changes little from evaluation to evaluation, such as fora:every=2; "
        f"{', '.join(CACHES.names)} (docs/caching.md; default: computes everything)",
    )


def add_guidance_flags(parser: argparse.ArgumentParser, *, scales: bool = False) -> None:
    """Adds `GUIDANCE_FLAGS` and `GUIDE_FLAGS`.

    Args:
      parser: of the command.
      scales: the scale may be several numbers with commas, and is a text.
    """
    add = parser.add_argument_group(
        "guidance (docs/sampling.md); what is not given is the run's own"
    ).add_argument
    add(
        "--guidance",
        metavar="GUIDE",
        help="cfg: away from the network without a class; auto: from a worse network, --guide; "
        "self_contrast: from the network with its tokens at other experts",
    )
    if scales:
        several = "one scale or several, which gives a table and a plot; 1 is no guidance"
        add("--guidance_scale", default="", metavar="1.0,1.5", help=several)
    else:
        add("--guidance_scale", type=float, help="1 is no guidance")
    add(
        "--guidance_schedule",
        metavar="SCHEDULE",
        help="constant, linear or cosine, growing from noise to data",
    )
    add(
        "--guidance_interval",
        metavar="LOW,HIGH",
        help="guidance only at these flow times, 0 data and 1 noise",
    )
    add(
        "--guidance_rescale",
        type=float,
        metavar="PHI",
        help="0 to 1: takes back contrast that guidance adds",
    )
    add(
        "--guidance_channels",
        metavar="CHANNELS",
        help="channels that are guided: all, or first_three, DiT's published habit",
    )
    add(
        "--weak_routing",
        metavar="ROUTING",
        help="with self_contrast: least_likely, random, top_1, or rank_2 and so on",
    )
    add("--guide", metavar="RUN", help="with auto: run folder, exported folder or hub name")
    add(
        "--guide_parameters",
        choices=("ema", "raw"),
        default="ema",
        help="the guide's (default: ema)",
    )


def add_drawing_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what every command that draws takes: parameters, checkpoint, solver and guidance."""
    add_parameters_flag(parser)
    add_checkpoint_flag(parser)
    add_solver_flags(parser)
    add_guidance_flags(parser)


def drawing_settings(arguments: argparse.Namespace, **given: Any) -> dict[str, Any]:
    """What these flags ask of a `RunSampler`.

    Args:
      arguments: parsed.
      given: fields of `GuidanceConfig` that are not to be read from them.

    Raises:
      ConfigError: the interval is no two numbers.
    """
    guidance = {field: getattr(arguments, flag) for flag, field in GUIDANCE_FLAGS.items()} | given
    if guidance["interval"] is not None:
        guidance["interval"] = numbers("guidance_interval", guidance["interval"], float)
    return {
        "ema": arguments.parameters == "ema",
        "checkpoint": arguments.checkpoint,
        "integration": {name: getattr(arguments, name) for name in SOLVER_FLAGS},
        "cache": arguments.step_cache,
        "guidance": guidance,
        "guide": arguments.guide,
        "guide_ema": arguments.guide_parameters == "ema",
    }


def lone_settings(arguments: argparse.Namespace, what: str) -> dict[str, Any]:
    """The same for a command that computes everything, by one network.

    Args:
      arguments: parsed.
      what: why, for the message, such as "for pairs".

    Raises:
      ConfigError: the flags ask for a cache or a network that guides.
    """
    from dit_moe.config import require  # not before the arguments are parsed

    for flag in ("step_cache", "guide"):
        value = getattr(arguments, flag)
        require(value is None, f"{flag} is {value!r} {what}; allowed: none")
    asked = drawing_settings(arguments)
    return {name: asked[name] for name in ("ema", "checkpoint", "integration", "guidance")}
