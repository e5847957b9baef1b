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
