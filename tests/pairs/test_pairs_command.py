"""`pairs train` and `pairs sample`, from a run of single images to files of pairs."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from dit_moe.commands.pairs import main
from dit_moe.config import ConfigError, DataConfig
from dit_moe.config.files import load_json
from dit_moe.data.pairs import blur, edges
from dit_moe.pairs.request import PairsRequest
from dit_moe.pairs.start import pairs_config
from dit_moe.runs.loading import load_run
from dit_moe.training.loop import train
from tests.tiny import DIT_MOE, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of single images, and one of pairs from it; images that are given, and a mask."""
    folder = tmp_path_factory.mktemp("pairs")
    config = dataclasses.replace(tiny(DIT_MOE, steps=1), data=DataConfig("digits"))
    train(config, folder / "digits")
    line = ["train", "--from", str(folder / "digits"), "--pair", "edges", "--workdir"]
    assert main([*line, str(folder / "run"), "--config.train.steps=2"]) == 0
    image = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    np.savez(folder / "given.npz", image, np.array([3, 1, 4]))
    Image.fromarray(np.tri(8, dtype=np.uint8) * 255).save(folder / "mask.png")
    return folder


def sample(folder, *flags):
    line = ["sample", "--workdir", str(folder / "run"), "--output", str(folder / "out")]
    fast = ["--solver", "euler", "--steps", "2", "--num_samples", "5", "--guidance_scale", "1"]
    assert main([*line, *fast, *flags]) == 0
    return [np.load(folder / "out" / f"{side}.npz") for side in ("first", "second")]


def test_the_run_is_the_base_with_pairs(folder):
    base, config = (load_json(folder / name / "config.json") for name in ("digits", "run"))
    assert config.model.pairs is not None
    assert (config.model.pairs.rank, config.data.pair) == (16, "edges")
    assert config.model.pairs.given == 0.5
    assert (config.train.batch_size, config.train.steps) == (32, 2)
    assert dataclasses.replace(config.model, pairs=None) == base.model
    before = load_run(folder / "digits").parameters
    after = load_run(folder / "run", pairs=True).parameters
    assert all(np.array_equal(after[path], p) for path, p in before.items())
    with pytest.raises(ConfigError, match=r"from is a run on pairs already \(model\.pairs\)"):
        pairs_config(config, "edges")


def test_what_is_given_is_what_was_given(folder):
    given = ["--given", str(folder / "given.npz")]
    known = np.load(folder / "given.npz")["arr_0"]
    first, second = sample(folder, "--task", "condition", *given)
    np.testing.assert_array_equal(first["arr_0"], known[[0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(first["arr_1"], [3, 1, 4, 3, 1])
    assert second["arr_0"].shape == (5, 8, 8, 1)
    told = json.loads((folder / "out" / "pairs.json").read_text())
    assert told["task"] == "condition"
    assert told["levels"] == [0.0, 1.0]

    first, second = sample(folder, "--task", "image", *given, "--derive", "--classes", "2")
    x = edges(known[0] / np.float32(127.5) - 1)
    np.testing.assert_array_equal(second["arr_0"][0], np.rint((x + 1) * 127.5))
    assert (first["arr_1"] == 2).all()
    assert Image.open(folder / "out" / "grid.png").width > 8


def test_an_image_depends_on_its_number_alone_and_a_part_may_be_known(folder):
    mask = ["--inpaint", "first", "--known", str(folder / "given.npz")]
    mask += ["--mask", str(folder / "mask.png"), "--task", "both"]
    first, second = sample(folder, *mask, "--batch_size", "8")
    known, kept = np.load(folder / "given.npz")["arr_0"], np.tri(8) == 0
    np.testing.assert_array_equal(first["arr_0"][4][kept], known[1][kept])
    again = sample(folder, *mask, "--batch_size", "8", "--num_samples", "2")
    np.testing.assert_array_equal(again[1]["arr_0"], second["arr_0"][:2])
    assert not np.array_equal(second["arr_0"][0], second["arr_0"][1])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"task": "images"}, "task is 'images'; allowed: image, condition, both, coarse"),
        ({"task": "image"}, "given is none with task 'image'; allowed: pictures with every task"),
        ({"task": "both", "given": ("a",)}, "given is 'a' with task 'both'"),
        ({"task": "condition", "given": ("a",), "derive": True}, "derive is given with task 'cond"),
        (
            {"task": "coarse", "given": ("a",), "strength": 1.0},
            "strength is 1.0 with task 'coarse'",
        ),
        ({"task": "both", "strength": 0.5}, "strength is 0.5 with task 'both'; allowed: between"),
        ({"task": "both", "mask": "a"}, "inpaint, known is missing beside the other of inpaint"),
        (
            {"task": "image", "given": ("a",), "inpaint": "second", "known": "a", "mask": "b"},
            "inpaint is 'second' with task 'image'; allowed: first, which is drawn",
        ),
        ({"task": "both", "joint_scale": -1.0}, "joint_scale is -1.0; allowed: 0 to 100"),
        (
            {"task": "image", "given": ("a",), "others": ("r",)},
            "given is 'a' with task 'image' and 1 others; allowed: 2, with a comma",
        ),
        ({"task": "both", "others": ("r",), "weights": (1.0,)}, r"weights is \(1.0,\) with 1 oth"),
    ],
)
def test_a_request_that_cannot_be(fields, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        PairsRequest(**fields)


def test_runs_that_are_combined_draw_an_image_each(folder, capsys):
    """One whose weight is 0 changes nothing of what the first image is."""
    line = ["train", "--from", str(folder / "digits"), "--pair", "blur", "--workdir"]
    assert main([*line, str(folder / "blur"), "--config.train.steps=2"]) == 0
    given = ["--task", "image", "--given", str(folder / "given.npz"), "--derive"]
    one, _ = sample(folder, *given)
    first, second = sample(folder, *given, "--others", str(folder / "blur"), "--weights", "1,0")
    assert np.abs(first["arr_0"].astype(int) - one["arr_0"]).max() <= 1
    known = np.load(folder / "given.npz")["arr_0"][0] / np.float32(127.5) - 1
    blurred = np.load(folder / "out" / "second_2.npz")["arr_0"]
    np.testing.assert_array_equal(blurred[0], np.rint((blur(known) + 1) * 127.5))
    np.testing.assert_array_equal(second["arr_0"][0], np.rint((edges(known) + 1) * 127.5))
    told = json.loads((folder / "out" / "pairs.json").read_text())
    assert told["others"][0]["workdir"].endswith("blur")
    assert told["weights"] == [1, 0]

    flags = ["--task", "both", "--output", str(folder / "none"), "--others", str(folder / "digits")]
    capsys.readouterr()
    assert main(["sample", "--workdir", str(folder / "run"), *flags]) == 2
    said = f"error: others is '{folder / 'digits'}', whose model is of single images; allowed: a"
    assert said in capsys.readouterr().err


def test_who_cannot_draw_pairs_says_so(folder, capsys):
    flags = ["--task", "both", "--output", str(folder / "none")]
    assert main(["sample", "--workdir", str(folder / "digits"), *flags]) == 2
    assert "whose model is of single images; allowed: a run of python" in capsys.readouterr().err
    given = ["--given", str(folder / "mask.png"), "--task", "image"]
    assert main(["sample", "--workdir", str(folder / "run"), *flags, *given]) == 2
    assert "error: given is" in capsys.readouterr().err
    assert main(["sample", "--workdir", str(folder / "run"), *flags, "--step_cache=fora"]) == 2
    assert "error: step_cache is 'fora' for pairs; allowed: none" in capsys.readouterr().err
    assert not (folder / "none").exists()
