"""The commands: what a checkout calls each, and which verb of the program `dit-moe` it is."""

import contextlib
import contextvars
import re
from collections.abc import Iterator
from typing import NamedTuple

PROGRAM = "dit-moe"


class Verb(NamedTuple):
    """One command."""

    module: str
    """Has `main(argv) -> exit code`. The room `eval` is called `dit_moe.eval` where it is
    installed (setup.py)."""
    line: str
    """How it is called in a checkout."""
    help: str
    """What it does, in a line."""


VERBS = {
    "train": Verb(
        "dit_moe.commands.train", "python train.py", "train a model, or go on with its training"
    ),
    "sample": Verb("dit_moe.commands.sample", "python sample.py", "draw images from a model"),
    "calibrate": Verb(
        "dit_moe.commands.calibrate",
        "python -m dit_moe.caching",
        "measure by what a model's evaluations change, which the cache teacache needs",
    ),
    "eval": Verb(
        "dit_moe.eval.fid",
        "python -m eval.fid",
        "judge samples or a model against a reference: FID and its relatives",
    ),
    "judge": Verb(
        "dit_moe.eval.classes.command",
        "python -m eval.classes",
        "judge samples of a labelled data set beside real images",
    ),
    "weights": Verb(
        "dit_moe.eval.features.weights",
        "python -m eval.features.weights",
        "tell where the weights that eval needs are published, and check them",
    ),
    "prepare": Verb(
        "dit_moe.commands.prepare",
        "python -m dit_moe.data.prepare",
        "turn pictures into a data set for training",
    ),
    "prepare-beam": Verb(
        "dit_moe.commands.prepare_beam",
        "python -m dit_moe.data.prepare.beam",
        "the same on many machines, with Apache Beam",
    ),
    "preview": Verb(
        "dit_moe.commands.preview",
        "python -m dit_moe.data.preview",
        "draw a grid of a prepared data set",
    ),
    "pairs": Verb(
        "dit_moe.commands.pairs",
        "python -m dit_moe.pairs",
        "let a model draw pairs of images, such as edges and picture, either from the other",
    ),
    "text": Verb(
        "dit_moe.commands.text",
        "python -m dit_moe.text",
        "let a model write texts from texts, such as numbers in another language",
    ),
    "plan": Verb(
        "dit_moe.commands.plan",
        "python -m dit_moe.plan",
        "estimate memory, FLOPs and step time before training",
    ),
    "sweep": Verb(
        "dit_moe.commands.sweep",
        "python -m dit_moe.sweep",
        "train the runs of a grid, by any number of workers, and fit a law to their losses",
    ),
    "convert": Verb(
        "dit_moe.commands.convert",
        "python -m dit_moe.convert",
        "import, export, upcycle, cut or aggregate models",
    ),
    "compress": Verb(
        "dit_moe.commands.compress",
        "python -m dit_moe.surgery.compress",
        "make a smaller model of a trained one: fewer experts, neurons, weights",
    ),
    "store": Verb(
        "dit_moe.commands.store",
        "python -m dit_moe.streaming",
        "write a model's experts into a file, to draw in less memory than it has",
    ),
    "place": Verb(
        "dit_moe.commands.place",
        "python -m dit_moe.placement",
        "order the experts of a model so that fewer tokens travel between devices",
    ),
    "analyse": Verb(
        "dit_moe.commands.analysis",
        "python -m dit_moe.analysis",
        "tell what the experts of a model do",
    ),
    "report": Verb(
        "dit_moe.commands.report", "python -m dit_moe.report", "write an HTML page about a run"
    ),
    "play": Verb(
        "dit_moe.commands.play",
        "python -m dit_moe.play",
        "serve a page on which a run is played with",
    ),
    "average": Verb(
        "dit_moe.commands.post_hoc_ema",
        "python -m dit_moe.training.post_hoc_ema",
        "make moving averages of any length after training",
    ),
}

_VERB_OF = {verb.line: name for name, verb in VERBS.items()}
# Whole names alone: `dit_moe.data.prepare` is the beginning of another.
_LINE = re.compile(f"(?:{'|'.join(map(re.escape, _VERB_OF))})(?!\\.?\\w)")
_as_verbs = contextvars.ContextVar("_as_verbs", default=False)


@contextlib.contextmanager
def speaking_of_verbs() -> Iterator[None]:
    """Within the block, `spoken` calls the commands as the program does."""
    token = _as_verbs.set(True)
    try:
        yield
    finally:
        _as_verbs.reset(token)


def spoken(text: str) -> str:
    """The text for the user, whose commands are called as the user called this one.

    Args:
      text: with commands as in a checkout, such as `python -m dit_moe.plan`.
    """
    if not _as_verbs.get():
        return text
    return _LINE.sub(lambda match: f"{PROGRAM} {_VERB_OF[match[0]]}", text)
