"""The page about a run: complete in itself, safe, and true to the files that it shows."""

import csv
import dataclasses
import functools
import html.parser
import json
import math
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit_moe.commands.report import main
from dit_moe.config import ConfigError
from dit_moe.config.files import load_file, load_json, to_json
from dit_moe.report import page
from dit_moe.report.chart import Line, draw
from dit_moe.report.metrics import Metrics, group, read_metrics
from dit_moe.report.pictures import data_uri
from dit_moe.runs.history import write_change
from dit_moe.runs.judged import Judgement, write_judgement
from dit_moe.storage.records import write_record
from dit_moe.training.origin import Origin
from tests.analysis.fresh_run import write_fresh_run
from tests.damaged_picture import write_damaged_png
from tests.tiny import tiny

HOSTILE = '<script>alert("x")</script>'
VOID = {"meta", "img", "br", "line", "polyline"}
NAMES = [
    "step",
    "loss",
    "loss_t0",
    "loss_t3",
    "moe/busiest/layer00",
    "moe/load/layer00/expert00",
    "moe/load/layer00/expert01",
    "skipped",
    "judged/digits/fid",
    HOSTILE,
]


class Page(html.parser.HTMLParser):
    """Reads a page, and sees that every element is closed where it should be."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "xlink:href")]
        assert not any(k.startswith("on") for k, _ in attrs)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with all that a run folder may hold, and a hostile name."""
    config = dataclasses.replace(tiny(), name=HOSTILE)
    workdir = write_fresh_run(tmp_path_factory.mktemp("runs") / "run", config)
    rng = np.random.default_rng(0)
    with (workdir / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(NAMES)
        for step in range(1, 41):
            values = [f"{v:.6g}" for v in rng.random(len(NAMES) - 4)]
            judged = 1 / step if step % 20 == 0 else ""
            writer.writerow([step, *values, 0, judged, "" if step == 7 else step**2])
        file.write("41,0.5")  # the machine stopped here
    (workdir / "samples").mkdir()
    for step in range(0, 90, 10):
        Image.new("RGB", (8, 8), (step, 0, 0)).save(workdir / f"samples/step_{step:08d}.png")
    for step in (20, 40):
        values = {"judged/digits/fid": 1 / step}
        write_judgement(workdir, Judgement(step, values, highest=False, judged_by={}))
    write_change(workdir, 10, {"train.steps": (20, 40), "train.learning_rate": (1e-3, 1e-4)})
    write_change(workdir, 30, {"train.schedule": ("constant", HOSTILE)})
    write_record(workdir / "origin.json", Origin("/runs/animals", 1200, {"fox": "dog"}))
    result = {
        "metrics": {
            "fid": {"value": 12.3456789, "features": "pool"},
            "per_class": {"mean": 20.0, "by_class": {"0": 20.0}},
        },
        "samples": {"num": 50, "drawn": {"guidance": {"scale": 1.5}}},
        "features": {"name": "inception"},
        "notes": [HOSTILE],
    }
    results = [result, {**result, "notes": [HOSTILE, "of another scale"]}]
    (workdir / "fid.json").write_text(json.dumps({"by_guidance_scale": results}))
    foreign = [3, {"metrics": 1, "features": {}}, {"metrics": {}, "features": [1]}, {"heldout": 3}]
    for i, content in enumerate([*foreign, {"by_guidance_scale": [1]}]):
        (workdir / f"mine{i}.json").write_text(json.dumps(content))
    return workdir


@pytest.fixture(scope="module")
def text(run) -> str:
    few = functools.partial(page.analyse, num_images=20, time_bins=2, steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "analyse", few)
        assert main(["--workdir", str(run)]) == 0
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def found(text) -> Page:
    return Page(text)


def test_it_needs_nothing_beside_it(text, found):
    assert found.addresses
    for address in found.addresses:
        assert address.startswith(("data:image/png;base64,", "data:image/jpeg;base64,", "#"))
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(found.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert 'name="viewport" content="width=device-width' in text
    assert "prefers-color-scheme: dark" in text
    anchors = {a[1:] for a in found.addresses if a.startswith("#")}
    assert anchors == set(re.findall(r'<h2 id="(\w+)"', text))


def test_names_are_only_text(text, found):
    assert "<script" not in text
    # Title, heading, note, chart, table; in the config it is JSON.
    assert sum(t.strip() == HOSTILE for t in found.texts) >= 5
    assert json.dumps(HOSTILE) in "".join(found.texts)


def test_numbers_are_those_of_the_files(run, found):
    with (run / "metrics.csv").open() as file:
        header, *rows = list(csv.reader(file))[:-1]
    (table,) = [t for t in found.tables if t[0] == ["metric", "first", "last"]]
    expected = [list(row) for row in zip(header, rows[0], rows[-1], strict=True)]
    assert table[1:] == expected
    (table,) = [t for t in found.tables if t[0][0] == "guidance scale"]
    assert table[0] == ["guidance scale", "1.5", "1.5"]
    assert table[1] == ["fid value", "12.3457", "12.3457"]
    names = [row[0] for row in table[2:]]
    assert names == ["fid features", "per_class mean", "samples", "features"]
    assert "of another scale" in found.texts
    analysis = json.loads((run / "analysis/step_00000000/analysis.json").read_text())
    tables = [t for t in found.tables if t[0][0] == "block"]
    for table, inputs in zip(tables, analysis["inputs"].values(), strict=True):
        (layer,) = inputs["layers"]
        shares = [f"{layer[k]['share']:.2%}" for k in ("position", "time", "label")]
        assert table[1][:5] == ["1", *shares, f"{layer['balance']:.3f}"]


def test_its_history(found):
    (table,) = [t for t in found.tables if t[0] == ["setting", "from step", "was", "is"]]
    assert table[1:] == [
        ["train.steps", "10", "20", "40"],
        ["train.learning_rate", "10", "0.001", "0.0001"],
        ["train.schedule", "30", "'constant'", repr(HOSTILE)],
    ]
    origin = "Started from the parameters of /runs/animals at step 1,200"
    assert f"{origin}, with the classes fox from dog." in found.texts
    assert "step 40: judged/digits/fid is 0.025" in found.texts


def test_a_curve_of_what_is_measured_now_and_then_has_no_gaps(run):
    metrics = read_metrics(run / "metrics.csv")
    assert metrics.curve("judged/digits/fid") == ([20, 40], [0.05, 0.025])
    assert len(metrics.curve(HOSTILE)[0]) == 40


def test_pictures(text, found):
    images = [a for a in found.addresses if a.startswith("data:")]
    assert len(images) == page.MAX_GRIDS + 10
    assert "step 0<" in text
    assert "step 80<" in text
    assert text.count("<svg") == 6  # of ten columns, one constant; two and two share a chart
    assert "skipped 0" in text


def test_it_says_how_to_repeat(run, found, tmp_path):
    texts = "".join(found.texts)
    (source,) = re.findall(r"from pathlib import Path.*?\)\)\n", texts, re.S)
    (tmp_path / "repeat.py").write_text(source)
    assert load_file(str(tmp_path / "repeat.py")) == load_json(run / "config.json")
    (line,) = [t for t in texts.splitlines() if "dit_moe.analysis" in t]
    from dit_moe.commands.analysis import main as analysis

    with pytest.raises(SystemExit) as stop:
        analysis([*shlex.split(line)[3:], "--help"])
    assert stop.value.code == 0
    assert "--guidance_scale 1.0" in line


def test_the_analysis_is_not_made_twice(run, text, tmp_path, monkeypatch):
    def analyse(*args, **kwargs):
        raise AssertionError("made again")

    monkeypatch.setattr(page, "analyse", analyse)
    assert main(["--workdir", str(run), "--output", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text


def test_a_dense_model_without_anything(tmp_path):
    (tmp_path / "config.json").write_text(to_json(tiny(None)))
    result = {"samples": {"count": 3, "count_per_class": {"0": 1}}, "heldout": {"count": 4}}
    (tmp_path / "digits.txt").write_text(json.dumps(result))
    arguments = ["--workdir", str(tmp_path), "--results", str(tmp_path / "digits.txt")]
    assert main(arguments) == 0
    found = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    texts = "".join(found.texts)
    assert "The model is dense: it has no experts." in texts
    assert "The run folder has no metrics.csv." in texts
    assert "notes no model that it started from, and no setting that changed." in texts
    assert found.tables == [[["", "samples", "heldout"], ["count", "3", "4"]]]
    assert shlex.join(["python", "-m", "dit_moe.report", *arguments]) in texts


def test_errors(run, text, tmp_path, capsys):
    (tmp_path / "other.json").write_text("[1]")
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(run / "config.json", copy)
    cases = [
        (["--workdir", "no/such"], "workdir is 'no/such', which is not a folder"),
        (["--workdir", str(tmp_path)], "expected the config.json of a run"),
        (["--workdir", str(copy)], "has no checkpoint yet"),
        (["--workdir", str(run), "--analysis", str(tmp_path)], "which has no analysis.json"),
        (["--workdir", str(run), "--results", str(tmp_path / "other.json")], "eval did not write"),
        (["--workdir", str(run), "--results", str(run / "metrics.csv")], "is not valid JSON"),
        (["--workdir", str(run), "--results", str(tmp_path / "none.json")], "none.json"),
        (["--workdir", str(run), "--output", str(tmp_path / "x.txt")], "ending in .html"),
    ]
    for arguments, message in cases:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    shutil.copy(run / "metrics.csv", copy)
    wrong = (b"1,much\n", b",1\n", b"1,\xff\n", b"inf,1\n", b"-1,1\n", b"9" * 5000 + b",1\n")
    for content in (*(b"step,loss\n" + rows for rows in wrong), b"\nstep,loss\n1,1\n", b"a\n1\n"):
        (copy / "metrics.csv").write_bytes(content)
        assert main(["--workdir", str(copy)]) == 2
        assert "is no table of numbers by step" in capsys.readouterr().err
    shutil.copy(run / "metrics.csv", copy)
    for line in (b"{", b"\xff", b'{"step": 1}', b'{"step": 1, "changed": {"a": [1]}}'):
        (copy / "history.jsonl").write_bytes(b'{"step": 1, "changed": {}}\n' + line)
        assert main(["--workdir", str(copy)]) == 2
        assert "history.jsonl cannot be read: line 2: " in capsys.readouterr().err
    assert not list(tmp_path.glob("**/*.html"))


def test_charts():
    """Every point lies where its axes say; gaps stay gaps; large ratios get a logarithmic axis."""
    nan = math.nan
    chart = draw("t", [Line("a", [0, 1, 2, 3], [0, 1, nan, 3]), Line("b", [0, 3], [3, 0])])
    pieces = re.findall(r'<polyline points="([^"]+)"', chart.svg)
    places = [[tuple(map(float, p.split(","))) for p in piece.split()] for piece in pieces]
    (x0, y0), (x1, y1) = places[0]
    (x3, y3) = places[1][0]
    assert (x3 - x0, y0 - y3) == pytest.approx((3 * (x1 - x0), 3 * (y0 - y1)), abs=0.3)
    assert places[2] == [(x0, y3), (x3, y0)]
    assert [label for _, label in chart.legend] == ["a", "b"]
    assert chart.scale == ""
    wide = [Line("", [0, 1], [1e-4, 1])]
    assert draw("t", wide).scale == "log"
    assert draw("t", wide, linear=True).scale == ""
    many = draw("t", [Line("", range(10_000), range(10_000))])
    assert many.svg.count(",") < 400
    draw("one point", [Line("", [5], [0.0])])
    diverged = Metrics({"step": ["1", "2"], "loss": ["nan", "inf"]})
    assert page._charts(diverged) == ([], [("loss", "inf or nan")])


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([1.0, 1.7e308, 2.0, -1.7e308], 2),
        ([5e-324, 1e-323], 1),
        ([1.0, 1 + 2**-52], 1),
        ([1e299, 1e299 * (1 + 2**-52)], 1),
        ([5e-324, 1e-322], 1),
    ],
)
def test_charts_of_numbers_at_the_ends_of_their_range(values, drawn):
    chart = draw("t", [Line("", range(len(values)), values)])
    assert chart.svg.count("<polyline") == drawn
    assert "nan" not in chart.svg
    assert "inf" not in chart.svg


def test_a_name_that_is_no_text(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run\xff"))
    folder.mkdir()
    (folder / "config.json").write_text(to_json(tiny(None)))
    assert main(["--workdir", str(folder)]) == 0
    assert "/run\\udcff" in (folder / "report.html").read_text(encoding="utf-8")


def test_groups_and_large_pictures(tmp_path):
    titles = {curves.title: list(curves.names) for curves in group(NAMES[1:])}
    assert titles["moe/load/layer00"] == ["expert 0", "expert 1"]
    assert titles["moe/busiest"] == ["layer 0"]
    assert titles["loss by quarter of the time range"] == ["loss_t0", "loss_t3"]
    assert [curves.title for curves in group(["a/layer" + "9" * 5000])] == ["a/layer" + "9" * 5000]
    (tmp_path / "empty.csv").write_text("step,loss\n")
    assert read_metrics(tmp_path / "empty.csv") is None
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    uri = data_uri(tmp_path / "large.png")
    assert uri.startswith("data:image/jpeg")
    assert len(uri) < (tmp_path / "large.png").stat().st_size / 2
    write_damaged_png(tmp_path / "damaged.png")
    (tmp_path / "postscript.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    for name in ("damaged.png", "postscript.png"):
        with pytest.raises(ConfigError, match="is not a picture"):
            data_uri(tmp_path / name)
