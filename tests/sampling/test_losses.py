"""Losses by import path: what is read of them, and that samples follow them."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from dit_moe.commands.sample import main
from dit_moe.config import ConfigError, DataConfig
from dit_moe.models.parameters import init_parameters
from dit_moe.sampling.losses import read_losses
from dit_moe.sampling.request import build_request
from dit_moe.sampling.sampler import build_sampler, image_keys
from tests.analysis.fresh_run import write_fresh_run
from tests.tiny import DIT_MOE, tiny

MODULE = """
import jax.numpy as jnp

def bright(x, y):
    return 20 * (x.mean(axis=(1, 2, 3)) - 0.2 * y) ** 2

def of_pixels(x, y):
    return x

def failing(x, y):
    raise RuntimeError("no weights")
"""
CONFIG = dataclasses.replace(tiny(DIT_MOE), data=DataConfig("digits"))


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "steering_losses.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_samples_follow_a_sum_of_losses_in_their_windows():
    """Each image is drawn to its own aim, which its label tells; two halves are one whole; with a
    weight of 0 it is the program without a loss."""
    request = build_request(
        CONFIG, num_samples=6, integration={"solver": "euler", "steps": 8}, guidance={"scale": 1}
    )
    keys = jax.random.key(0)
    parameters = jax.jit(lambda key: init_parameters(CONFIG.model, key))(keys)
    labels = np.arange(6, dtype=np.int32)

    inputs = parameters, image_keys(0, labels), labels

    def sampler(*texts):
        losses = read_losses([f"steering_losses:bright{text}" for text in texts], CONFIG.model)
        return build_sampler(CONFIG, request, losses=losses)

    def draw(*texts):
        return np.asarray(sampler(*texts)(*inputs))

    programs = [sampler(*texts).lower(*inputs).as_text() for texts in ((), (",weight=0",))]
    assert programs[0] == programs[1]
    plain, one = draw(), draw(",weight=2")
    np.testing.assert_allclose(draw("", ",weight=1"), one, atol=1e-5)

    def distance(x):
        return np.abs(x.mean(axis=(1, 2, 3)) - 0.2 * labels)

    assert (distance(one)[1:] < 0.7 * distance(plain)[1:]).all()
    late = draw(",weight=2,from=0,to=0.5")
    assert distance(one).mean() < distance(late).mean() < distance(plain).mean()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steering_losses", "steer_loss is 'steering_losses'; allowed: MODULE:FUNCTION, such as"),
        ("no_module:f", "is 'no_module:f', which cannot be imported: ModuleNotFoundError"),
        ("steering_losses:no", "cannot be imported: AttributeError: .*; allowed: a module of this"),
        (
            "steering_losses:of_pixels",
            r"labels \[2\] gives float32 \[2, 8, 8, 1\]; allowed: a f",
        ),
        ("steering_losses:failing", "fails: RuntimeError: no weights; allowed: a function of JAX"),
        ("steering_losses:bright,until=1", "where 'until=1' is no field; allowed: weight=NUMBER"),
        ("steering_losses:bright,weight=x", "where 'weight=x' is no field"),
        ("steering_losses:bright,weight=-1", "allowed: a weight of 0 or more, and times of which"),
        ("steering_losses:bright,from=0.5,to=0.2", "from the lower to the higher one"),
    ],
)
def test_what_is_no_loss(text, said):
    with pytest.raises(ConfigError, match=said):
        read_losses([text], CONFIG.model)


def test_the_command_says_what_steered(tmp_path, capsys):
    run = write_fresh_run(tmp_path / "run", CONFIG)
    line = ["--workdir", str(run), "--num_samples=4", "--solver=euler", "--steps=2"]
    loss = ["--steer_loss", "steering_losses:bright,weight=0.5,to=0.8"]
    assert main([*line, *loss, "--output", str(tmp_path / "out")]) == 0
    (told,) = json.loads((tmp_path / "out" / "samples.json").read_text())["losses"]
    source = told.pop("source")
    assert told == {"name": loss[1].split(",")[0], "weight": 0.5, "window": [0.0, 0.8]}
    assert len(source) == 64
    cached = [*line, *loss, "--step_cache=fora", "--output", str(tmp_path / "none")]
    capsys.readouterr()
    assert main(cached) == 2
    assert "with step_cache, through which there is no gradient" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
