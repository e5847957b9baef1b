"""Command lines that nobody means: no traceback, no hang, and exit codes as documented."""

import argparse
import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_moe.config.files import to_dict
from tests.fuzz.bounds import FEW, MANY, bounded
from tests.fuzz.commands import COMMANDS, Command, check, parser_of
from tests.fuzz.house import CONFIG

_NUMBERS = """\
0 1 2 3 -1 10 0.5 1e3 1e-300 1e400 nan inf -inf -0 0x10 1_000 ٣ 1,
999999999999 2147483648 -9223372036854775809
"""
_TEXTS = """\
, a none true [] {} ü 日本 %s%d{} ' ../.. ~ name/of-a-model s3://bucket/x a:b : = --
0,1 3,3 1,-1 0,,1 0.1,0.2 0.2,0.1 1:2 2:1
"""
_PATHS = """\
run dense exported drawn set prepared latents pictures autoencoder empty . loop nowhere missing
missing/deeper text.txt/below /proc/none/x tiny.py tiny.py:x text.txt latin.txt mask.png
pictures.zip edm.zip samples.npz statistics.npz latent.npz dit.safetensors promoe.safetensors
foreign.safetensors dit.json results.json analysis.json run/config.json run/analysis
new new.png new.html new.json new.npz new.safetensors new.pt
"""
NUMBERS = st.sampled_from([*_NUMBERS.split(), "1" * 5000])
TEXTS = st.sampled_from([*_TEXTS.split(), "", " ", "x" * 300, "a\nb", "caf\udce9"])
PATHS = st.sampled_from(_PATHS.split())
ANYTHING = st.one_of(NUMBERS, TEXTS, PATHS)


def fields(values: object, prefix: str = "") -> list[str]:
    """Dotted names of all fields of a config, groups of them too."""
    if not isinstance(values, dict):
        return []
    names = [f"{prefix}{name}" for name in values]
    return names + [n for name in values for n in fields(values[name], f"{prefix}{name}.")]


OVERRIDES = st.builds(
    "--config.{}={}".format,
    st.sampled_from([*fields(to_dict(CONFIG)), "", "model.", "nothing", "model.moe.router.x.y"]),
    st.one_of(
        NUMBERS,
        TEXTS,
        st.sampled_from(["ddpm", "rectified_flow", "expert_choice", "softmax", "bfloat16", "full"]),
        st.sampled_from(["prepared", "patches", "digits", "set", "latents", "pictures"]),
    ),
)


def flags(parser: argparse.ArgumentParser) -> st.SearchStrategy[str]:
    """--flag=VALUE of any flag that the parser knows."""

    def of(action: argparse.Action) -> st.SearchStrategy[str]:
        name = action.option_strings[-1]
        if action.nargs == 0:
            return st.just(name)
        values = ANYTHING
        if action.choices:
            values = st.one_of(st.sampled_from([str(c) for c in action.choices]), TEXTS)
        elif action.type in (int, float):
            values = st.one_of(NUMBERS, NUMBERS, TEXTS)
        return values.map(lambda value: f"{name}={value}")

    known = [a for a in parser._actions if a.option_strings and a.dest != "help"]
    return st.one_of([of(action) for action in known])


@functools.cache
def command_lines(command: Command) -> st.SearchStrategy[list[str]]:
    """The command's own line with other flags, mostly; sometimes without some, or any words."""
    more = [flags(parser_of(command)) for _ in range(3)]
    if command.overrides:
        more += [OVERRIDES, OVERRIDES]
    # A flag that comes last counts.
    longer = st.lists(st.one_of(more), max_size=4).map(lambda new: [*command.line, *new])
    shorter = st.lists(st.one_of(*more, st.sampled_from(command.line)), max_size=5)
    return st.one_of(longer, longer, longer, shorter, st.lists(ANYTHING, max_size=3))


def test_the_plan_of_the_plain_line(copy):
    # The lines of the others are those of `test_files.test_whole_files_are_taken`.
    assert not check(COMMANDS["plan"], COMMANDS["plan"].line, copy)


@pytest.fixture
def run(copy):
    def call(name: str, data: st.DataObject) -> None:
        command = COMMANDS[name]
        line = data.draw(command_lines(command))
        check(command, line, copy)

    return call


@pytest.mark.parametrize("name", COMMANDS)
@bounded(max_examples=FEW)
@given(data=st.data())
def test_any_command_line(run, name, data):
    run(name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@bounded(max_examples=MANY)
@given(data=st.data())
def test_many_command_lines(run, name, data):
    run(name, data)
