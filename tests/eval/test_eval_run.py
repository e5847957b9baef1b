"""From a run straight to numbers: python -m eval.fid --workdir."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from dit_moe.config import GuidanceConfig, SampleConfig
from dit_moe.sampling import sampler as sampling
from dit_moe.sampling.run_sampler import RunSampler
from dit_moe.sampling.sample_set import write_sample_set
from dit_moe.training.loop import train
from eval import fid
from eval import judge as judging
from eval.image_set import ImageSet
from eval.sweep import judge_sets
from tests.tiny import tiny

NUM, BATCH = 44, 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = tiny(steps=2, learning_rate=0.05, log_every=2)
    train(
        dataclasses.replace(
            config, sample=SampleConfig(steps=2, guidance=GuidanceConfig(scale=1.5))
        ),
        workdir,
    )
    return workdir


def judge(tmp_path, output, **settings):
    values = {
        "reference": "digits",
        "features": "digits",
        "metrics": "fid,is,per_class",
        "num_samples": NUM,
        "batch_size": BATCH,
        "cache": tmp_path / "cache",
        **settings,
        "output": tmp_path / output,
    }
    status = fid.main([f"--{name}={value}" for name, value in values.items()])
    return json.loads((tmp_path / output).read_text()) if status == 0 else status


@pytest.fixture
def expected(run, tmp_path):
    """The same images as a file."""
    sampler = RunSampler(run, ema=True, batch_size=BATCH, num_samples=NUM)
    npz, _ = write_sample_set(sampler, tmp_path / "set")
    values = {"samples": npz, "reference": "digits", "features": "digits"}
    values |= {"metrics": "fid,is,per_class", "cache": tmp_path / "cache"}
    output = tmp_path / "expected.json"
    assert fid.main([f"--{k}={v}" for k, v in values.items()] + [f"--output={output}"]) == 0
    return json.loads(output.read_text())


def assert_same_numbers(actual, expected):
    for name, values in expected["metrics"].items():
        assert values == actual["metrics"][name], name


def test_as_from_a_file_of_the_samples(run, tmp_path, expected):
    actual = judge(tmp_path, "result.json", workdir=run)
    assert_same_numbers(actual, expected)
    drawn = actual["samples"]["drawn"]
    assert drawn["guidance"]["scale"] == 1.5
    assert drawn["integration"]["solver"] == "euler"
    assert len(drawn["weights"]) == 64
    assert actual["features"]["network"].startswith("scikit-learn MLPClassifier")
    assert not list(tmp_path.rglob("samples-*"))
    assert not (tmp_path / "result.json.parts").exists()


def test_interrupted_it_goes_on_to_the_same_numbers(run, tmp_path, expected, monkeypatch):
    original, starts = sampling.generate, []

    def generate(*arguments, start, **settings):
        starts.append(start)
        for number, x in enumerate(original(*arguments, start=start, **settings)):
            if number == 2 and len(starts) < 3:
                raise KeyboardInterrupt
            yield x

    monkeypatch.setattr(sampling, "generate", generate)
    assert judge(tmp_path, "result.json", workdir=run) == 130
    assert not (tmp_path / "result.json").exists()
    assert judge(tmp_path, "result.json", workdir=run) == 130
    assert_same_numbers(judge(tmp_path, "result.json", workdir=run), expected)
    assert starts == [0, 16, 32]


def test_a_sweep_is_a_table_and_a_plot(run, tmp_path, expected, capsys, monkeypatch):
    result = judge(tmp_path, "sweep.json", workdir=run, guidance_scale="1.5,3", metrics="fid,is")
    first, second = result["by_guidance_scale"]
    assert first["metrics"]["fid"] == expected["metrics"]["fid"]
    assert second["metrics"]["fid"] != expected["metrics"]["fid"]
    lines = capsys.readouterr().out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("guidance scale"))
    assert lines[header].split()[2:] == ["1.5", "3"]
    values = [f"{r['metrics']['fid']['value']:.5g}" for r in (first, second)]
    assert lines[header + 2].split()[-2:] == values
    assert "Fréchet distance (digits)" in lines[header + 2]
    with Image.open(tmp_path / "sweep.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 10


def test_scales_that_are_done_are_kept(run, tmp_path, monkeypatch):
    original, starts = sampling.generate, []

    def generate(*arguments, start, **settings):
        starts.append(start)
        if len(starts) == 2:
            raise KeyboardInterrupt
        return original(*arguments, start=start, **settings)

    monkeypatch.setattr(sampling, "generate", generate)
    settings = {"workdir": run, "guidance_scale": "1,2", "metrics": "fid", "num_samples": 16}
    assert judge(tmp_path, "sweep.json", **settings) == 130
    assert len(judge(tmp_path, "sweep.json", **settings)["by_guidance_scale"]) == 2
    assert len(starts) == 3


def test_a_damaged_result_of_a_scale_is_made_again(tmp_path):
    images = ImageSet("", 2, (8, 8, 1), lambda *_: iter(()), lambda: None, lambda: "0" * 64)
    result, judged = {"samples": {"drawn": {}}}, []

    def results():
        return judge_sets([(images, {})], lambda *a: judged.append(a) or result, tmp_path, {})

    assert results() == results() == [result]
    assert len(judged) == 1
    (part,) = tmp_path.iterdir()
    for number, damage in enumerate(("{", "[]", "{}", '{"samples": NaN}'), start=2):
        part.write_text(damage)
        assert results() == [result]
        assert len(judged) == number


def test_images_are_saved_if_asked(run, tmp_path, expected):
    actual = judge(tmp_path, "result.json", workdir=run, save=tmp_path / "saved")
    assert_same_numbers(actual, expected)
    again = judge(tmp_path, "again.json", workdir=run, save=tmp_path / "saved")
    assert_same_numbers(again, expected)
    with np.load(tmp_path / "saved" / "guidance_1.5" / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (NUM, 8, 8, 1)
        np.testing.assert_array_equal(arrays["arr_1"], np.arange(NUM) % 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workdir": "nowhere"}, "workdir is 'nowhere', which is not a folder"),
        ({"guidance_scale": "1,a"}, "guidance_scale is '1,a'; allowed: numbers with commas"),
        ({"guidance_scale": "1,-2"}, "--guidance_scale has -2.0, but must be 0 or more"),
        ({"features": "inception"}, "--weights is missing; features 'inception' need"),
        ({"weights": "w.pth"}, "--weights is w.pth, but features 'digits' need none"),
        ({"metrics": "sfid"}, "needs the features' output 'spatial', which they lack"),
    ],
)
def test_user_errors(run, tmp_path, capsys, settings, message):
    assert judge(tmp_path, "result.json", **{"workdir": run, **settings}) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not (tmp_path / "result.json").exists()


def test_a_run_that_is_trained_on_is_not_mixed(run, tmp_path, monkeypatch, capsys):
    original, steps = judging.open_run, iter([2, 4])

    def open_run(*arguments, **settings):
        images, drawn = original(*arguments, **settings)
        step = next(steps)
        return images, {**drawn, "step": step, "weights": str(step)}

    monkeypatch.setattr(judging, "open_run", open_run)
    settings = {"workdir": run, "guidance_scale": "1,2", "metrics": "fid", "num_samples": 16}
    assert judge(tmp_path, "sweep.json", **settings) == 2
    assert "was trained on while it was judged (step 4 now)" in capsys.readouterr().err


def test_the_result_is_no_picture(run, tmp_path, capsys):
    assert judge(tmp_path, "out.png", workdir=run) == 2
    assert "out.png, but must end in .json" in capsys.readouterr().err


def test_options_of_runs_do_not_go_with_samples(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        fid.main(["--samples=a.npz", "--reference=b.npz", "--output=c.json", "--seed=3"])
    assert stop.value.code == 2
    assert "--seed belongs to --workdir, not to --samples" in capsys.readouterr().err


def test_what_is_not_ours_stays(run, tmp_path):
    mine = tmp_path / "result.json.parts" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    judge(tmp_path, "result.json", workdir=run, num_samples=16, metrics="fid")
    assert [path.name for path in mine.parent.iterdir()] == ["mine.txt"]
