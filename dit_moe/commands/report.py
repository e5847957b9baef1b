"""Writes one HTML page about a run: curves, samples, experts, results, and how to repeat it."""

import argparse
from pathlib import Path

from dit_moe.config.command_line import command_parser, end, run_command

EPILOG = """\
examples:
  python -m dit_moe.report --workdir runs/digits
  python -m dit_moe.report --workdir runs/xl --analysis out/experts --results out/fid.json \\
      --output out/xl.html

The page needs nothing beside it and no network. Results of eval that lie in the run folder are
found; others are given with --results. Without --analysis, dit_moe.analysis is run with its
defaults into WORKDIR/analysis/step_STEP, unless that is there already.
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m dit_moe.report", __doc__, EPILOG)
    add = parser.add_argument
    add("--workdir", required=True, type=Path, help="run folder")
    add("--analysis", type=Path, metavar="DIR", help="output of dit_moe.analysis")
    add(
        "--results",
        type=Path,
        nargs="+",
        default=[],
        metavar="JSON",
        help="what eval wrote, beside that in the run folder",
    )
    add("--output", type=Path, metavar="FILE", help="(default: WORKDIR/report.html)")
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Writes the page."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.config import ConfigError
    from dit_moe.report.page import render
    from dit_moe.storage.files import atomic

    output: Path = arguments.output or arguments.workdir / "report.html"
    if output.suffix not in (".html", ".htm") or output.is_dir():
        raise ConfigError(f"output is {str(output)!r}; allowed: a file ending in .html")
    html = render(arguments.workdir, arguments.analysis, arguments.results)
    with atomic(output) as temporary:
        # Names of files need not be text.
        temporary.write_text(html, encoding="utf-8", errors="backslashreplace")
    print(f"Wrote {output} ({output.stat().st_size / 1e6:.1f} MB).")


if __name__ == "__main__":
    end(main)
