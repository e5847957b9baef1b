"""The page: what it is made of, and its template."""

import dataclasses
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dit_moe.analysis.analyse import analyse, write
from dit_moe.analysis.record import FILE, Analysis
from dit_moe.analysis.text import TITLES
from dit_moe.config import Config, ConfigError
from dit_moe.config.files import load_json, to_json
from dit_moe.config.rules import listing
from dit_moe.config.verbs import spoken
from dit_moe.data.classes import model_classes
from dit_moe.report.chart import Chart, Line, draw, drawable
from dit_moe.report.compressed import section
from dit_moe.report.history import told_history
from dit_moe.report.metrics import Metrics, group, read_metrics
from dit_moe.report.pictures import data_uri
from dit_moe.report.results import find_results
from dit_moe.report.template import template
from dit_moe.runs.additions import holds_additions
from dit_moe.runs.checkpoints import Checkpoints
from dit_moe.runs.judged import best, read_judgements
from dit_moe.runs.open_folder import is_published
from dit_moe.storage.files import new_folder
from dit_moe.storage.records import read_record

MAX_GRIDS = 6
"""How many sample grids are shown, at even distance where a run has more."""


def render(workdir: Path, analysis: Path | None, results: Sequence[Path]) -> str:
    """The page about a run.

    Args:
      workdir: the run folder.
      analysis: what `dit_moe.analysis` wrote; None: made if the model has experts, into
        `workdir`/analysis.
      results: what eval wrote, beside that in the run folder.

    Raises:
      ConfigError: something given cannot be used; the message is one sentence.
    """
    if not workdir.is_dir():
        raise ConfigError(f"workdir is {str(workdir)!r}, which is not a folder; allowed: a run")
    config = load_json(workdir / "config.json")
    metrics = read_metrics(workdir / "metrics.csv")
    history, tables = told_history(workdir), find_results(workdir, results)
    folder = analysis
    if folder is None and config.model.mixtures:
        folder = _analysed(workdir)
    found = None if folder is None else _read_analysis(folder)
    charts, constant = _charts(metrics) if metrics else ([], [])
    return template("dit_moe.report").render(
        config=config,
        facts=_facts(config, workdir, metrics, found),
        charts=[c for c in charts if not c[0].startswith("moe/")],
        routing=[c for c in charts if c[0].startswith("moe/") and "load/" not in c[0]],
        load=[c for c in charts if "load/" in c[0]],
        constant=constant,
        metrics=_metrics_table(metrics) if metrics else [],
        rows=len(metrics.steps) if metrics else 0,
        grids=_grids(workdir / "samples"),
        history=history,
        compressed=section(workdir),
        analysis=found,
        titles=TITLES,
        pictures=_pictures(folder, found) if folder and found else [],
        results=tables,
        config_json=to_json(config),
        commands=_commands(workdir, found, analysis, results),
        repeat=_REPEAT.format(config=str((workdir / "config.json").resolve())),
    )


_REPEAT = """\
from pathlib import Path

from dit_moe.config.files import load_json


def get_config():
    return load_json(Path({config!r}))
"""


def _analysed(workdir: Path) -> Path:
    """The analysis of the newest checkpoint, made if it is not there yet."""
    step = 0
    if not (is_published(workdir) or holds_additions(workdir)):
        with Checkpoints(workdir) as checkpoints:
            step = checkpoints.latest_step()
        if step is None:
            raise ConfigError(f"workdir {str(workdir)!r} has no checkpoint yet; train it first")
    folder = workdir / "analysis" / f"step_{step:08d}"
    if not (folder / FILE).is_file():
        with new_folder(folder) as temporary:
            write(analyse(workdir, batch_size=64), temporary)
    return folder


def _read_analysis(folder: Path) -> Analysis:
    if not (folder / FILE).is_file():
        raise ConfigError(
            f"analysis is {str(folder)!r}, which has no {FILE}; allowed: the --output of "
            "dit_moe.analysis"
        )
    return read_record(folder / FILE, Analysis)


def _facts(
    config: Config, workdir: Path, metrics: Metrics | None, analysis: Analysis | None
) -> list[tuple[str, str]]:
    """What to know at a glance."""
    model = config.model
    mixtures = dict.fromkeys(
        f"{moe.num_experts} routed, {moe.top_k} of a token, router {moe.router.name}"
        for moe in model.mixtures
    )
    mixture = "; then ".join(mixtures) or "none: a dense model"
    facts = [
        ("Network", f"{model.depth} blocks of width {model.width}, {model.heads} heads"),
        (
            "Input",
            f"{'x'.join(map(str, model.image_shape))}, patches of "
            f"{model.patch_size}, {model.num_classes} classes",
        ),
        ("Experts", mixture),
        ("Objective", config.objective.name),
        ("Data", ", ".join(config.data.path) or config.data.source),
    ]
    if names := model_classes(config.data, model, workdir).names:
        facts.append(("Classes", listing(names)))
    if metrics:
        facts.append(("Last row of metrics.csv", f"step {int(metrics.steps[-1]):,}"))
    judgements = read_judgements(workdir)
    if found := best(judgements, [known.step for known in judgements]):
        name, value = found.first
        facts.append(("Best that was judged", f"step {found.step:,}: {name} is {value:.5g}"))
    if analysis:
        facts.append(("Checkpoint analysed", f"step {analysis.step:,}"))
    return facts


def _charts(metrics: Metrics) -> tuple[list[tuple[str, Chart]], list[tuple[str, str]]]:
    """Title and drawing of all that changes, and name and value of what does not."""
    charts, constant = [], []
    curves_by_title = group([name for name in metrics.cells if name != "step"])
    # The loss first, and its parts.
    for curves in sorted(curves_by_title, key=lambda c: (c.title != "loss", c.title[:4] != "loss")):
        lines = []
        for label, name in curves.names.items():
            steps, values = metrics.curve(name)
            if any(map(drawable, values)):
                lines.append(Line(label, steps, values))
        cells = {cell for name in curves.names.values() for cell in metrics.cells[name] if cell}
        if len(cells) > 1 and lines:
            charts.append((curves.title, draw(curves.title, lines, linear="rate" in curves.title)))
        else:
            constant.append((curves.title, " or ".join(sorted(cells)) or "empty"))
    return charts, constant


def _metrics_table(metrics: Metrics) -> list[tuple[str, str, str]]:
    """Name, first and last cell of every column, as they are in the file."""
    return [(name, cells[0], cells[-1]) for name, cells in metrics.cells.items()]


def _grids(folder: Path) -> list[tuple[str, str]]:
    """Captions and data URIs of sample grids, in the order of training."""
    files = sorted(folder.glob("step_*.png"))
    places = np.unique(np.linspace(0, len(files) - 1, min(len(files), MAX_GRIDS)).astype(int))
    return [(_step(files[i].stem), data_uri(files[i])) for i in places]


def _step(stem: str) -> str:
    match = re.fullmatch(r"step_(\d+)", stem)
    return f"step {int(match[1]):,}" if match else stem


def _pictures(folder: Path, analysis: Analysis) -> list[tuple[str, str]]:
    return [
        (caption, data_uri(folder / Path(file).name)) for file, caption in analysis.pictures.items()
    ]


def _commands(
    workdir: Path, analysis: Analysis | None, folder: Path | None, results: Sequence[Path]
) -> list[str]:
    """The lines that repeat the parts of this page, of which `folder` and `results` were given."""
    run = str(workdir)
    lines: list[list[Any]] = [
        ["train.py", "--config", "repeat.py", "--workdir", f"{run}-again"],
        ["sample.py", "--workdir", run, "--output", "out/"],
    ]
    if analysis is not None:
        s = analysis.settings
        line = ["-m", "dit_moe.analysis", "--workdir", run, "--output", "out/experts"]
        line += ["--inputs", s.inputs[0] if len(s.inputs) == 1 else "both"]
        line += ["--data", ",".join(s.data)] if s.data else []
        line += ["--classes", ",".join(map(str, s.classes))]
        line += ["--guidance_scale", s.guidance.scale]
        for name, value in dataclasses.asdict(s).items():
            if name not in ("inputs", "data", "classes", "guidance"):
                line += [f"--{name}", value]
        lines.append(line)
    line = ["-m", "dit_moe.report", "--workdir", run]
    line += ["--analysis", folder] if folder else []
    line += ["--results", *results] if results else []
    lines.append(line)
    return [spoken(shlex.join(["python", *map(str, line)])) for line in lines]
