"""What the commands have in common."""

import argparse
import contextlib
import io
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from dit_moe.config.own_process import hold_memory, keep_no_programs, keep_programs
from dit_moe.config.quiet import quiet
from dit_moe.config.verbs import spoken

Number = TypeVar("Number", int, float)

_PATIENCE = 5.0  # seconds


def command_parser(prog: str, description: str | None, epilog: str) -> argparse.ArgumentParser:
    """A parser whose help keeps the lines of its texts, and which takes no shortened flags.

    `--config.FIELD=VALUE` would be taken for a shortened flag otherwise. Every command takes
    `--extend`: a run whose router or experts are the user's own names them, and nothing but the
    user may say which file defines them.
    """
    parser = _Parser(
        prog=spoken(prog),
        description=spoken(description or ""),
        epilog=spoken(epilog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--extend",
        action=_Extend,
        metavar="FILE.py",
        help="run this Python file of yours first, which registers routers or kinds of experts "
        "(docs/extending.md); may be given more than once",
    )
    parser.add_argument(
        "--no_compilation_cache",
        action=_NoCache,
        nargs=0,
        help="compile anew, and keep nothing in the user's cache folder (~/.cache/dit_moe)",
    )
    return parser


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        args = sys.argv[1:] if args is None else list(args)
        for text in args:
            if re.fullmatch("--[^=]+=--", text):  # of which Python 3.11 makes an empty list
                self.error(f"argument {text[:-3]} is '--'; allowed: another value")
        return super().parse_known_args(args, namespace)


class _Extend(argparse.Action):
    """Runs the file as soon as the flag is read."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> None:
        from dit_moe.config import ConfigError
        from dit_moe.config.files import run_file

        try:
            run_file(Path(values), "--extend")
        except (ConfigError, OSError) as error:
            parser.error(str(error))


class _NoCache(argparse.Action):
    """Turns the cache off as soon as the flag is read."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> None:
        keep_no_programs()


def end(main: Callable[[], int]) -> NoReturn:
    """Ends the process, which is the command's own, with the exit code of `main`, which is called.

    After a failure, what is left of the work (threads of a save that failed, other processes that
    know nothing of the failure) is waited for a few seconds only. Output that nobody can receive
    any longer, as after a terminal was closed, changes no exit code.
    """
    quiet()
    hold_memory()
    keep_programs()
    code = 1
    try:
        code = main()
    finally:
        if code in (1, 2):
            timer = threading.Timer(_PATIENCE, os._exit, (code,))
            timer.daemon = True
            timer.start()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # Python would try once more at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def say_error(text: str) -> None:
    """Prints on stderr; what cannot be printed is lost."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def run_command(
    work: Callable[[], int | None], *errors: type[Exception], resumes: bool = False
) -> int:
    """Does the work of a command once its flags are parsed; returns the command's exit code.

    It is 2 after an error that is the user's to mend, told in one sentence on stderr; 130 after
    Ctrl-C; else what the work returns, None being 0.

    Args:
      work: the work.
      errors: what the user can mend beside `ConfigError` and `OSError`.
      resumes: the same command goes on where it was stopped.
    """
    from dit_moe.config import ConfigError  # not before the arguments are parsed

    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr does: names of files may hold what the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return work() or 0
    except (ConfigError, OSError, *errors) as error:
        say_error(spoken(f"error: {error}"))
        return 2
    except KeyboardInterrupt:
        then = "Give the same command again to go on." if resumes else "Nothing is half-written."
        say_error(f"\nStopped. {then}")
        return 130


def words(text: str) -> tuple[str, ...]:
    """The parts of a flag's value, with commas between; none of an empty one."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(name: str, text: str, kind: type[Number] = int) -> list[Number]:
    """The numbers of a flag's value, with commas between; none of an empty one.

    Raises:
      ConfigError: it holds something else.
    """
    from dit_moe.config import ConfigError

    try:
        return [kind(part) for part in words(text)]
    except ValueError:
        example = "0,1,2" if kind is int else "0.1,0.8"
        raise ConfigError(
            f"{name} is {text!r}; allowed: numbers with commas, such as {example}"
        ) from None


def add_parameters_flag(parser: argparse._ActionsContainer) -> None:
    """Adds `--parameters`, which of a checkpoint's parameters are taken."""
    parser.add_argument(
        "--parameters",
        choices=("ema", "raw"),
        default="ema",
        help="the parameters' moving average, or the parameters themselves (default: ema)",
    )


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


def solver_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `SOLVER_FLAGS` and `--step_cache` ask of a `RunSampler`."""
    integration = {name: getattr(arguments, name) for name in SOLVER_FLAGS}
    return {"integration": integration, "cache": arguments.step_cache}


def guidance_settings(arguments: argparse.Namespace, **given: Any) -> dict[str, Any]:
    """What `GUIDANCE_FLAGS` and `GUIDE_FLAGS` ask of a `RunSampler`.

    Args:
      arguments: parsed.
      given: fields of `GuidanceConfig` that are not to be read from them.
    """
    guidance = {field: getattr(arguments, flag) for flag, field in GUIDANCE_FLAGS.items()} | given
    if guidance["interval"] is not None:
        guidance["interval"] = numbers("guidance_interval", guidance["interval"], float)
    return {
        "guidance": guidance,
        "guide": arguments.guide,
        "guide_ema": arguments.guide_parameters == "ema",
    }
