"""Trains the runs of a grid. Any number of workers may do so together; the same command resumes."""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dit_moe.commands.eval_room import eval_module
from dit_moe.config.command_line import command_parser, end, run_command, words

if TYPE_CHECKING:
    from dit_moe.config import Config
    from dit_moe.sweep.measure import Judge
    from dit_moe.sweep.queue import Queue
    from dit_moe.sweep.record import Sweep
    from dit_moe.sweep.table import Entry

EPILOG = """\
examples:
  python -m dit_moe.sweep --grid configs/sweeps/experts.toml --output runs/experts --plan
  python -m dit_moe.sweep --grid configs/sweeps/experts.toml --output runs/experts
  python -m dit_moe.sweep --output runs/experts --report --factors total

The file names a config and axes along which its fields vary (docs/sweeps.md). All configs are
checked before the first run begins. The second line is a worker; start it as often as there are
devices to use, on every machine that sees the output folder: each takes the next run that nobody
does, and a run whose worker was killed is taken again and resumed. Once the folder knows the grid,
--grid may be left out.

The output folder receives sweep.json, queue/, runs/ (a run folder each), and from every worker that
ends results.csv and results.json. --report writes report.html, too, at any time.
Exit codes: 0 nothing is left to take, 1 runs have failed, 2 a setting cannot be used; Ctrl-C saves
a checkpoint and stops (130).
"""
_BATCH = 200


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m dit_moe.sweep", __doc__, EPILOG)
    add = parser.add_argument
    add("--grid", type=Path, metavar="FILE", help="the grid, TOML or JSON; see configs/sweeps/")
    add("--output", required=True, type=Path, metavar="DIR", help="folder of the sweep")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="print the runs; nothing is written")
    what.add_argument("--report", action="store_true", help="train nothing: table, law and page")
    what.add_argument("--retry", action="store_true", help="do failed runs again, too")
    add(
        "--factors",
        default="",
        metavar="NAME,NAME",
        help="with --report: what the law of the loss is of: active, total, tokens (default: none)",
    )
    add(
        "--loss",
        default="validation_loss",
        metavar="COLUMN",
        help="with --report: the loss of the law and the pictures (default: validation_loss)",
    )
    add(
        "--against",
        default="",
        metavar="NAME",
        help="with --report: the model that all others are compared with, seed by seed, by its "
        'place on the axes, such as "DiT (dense)" (default: none)',
    )
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments), resumes=True)


def run(arguments: argparse.Namespace) -> int:
    """Does what is asked; returns the exit code."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.config import ConfigError
    from dit_moe.sweep.differences import differences
    from dit_moe.sweep.grid import read_grid
    from dit_moe.sweep.job import check_runs
    from dit_moe.sweep.queue import Queue
    from dit_moe.sweep.record import Sweep, check_sweep, read_sweep, write_sweep
    from dit_moe.sweep.runs import expand
    from dit_moe.sweep.table import collect, plan

    folder: Path = arguments.output
    for name in ("factors", "against"):
        if getattr(arguments, name) and not arguments.report:
            raise ConfigError(
                f"{name} is {getattr(arguments, name)!r} without --report; allowed: both, or none"
            )
    if arguments.grid is not None:
        grid = read_grid(arguments.grid)
        sweep = Sweep(tuple(expand(grid)), grid.judge)
        check_sweep(folder, sweep)
    else:
        sweep = read_sweep(folder)
    queue = Queue(folder / "queue", [run.name for run in sweep.runs])
    if arguments.plan:
        print(plan(collect(sweep, queue)))
        return 0
    if arguments.report:
        entries = collect(sweep, queue)
        against = differences(entries, arguments.against) if arguments.against else ""
        _report(entries, folder, words(arguments.factors), arguments.loss, against)
        return 0
    judge = _judge(sweep)
    check_runs(sweep)
    if arguments.grid is not None:
        write_sweep(folder, sweep)
    if arguments.retry:
        queue.forget_failures()
    return _work(sweep, queue, folder, judge)


def _report(
    entries: "list[Entry]", folder: Path, factors: Sequence[str], loss: str, against: str
) -> None:
    """Writes table and page, and prints what they say."""
    from dit_moe.storage.files import atomic
    from dit_moe.sweep.job import RUNS
    from dit_moe.sweep.page import render
    from dit_moe.sweep.prediction import find_law, text
    from dit_moe.sweep.table import summary, write_table

    findings = find_law(entries, factors, loss) if factors else None
    html = render(entries, folder.absolute().name, folder / RUNS, loss, findings)
    write_table(entries, folder)
    with atomic(folder / "report.html") as temporary:
        # Names of files need not be text.
        temporary.write_text(html, encoding="utf-8", errors="backslashreplace")
    print(summary(entries))
    if against:
        print(f"\n{against}")
    if findings is not None:
        print(text(findings))
    print(f"Wrote {folder / 'results.csv'} and {folder / 'report.html'}.")


def _work(sweep: "Sweep", queue: "Queue", folder: Path, judge: "Judge | None") -> int:
    from dit_moe.config.command_line import say_error
    from dit_moe.sweep.job import Trainer
    from dit_moe.sweep.table import collect, summary, write_table
    from dit_moe.sweep.worker import work

    trainer = Trainer(sweep, folder, judge, print)
    ended = work(queue, trainer, say_error)
    entries = collect(sweep, queue)
    write_table(entries, folder)
    print(summary(entries))
    count = {state: sum(e.state == state for e in entries) for state in ("done", "failed", "open")}
    print(f"{count['done']} done, {count['failed']} failed, {count['open']} open or with others.")
    if not ended:
        assert trainer.stopped_by is not None
        print("Saved. Give the same command again to go on.")
        return 128 + trainer.stopped_by
    return 1 if count["failed"] else 0


def _judge(sweep: "Sweep") -> "Judge | None":
    """What judges samples of a run, by the classifiers of `eval.classes`."""
    from dit_moe.sweep.measure import Row

    if sweep.judge is None:
        return None
    judged, evaluate, run_samples = (
        eval_module(name) for name in ("classes.judged", "classes.evaluate", "run_samples")
    )
    open_judged = functools.cache(judged.open_judged)
    for run in sweep.runs:
        open_judged(*_pictures(run.config))

    def judge(workdir: Path, config: "Config") -> Row:
        data = open_judged(*_pictures(config))
        images, _ = run_samples.open_run(
            workdir, ema=True, batch_size=_BATCH, num_samples=sweep.judge
        )
        label_N = judged.places(images, data.labels)
        found = evaluate.evaluate(images.read(), label_N, data)["samples"]
        return {
            "frechet": found["frechet_distance"],
            "recognised": found["asked_class_accuracy"],
            "copies": found["copies_of_train"],
        }

    return judge


def _pictures(config: "Config") -> tuple[str, str | None]:
    """What a run is trained on, and what was held out of it, as `eval.classes` calls them."""
    from dit_moe.config import ConfigError

    data = config.data
    paths, heldout = list(data.path), list(data.validation_path)
    if not paths:
        return data.source, None
    if len(paths) > 1 or len(heldout) > 1:
        raise ConfigError(
            f"grid.judge is given with config.data.path {', '.join(paths)}; allowed: one data "
            "set and at most one of held-out data, or no judge"
        )
    return paths[0], heldout[0] if heldout else None


if __name__ == "__main__":
    end(main)
