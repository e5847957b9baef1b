"""`text train`, `text sample` and `text eval`, from pairs to files of texts."""

import itertools
import json
import signal

import jax
import numpy as np
import pytest

from dit_moe.commands.text import main
from dit_moe.config import ConfigError
from dit_moe.config.files import load_json, read_config
from dit_moe.runs.checkpoints import Checkpoints
from dit_moe.text.config import TextConfig
from dit_moe.text.data import Tokens, batches, load_pairs
from dit_moe.text.folder import load_text_run
from dit_moe.text.pairs_of_text import read_pairs
from dit_moe.text.step import fresh_state
from dit_moe.text.training import train_on_texts

TINY = [
    "--config.data.below=100",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.heads=2",
    "--config.model.embedding_width=8",
    "--config.model.source_length=8",
    "--config.model.target_length=8",
    "--config.diffusion.times=50",
    "--config.diffusion.adapt_bins=5",
    "--config.diffusion.adapt_every=2",
    "--config.train.batch_size=32",
    "--config.train.warmup_steps=0",
    "--config.train.log_every=2",
    "--config.train.checkpoint_every=2",
    "--config.train.schedule=constant",
]
MOE = ["num_experts=3", "top_k=1", "hidden_ratio=1", "shared_hidden_ratio=0", "router.name=top_k"]
TINY += [f"--config.model.moe.{field}" for field in MOE]


def train(workdir, steps, *flags):
    line = ["train", "--workdir", str(workdir), f"--config.train.steps={steps}"]
    return main([*line, *TINY, *flags])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 4 steps, and one that was stopped after 2 and went on."""
    folder = tmp_path_factory.mktemp("text")
    assert train(folder / "run", 4) == 0
    fast = "--config.train.validate_every=0"  # which compiles once less
    assert train(folder / "parts", 2, fast) == 0
    assert train(folder / "parts", 4, fast) == 0
    return folder / "run"


def restored(workdir):
    run = load_text_run(workdir)
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore(run.step, fresh_state(run.config, len(run.vocabulary)))


def test_a_run_that_went_on_is_the_same_to_the_bit(run):
    one, other = restored(run), restored(run.parent / "parts")
    assert int(one.step) == 4
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_noise_is_adapted_and_kept_beside_the_weights(run):
    abar, error = (restored(run).parameters[name] for name in ("abar", "error"))
    fresh = fresh_state(read_config(run / "config.json", TextConfig), 60).parameters["abar"]
    assert abar.shape == (8, 51)
    assert (np.asarray(error) >= 0).any()
    assert (np.asarray(error) >= 0).all() == (not np.array_equal(abar, fresh))
    np.testing.assert_array_equal(restored(run).ema["abar"], abar)


def test_what_the_folder_tells(run):
    assert json.loads((run / "config.json").read_text())["of"] == "texts"
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    told = {"loss", "mse", "rounding", "right_tokens", "texts_per_second", "validation/loss"}
    assert told <= {*header}
    assert {"moe/encoder/load/layer00/expert00", "moe/decoder/busiest/layer00"} <= {*header}
    assert "teraflops_per_second" not in header
    with pytest.raises(ConfigError, match="is of a run on 'texts'; allowed here: one on 'images'"):
        load_json(run / "config.json")


def test_other_settings_and_other_data_are_refused(run, capsys):
    assert train(run, 4, "--config.model.width=32") == 2
    assert "holds a run with another config; it differs in model.width" in capsys.readouterr().err
    assert train(run, 4, "--config.train.lora.rank=4") == 2
    assert "train.lora is" in capsys.readouterr().err
    assert train(run, 4, "--heldout=x.tsv") == 2
    assert "heldout is 'x.tsv' without data" in capsys.readouterr().err
    assert train(run.parent / "none", 4, "--plain") == 2
    assert "allowed: cut false, moe none" in capsys.readouterr().err
    assert train(run.parent / "none", 4, "--config.model.target_length=2") == 2
    assert "numbers: target" in capsys.readouterr().err
    assert not (run.parent / "none").exists()


def sample(run, output, *flags):
    line = ["sample", "--workdir", str(run), "--output", str(output), "--steps", "3"]
    return main([*line, "--parameters", "raw", *flags])


def test_texts_depend_on_their_place_and_seed_alone(run, tmp_path):
    (tmp_path / "sources.txt").write_text("one\ntwo\nthree\n")
    given = ["--sources", str(tmp_path / "sources.txt")]
    assert sample(run, tmp_path / "all", *given, "--candidates", "3") == 0
    assert sample(run, tmp_path / "few", *given, "--candidates", "3", "--batch_size", "2") == 0
    told = [json.loads((tmp_path / n / "texts.json").read_text()) for n in ("all", "few")]
    assert told[0]["texts"] == told[1]["texts"]
    assert all(len(entry["candidates"]) == 3 for entry in told[0]["texts"])
    assert all(entry["text"] in entry["candidates"] for entry in told[0]["texts"])
    lines = (tmp_path / "all" / "texts.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["one", "two", "three"]
    assert sample(run, tmp_path / "one", "--source", "one", "--clamp") == 0


def test_requests_that_cannot_be(run, tmp_path, capsys):
    for flags, said in (
        ([], "source is [] and sources 'None'; allowed: one of them"),
        (["--source", "a\tb"], "source 1 is 'a\\tb'; allowed: one line of text"),
        (["--source", " ".join(["one"] * 9)], "source 1 has 33 tokens; allowed: up to model.sou"),
        (["--source", "one", "--candidates", "0"], "candidates is 0; allowed: 1 to 1000"),
        (["--source", "one", "--seed", "-1"], "seed is -1; allowed: 0 to"),
        (["--source", "one", "--steps", "51"], "steps is 51; allowed: 1 to diffusion.times 50"),
        (["--source", "one", "--workdir", str(tmp_path)], "config.json does not exist"),
    ):
        assert sample(run, tmp_path / "out", *flags) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_is_judged_by_what_it_held_out_or_by_a_file(run, tmp_path, capsys):
    line = ["eval", "--workdir", str(run), "--steps", "2"]
    assert main([*line, "--output", str(tmp_path / "found.json")]) == 0
    assert "of 10 pairs at step 4." in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert 0 <= found["exact_match"] <= 1
    assert found["pairs"] == 10
    (tmp_path / "pairs.tsv").write_text("one\tun\n")
    assert main([*line, "--pairs", str(tmp_path / "pairs.tsv")]) == 0
    assert "of 1 pairs" in capsys.readouterr().out


def test_files_are_learnt_and_others_refused_when_going_on(tmp_path, capsys):
    path = tmp_path / "train.tsv"
    path.write_text("a b\tb a\nc d\td c\n" * 20)
    flags = ["--data", str(path), "--config.train.validate_every=0"]
    assert train(tmp_path / "run", 1, *flags) == 0
    config = read_config(tmp_path / "run" / "config.json", TextConfig)
    assert config.data.path == str(path)
    assert load_pairs(config.data, "heldout") == []
    path.write_text(path.read_text() + "e\tf\n")
    assert train(tmp_path / "run", 1, *flags) == 2
    assert "was trained on other records" in capsys.readouterr().err
    assert len(read_pairs(path)) == 41
    assert main(["eval", "--workdir", str(tmp_path / "run")]) == 2
    assert "the run's data hold nothing out; allowed: --pairs TSV" in capsys.readouterr().err


def test_a_signal_stops_after_a_save(tmp_path, monkeypatch):
    config = read_config_of_tiny()
    real, seen = batches, []

    def noisy(*args):
        for batch in real(*args):
            seen.append(batch)
            if len(seen) == 3:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    monkeypatch.setattr("dit_moe.text.session.batches", noisy)
    monkeypatch.setattr("dit_moe.text.session.TextValidation", lambda *_: None)
    assert train_on_texts(config, tmp_path / "run") == signal.SIGTERM
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step() == 3


def read_config_of_tiny():
    from dit_moe.config.files import override

    return override(TextConfig(), [*TINY, "--config.train.steps=6"])


def test_batches_follow_from_seed_and_step():
    rows = np.arange(7, dtype=np.int32)[:, None]
    stream = batches(Tokens(rows, rows), 3, seed=1)
    drawn = [next(stream).source[:, 0].tolist() for _ in range(7)]
    flat = [*itertools.chain(*drawn)]
    assert [sorted(flat[i : i + 7]) for i in (0, 7, 14)] == [list(range(7))] * 3
    assert next(batches(Tokens(rows, rows), 3, 1, 5)).source[:, 0].tolist() == drawn[5]
    assert flat[:7] != flat[7:14]
