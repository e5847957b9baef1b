"""The commands of docs/finetuning.md as they stand, in order, from an empty folder."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from configs.digits import get_config
from dit_moe.commands import convert, sample, train
from dit_moe.config.data import SOURCES
from dit_moe.config.files import load_json
from dit_moe.models.frozen import split_frozen
from dit_moe.models.parameters import abstract_parameters
from dit_moe.runs.loading import load_kept, load_run
from tests.test_extending import SMALL

PAGE = (Path(__file__).parent.parent / "docs" / "finetuning.md").read_text()
# Updates too small to show.
STILL = [*SMALL, "--config.train.learning_rate=1e-30"]


def commands() -> list[list[str]]:
    """Those that need no model of others."""
    text = PAGE[PAGE.index("## Other classes") :].replace("\\\n", "")
    found = re.findall(r"^python (?:\w+\.py|-m dit_moe\.convert) (.*)", text, re.MULTILINE)
    return [shlex.split(flags) for flags in found]


@pytest.mark.slow
def test_digits_become_letters(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SOURCES, "letters", False)  # which goes with the test
    ((title, code),) = re.findall(r'```python title="(.*?)"\n(.*?)```', PAGE, re.DOTALL)
    Path(title).write_text(code)
    digits, letters, draw, few, lora, merged, apart, draw_lora = commands()
    assert train.main([*digits, *SMALL]) == 0
    assert train.main([*letters, *STILL]) == 0
    said = re.search("^Label embeddings: .*", PAGE, re.M)
    assert said is not None
    assert said[0] in capsys.readouterr().out.splitlines()
    old, new = load_run("runs/digits").parameters, load_run("runs/letters").parameters
    assert new["label.table"].shape == (6, 16)
    kept = np.asarray(old["label.table"])[[8, 1, 0, 5, 10]]
    np.testing.assert_allclose(new["label.table"][1:], kept, atol=1e-6)
    mean = np.asarray(old["label.table"])[:10].mean(axis=0)
    np.testing.assert_allclose(new["label.table"][0], mean, atol=1e-6)

    assert sample.main([*draw, "--steps", "2"]) == 0
    drawn = np.load("out/letters/samples.npz")
    assert (np.bincount(drawn["arr_1"]) == 10).all()

    assert train.main([*few, *SMALL]) == 0
    assert train.main([*few, *SMALL, "--config.train.steps=3"]) == 0
    assert "Resuming runs/letters-few from step 2" in capsys.readouterr().out
    new = load_run("runs/letters-few").parameters
    moved = {path for path in old if not np.array_equal(new[path], old[path])}
    assert {"label.table", "patch_out.kernel"} <= moved
    assert not any(".attention." in path or path.startswith("timestep.") for path in moved)

    assert train.main([*lora, *SMALL]) == 0
    kept = load_kept(
        Path("runs/letters-lora"), load_json(Path("runs/letters-lora/config.json")), ema=True
    )
    for path, p in old.items():
        assert np.array_equal(kept[1][path], p) == (path != "label.table"), path
    assert convert.main(merged) == convert.main(apart) == 0
    expected = load_run("exported/letters").parameters
    for path, p in load_run("exported/letters-lora").parameters.items():
        np.testing.assert_allclose(p, expected[path], atol=1e-7, err_msg=path)
    assert sample.main([*draw_lora, "--steps", "2"]) == 0


def test_the_patterns_of_the_page():
    parameters = abstract_parameters(get_config().model)
    rows = dict(re.findall(r"^\| (.*?) \| `(.*?)` \|$", PAGE, re.M))
    learning = {
        what: set(split_frozen(parameters, patterns.split(","))[0])
        for what, patterns in rows.items()
        if what != "to learn"
    }
    assert learning == {
        "all but the routers": {path for path in parameters if "router" not in path},
        "the embeddings of classes alone": {"label.table"},
        "feed-forwards, experts and routers": {p for p in parameters if "feed_forward" in p},
    }
