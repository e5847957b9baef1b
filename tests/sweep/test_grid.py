"""From the file to the runs: their names, configs and budgets, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest

from dit_moe.config import ConfigError
from dit_moe.config.files import differences, load_file
from dit_moe.plan.flops import image_flops
from dit_moe.sweep.grid import read_grid
from dit_moe.sweep.record import Run, Sweep, read_sweep, write_sweep
from dit_moe.sweep.runs import expand

ROOT = Path(__file__).parents[2]
GRID = """
config = "configs/digits.py:tc-dit"
heldout = ["*-8"]

[set]
model = {depth = 2, moe.router.balance_coef = 0.5}
budget.steps = 24

[[axes]]
field = "seed"
values = [0, 1]

[[axes]]
name = "experts"
field = "model.moe.num_experts"
values = [1, 8]
"""


def runs_of(folder: Path, text: str) -> list[Run]:
    path = folder / "grid.toml"
    path.write_text(text)
    return expand(read_grid(path))


def test_a_run_for_every_combination(tmp_path):
    runs = runs_of(tmp_path, GRID)
    assert [run.name for run in runs] == [
        "seed-0_experts-1",
        "seed-0_experts-8",
        "seed-1_experts-1",
        "seed-1_experts-8",
    ]
    last = runs[3]
    assert last.choices == {"seed": "1", "experts": "8"}
    assert [run.heldout for run in runs] == [False, True, False, True]
    expected = load_file(
        "configs/digits.py:tc-dit",
        [
            "--config.seed=1",
            "--config.model.depth=2",
            "--config.model.moe.router.balance_coef=0.5",
            "--config.train.steps=24",
            "--config.train.warmup_steps=2",  # 100 of 1,200, as before
        ],
    )
    assert last.config == expected


def test_json_says_the_same(tmp_path):
    grid = {
        "config": "configs/digits.py:tc-dit",
        "heldout": "*-8",
        "set": {"model.depth": 2, "model.moe.router.balance_coef": 0.5, "budget.steps": 24},
        "axes": [
            {"field": "seed", "values": [0, 1]},
            {"name": "experts", "field": "model.moe.num_experts", "values": [1, 8]},
        ],
    }
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(grid))
    assert expand(read_grid(path)) == runs_of(tmp_path, GRID)


VARIANTS = """
config = "configs/digits.py:dit"
[[axes]]
name = "model"
[[axes.variants]]
name = "ProMoE, no contrast"
set = {config = "configs/digits.py:promoe", model.moe.router.contrastive_coef = 0}
[[axes.variants]]
name = "DiT"
set = {train.freeze = ["class_embedding.*", "a"], data.flip = true, train.gradient_clip = "none"}
"""


def test_variants_set_several_fields_and_the_file(tmp_path):
    promoe, dit = runs_of(tmp_path, VARIANTS)
    assert (promoe.name, dit.name) == ("model-promoe-no-contrast", "model-dit")
    whole = load_file("configs/digits.py:promoe")
    assert differences(promoe.config, whole) == ["model.moe.router.contrastive_coef"]
    assert dit.config.train.freeze == ("class_embedding.*", "a")
    assert dit.config.data.flip
    assert dit.config.train.gradient_clip is None


@pytest.mark.parametrize("unit", ["steps", "images", "tokens", "flops"])
def test_budgets_of_one_size(tmp_path, unit):
    """Each unit pays for the same number of steps, and a model of another size gets its own."""
    config = load_file("configs/digits.py:tc-dit")
    amounts = {
        "steps": 24,
        "images": 24 * 128,
        "tokens": 24 * 128 * 16,
        "flops": 24 * 128 * image_flops(config.model).training,
    }
    text = f"""
config = "configs/digits.py:tc-dit"
[set]
budget.{unit} = {amounts[unit]}
[[axes]]
field = "model.depth"
values = [4, 2]
[[axes]]
field = "model.patch_size"
values = [2, 4]
"""
    steps = [run.config.train.steps for run in runs_of(tmp_path, text)]
    assert steps[0] == 24
    half, coarse = {
        "steps": (24, 24),
        "images": (24, 24),
        "tokens": (24, 96),
        "flops": (48, 90),
    }[unit]
    assert abs(steps[2] - half) <= 1
    assert abs(steps[1] - coarse) <= 6


def test_a_budget_may_be_an_axis(tmp_path):
    text = 'config = "configs/digits.py:dit"\n[[axes]]\nfield = "budget.steps"\nvalues = [12, 24]\n'
    runs = runs_of(tmp_path, text)
    assert [(r.name, r.config.train.steps) for r in runs] == [("steps-12", 12), ("steps-24", 24)]


REFUSED = {
    "": "grid.config is missing",
    "config = 1": "grid.config is 1",
    'config = "a.py"\nsteps = 3': "grid.steps is not a field",
    'config = "a.py"': "--config is 'a.py', which is not a file",
    "config = ": "is not valid TOML",
    'config = "{digits}"\nheldout = ["x"]': "grid.heldout has 'x', which is the name of no run",
    'config = "{digits}"\nset = {{model.dept = 3}}': "run run: config.model.dept is not a field",
    'config = "{digits}"\nset = {{budget.days = 3}}': "budget.days is not a budget; allowed: steps",
    'config = "{digits}"\nset = {{budget = {{steps = 3, flops = 1e9}}}}': "allowed: one budget",
    'config = "{digits}"\nset = {{budget.steps = "many"}}': "budget.steps is 'many'",
    'config = "{digits}"\nset = {{budget.flops = 3}}': "budget.flops is 3, and a step takes",
    'config = "{digits}"\n[[axes]]\nfield = "seed"': "grid.axes.0.field and values go together",
    'config = "{digits}"\n[[axes]]\nname = "x"': "grid.axes.0.name or variants is missing",
    'config = "{digits}"\n[[axes]]\nfield = "model.width"\nvalues = [64, 66]': (
        "run width-66: config.model.heads is 4; allowed: a divisor of width 66"
    ),
    'config = "{digits}"\n[[axes]]\nfield = "name"\nvalues = ["a b", "a-b"]': (
        "two runs called 'name-a-b'"
    ),
    'config = "{digits}"\n[[axes]]\nfield = "seed"\nvalues = [0]\n'
    '[[axes]]\nfield = "a.seed"\nvalues = [0]': "grid.axes has 'seed' twice",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused_names_the_field(tmp_path, text):
    with pytest.raises(ConfigError) as refused:
        runs_of(tmp_path, text.format(digits="configs/digits.py:dit") if "{" in text else text)
    assert REFUSED[text] in str(refused.value)
    assert "\n" not in str(refused.value)


def test_too_many_runs_are_refused(tmp_path):
    axes = [f'[[axes]]\nname = "{n}"\nfield = "seed"\nvalues = {[*range(30)]}' for n in "abc"]
    with pytest.raises(ConfigError, match=r"grid\.axes make 27,000 runs; allowed: up to 10,000"):
        runs_of(tmp_path, "\n".join(['config = "configs/digits.py:dit"', *axes]))


def test_the_folder_keeps_what_its_runs_are(tmp_path):
    runs = tuple(runs_of(tmp_path, GRID))
    write_sweep(tmp_path, Sweep(runs, 400))
    assert read_sweep(tmp_path) == Sweep(runs, 400)
    write_sweep(tmp_path, Sweep(runs[:2], 400))  # runs may go
    config = dataclasses.replace(runs[0].config, seed=9)
    other = dataclasses.replace(runs[0], config=config)
    with pytest.raises(ConfigError, match=r"run seed-0_experts-1 with another config.*in seed:"):
        write_sweep(tmp_path, Sweep((other, *runs[1:]), 400))
    with pytest.raises(ConfigError, match=r"grid\.judge is None and was 400"):
        write_sweep(tmp_path, Sweep(runs))
    assert read_sweep(tmp_path) == Sweep(runs[:2], 400)


DAMAGED = {
    "": "not valid JSON",
    "[]": "of format None",
    '{"format": 2}': "of format 2",
    '{"format": 1}': "is damaged",
    '{"format": 1, "judge": null, "runs": [{"name": "a"}]}': "is damaged",
}


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_folder_is_told(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ConfigError, match=DAMAGED[text]):
        read_sweep(tmp_path)


def test_a_run_lies_in_the_sweeps_folder(tmp_path):
    run = dataclasses.replace(runs_of(tmp_path, GRID)[0], name="../elsewhere")
    write_sweep(tmp_path, Sweep((run,)))
    with pytest.raises(ConfigError, match="has no plain name"):
        read_sweep(tmp_path)


def test_the_grids_that_come_with_the_package_are_found_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_grid(Path("configs/sweeps/experts.toml")).judge == 400
    with pytest.raises(ConfigError, match=r"grid is 'configs/\.\./configs/sweeps/experts\.toml'"):
        read_grid(Path("configs/../configs/sweeps/experts.toml"))


def test_the_grids_that_come_with_the_package():
    counts = {
        path.name: len(expand(read_grid(path))) for path in ROOT.glob("configs/sweeps/*.toml")
    }
    assert counts == {
        "contrastive.toml": 30,
        "digits.toml": 69,
        "experts.toml": 15,
        "fashion.toml": 69,
        "patches.toml": 18,
        "sparsity.toml": 54,
    }
