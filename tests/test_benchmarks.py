"""Every benchmark at its tiniest prints its table. What it measures there means nothing."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report, sample_beside_torch, train_step
from dit_moe.config import DataConfig
from dit_moe.config.presets import preset
from dit_moe.training.loop import train
from tests.tiny import DIT_MOE, tiny
from tests.xla import with_devices

ROOT = Path(__file__).parent.parent
# What each is called with, and a row of its table.
RUNS = {
    "accelerator": ("--models DiT-S/2 --batch_size 1 --repeats 1", r"\| DiT-S/2 \| 1 \| [\d.]+ \|"),
    "ahead_of_time": (
        "--case DiT-MoE-S/2-8E2A:1x1x2 --tokens_side 2",
        "collectives that make the full stack of experts: none",
    ),
    "cheap_experts": (
        "--nulls 0 2 --experts 2 --top_k 2 --width 16 --depth 1 --batch_size 1 --repeats 1",
        r" 2 \| +1.00 +[\d.]+ \| +[\d.]+ +[\d.]+ \|",
    ),
    "quantise_large": (
        "--model ProMoE-S/2 --bits 2",
        r"predicted [\d,]+, written [\d,]+ with headers\n +0\.\d+ of float16's; \d+ s",
    ),
    "quantisation": (
        "--config {config} --training_steps 1 --bits 4 --group 8 --images 4 --times 2 --repeats 1",
        r"\| 4 bits, gptq \| [\d.]+ \| 0\.\d+ \| [\d.e-]+ \| [\d.]+ \|",
    ),
    "compile_time": (
        "--depths 1 2 --repeats 1 --batch_size 1",
        r"ratio [\d.]+ \(depth 2",
    ),
    "compression": (
        "--train_steps 1 --samples 4 --seeds 1 --shares 0.25 --output {folder}/models "
        "--methods drop-output 4-bits-nearest --configs {config} --images 4 --steps 2 "
        "--config.model.width=16 --config.train.batch_size=8",
        r"\| 4-bits-nearest \| [\d,]+ \| [\d.]+ \|",
    ),
    "convert": ("--preset DiT-S/2", "21 pieces, one of every parameter, are bit-equal"),
    "distillation": (
        "--teacher_steps 1 --steps 2 --batch_size 8 --output {folder}/runs --config.model.width=16",
        r"\| student from its blocks, taught to the end \| [\d.]+ \| [\d.]+ \|",
    ),
    "input": ("--examples 256 --step_batch 1", r"epoch 3: pipeline [\d,]+ images/s"),
    "moe_layer": (
        "--tokens 64 --width 16 --hidden 16 --experts 4 --loads zipf --repeats 1",
        r" 4 +zipf \| +[\d.]+ +\d+% \|",
    ),
    "pairs": (
        "--base_steps 1 --steps 2 --batch_size 8 --output {folder}/runs --config.model.width=16",
        r"\| condition of image, distance \| [\d.]+ \| [\d.]+ \| [\d.]+ \|",
    ),
    "plan": (
        "--preset DiT-S/2 --remat none --batch_size 1",
        r"\| DiT-S/2 \| none \| 0.53 \| 0.00 \| [\d.]+ \| [\d.]+ \|",
    ),
    "rematerialisation": ("--config {config} --repeats 1", r"full +[\d.]+ +[\d.]+"),
    "sample": ("--config {config} --batch_size 2 --repeats 1", r"\| unipc 16 \| 16 \| [\d.]+ \|"),
    "sample_large": (
        "--preset DiT-MoE-S/2-8E2A --memory 1GB --images 1 --steps 1 --folder {folder}/store",
        r"1 images in 1 steps: \d+ s with compiling; store 0\.\d+ GB; peak",
    ),
    "streaming": ("--folder {folder}/store --images 1", r"\| 57 \| 340 \| [\d.]+ \| [\d.]+ \|"),
    "text": (
        "--seeds 0 --models plain --sampling_steps 2 --output {folder}/runs --config.train.steps=1 "
        "--config.data.below=100 --config.model.width=16 --config.model.source_length=8 "
        "--config.train.warmup_steps=0",
        r"\| plain, mean of 1 \| [\d,]+ \| [\d.]+ \|",
    ),
    "traffic": (
        "--presets DiT-MoE-S/2-8E2A --devices 16 --images 1",
        r"\| DiT-MoE-S/2-8E2A \| 16 \| 2 x 1 x 8 x 1 \|",
    ),
    "solvers": (
        "--config {config} --samples 16 --solvers heun dopri5 --evaluations 2",
        r"\| dopri5 \(evaluations\) \| [\d.]+ \(\d+\) \|",
    ),
    "step_caches": (
        "--config {config} --samples 16 --steps 8 --repeats 1 "
        "--caches taylorseer:every=2,order=1 teacache:threshold=0.5",
        r"\| `teacache:threshold=0.5` \| \d of 8 \|",
    ),
}
WITH_TORCH = {
    "autoencoder": ("--image_size 16 --batch_sizes 1 --repeats 1", r"decode_tiled +1 +[\d.]+"),
    "features": ("--images 4 --batch_size 2 --rounds 1", r"torch-fidelity +[\d.]+ +[\d.]+"),
    "metrics": ("--num 1100 --width 16 --repeats 1", r"kid +torch-fidelity, float64 +[\d.]+"),
    "moe_layer": (RUNS["moe_layer"][0], r"zipf \|.*\|.*\|.*\| +[\d.]+ +[\d.]+"),
}
ELSEWHERE = {
    "foresight",  # below
    "kill",  # in training/test_checkpoint.py
    "report",  # below
    "sample_beside_torch",  # below
    "schedule",  # in test_schedule.py
    "train_step",  # below
}

CONFIG = """\
import dataclasses

from dit_moe.config import DataConfig, RectifiedFlowConfig
from tests.tiny import tiny


def get_config():
    return dataclasses.replace(
        tiny(steps=1, log_every=1),
        objective=RectifiedFlowConfig(),
        data=DataConfig(source="digits"),
    )
"""


# Compiled fast; one device, as a replica for each costs memory.
XLA_FLAGS = with_devices(1)


def check(name: str, line: str, row: str, folder: Path) -> None:
    config = folder / "tiny.py"
    config.write_text(CONFIG)
    arguments = line.format(folder=folder, config=config).split()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": XLA_FLAGS},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(row, done.stdout), done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_prints_its_table(name, tmp_path):
    check(name, *RUNS[name], tmp_path)


@pytest.mark.peers
@pytest.mark.parametrize("name", WITH_TORCH)
def test_prints_its_table_beside_torch(name, tmp_path):
    check(name, *WITH_TORCH[name], tmp_path)


@pytest.mark.slow
def test_foresight(tmp_path):
    run = tmp_path / "run"
    train(dataclasses.replace(tiny(DIT_MOE, steps=1), data=DataConfig(source="digits")), run)
    row = r"\| both \| [\d.]+% \| \d+ of \d+ \|"
    check("foresight", f"--workdir {run} --steps 2", row, tmp_path)


def test_every_benchmark_is_run():
    programs = {
        path.stem
        for path in ROOT.glob("benchmarks/*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    assert programs == RUNS.keys() | WITH_TORCH.keys() | ELSEWHERE


@pytest.fixture
def small_models(monkeypatch):
    """The published ones are no smaller than some 800 MB, and PyTorch's as much again."""

    def small(name):
        config = preset(name)
        shape = {"width": 32, "depth": 2, "heads": 2, "image_size": 8}
        return dataclasses.replace(config, model=dataclasses.replace(config.model, **shape))

    monkeypatch.setattr(train_step, "preset", small)
    monkeypatch.setattr(train_step, "MATMUL_REPEATS", 1)
    for program in (train_step, sample_beside_torch):  # it would last for the tests that follow
        monkeypatch.setattr(program, "hold_memory", lambda: False)


def call(program, line, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program.__name__, *line.split()])
    program.main()


@pytest.mark.usefixtures("small_models")
@pytest.mark.parametrize(
    "side",
    [pytest.param("ours", marks=pytest.mark.slow), pytest.param("torch", marks=pytest.mark.peers)],
)
def test_train_step(side, monkeypatch, capsys):
    call(train_step, f"--models ProMoE-S/2 --repeats 1 --side {side}", monkeypatch)
    found = json.loads(capsys.readouterr().out)
    assert found["peak"] > 0.1
    assert found["processor"] > 0
    programs = {"ours": {"step", "gradient"}, "torch": {"step"}}[side]
    assert found["seconds"].keys() == {"matmul"} | programs


@pytest.mark.usefixtures("small_models")
def test_the_table_of_train_step(monkeypatch, capsys):
    seconds = {"step": 2.0, "gradient": 1.0, "matmul": 0.5}
    found = {"seconds": seconds, "processor": 3.0, "faults": 7, "peak": 1.5}
    monkeypatch.setattr(train_step, "apart", lambda *_: found)
    monkeypatch.setattr(train_step.importlib.util, "find_spec", lambda _: True)
    call(train_step, "--models DiT-MoE-S/2-8E2A ProMoE-S/2", monkeypatch)
    *_, base, row = capsys.readouterr().out.splitlines()
    cells = r" \| 4.00 \| \d+%, \d+% \| 1.00 \| 1.00 \| 3.00, 3.00 \| 7, 7 \| 1.50, 1.50 \|"
    assert re.match(r"\| DiT-MoE-S/2-8E2A" + cells, base)
    assert re.match(r"\| ProMoE-S/2" + cells, row)


@pytest.mark.peers
@pytest.mark.usefixtures("small_models")
def test_sample_beside_torch(monkeypatch, capsys):
    line = "--models DiT-S/2 DiT-MoE-S/2-8E2A --images 2 --steps 1 --repeats 1"
    call(sample_beside_torch, line, monkeypatch)
    *_, dense, sparse = capsys.readouterr().out.splitlines()
    assert re.match(r"\| DiT-S/2 \| [\d.]+ \| [\d.]+ \|", dense)
    assert re.match(r"\| DiT-MoE-S/2-8E2A \| [\d.]+ \| [\d.]+ \|", sparse)


@pytest.mark.slow
def test_the_page_holds_what_they_print(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- cpu: begin -->old<!-- cpu: end -->\nafter\n")
    commands = [f"plan {RUNS['plan'][0]}", "plan --preset none"]
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setitem(report.SETS, "cpu", commands)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XLA_FLAGS", XLA_FLAGS)
    call(report, "cpu", monkeypatch)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert re.search(RUNS["plan"][1], text)
    assert text.count("\nfailed: ") == 1
