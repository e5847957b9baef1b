"""Every command, called in process; it must end as documented, whatever it is given."""

import argparse
import contextlib
import dataclasses
import io
import os
import re
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

import pytest

EXIT_CODES = (0, 1, 2, 130)
LIMIT = 120.0
"""Seconds after which a command counts as hanging, on a busy machine too."""


class Hang(BaseException):
    """The command did not end; no command catches it."""


@dataclasses.dataclass(frozen=True)
class Command:
    """One command with a line of flags that it takes, in the folder of `house.build`."""

    module: str
    line: tuple[str, ...]
    overrides: bool = False
    """It takes --config.FIELD=VALUE too."""

    @property
    def main(self) -> Callable[[list[str]], int]:
        """The function behind it."""
        return import_module(self.module).main


COMMANDS = {
    "train": Command(
        "dit_moe.commands.train", ("--config=tiny.py", "--workdir=new"), overrides=True
    ),
    "sample": Command(
        "dit_moe.commands.sample", ("--workdir=run", "--output=new", "--num_samples=3")
    ),
    "calibrate": Command("dit_moe.commands.calibrate", ("--workdir=run", "--images=2")),
    "prepare": Command(
        "dit_moe.commands.prepare",
        ("--input=pictures", "--output=new", "--autoencoder=none", "--image_size=8", "--workers=1"),
    ),
    "preview": Command("dit_moe.commands.preview", ("--input=set", "--output=new.png")),
    "convert": Command(
        "dit_moe.commands.convert",
        ("--checkpoint=dit.safetensors", "--family=dit", "--model_json=dit.json", "--output=new"),
        overrides=True,
    ),
    "export": Command("dit_moe.commands.convert", ("--workdir=run", "--output=new")),
    "store": Command("dit_moe.commands.store", ("--workdir=run", "--output=new")),
    "upcycle": Command(
        "dit_moe.commands.convert",
        (
            "--upcycle=dense",
            "--config=tiny.py",
            "--output=new",
            "--config.model.moe.router.name=top_k",
            "--config.model.moe.unconditional_expert=false",
            "--config.model.moe.shared_hidden_ratio=0",
            "--config.model.moe.hidden_ratio=4",
        ),
        overrides=True,
    ),
    "cut": Command(
        "dit_moe.commands.convert",
        (
            "--cut=dense",
            "--config=tiny.py",
            "--output=new",
            "--config.model.moe.router.name=null_top_k",
            "--config.model.moe.unconditional_expert=false",
            "--config.model.pregate.heads=2",
        ),
        overrides=True,
    ),
    "aggregate": Command("dit_moe.commands.convert", ("--aggregate", "run", "run", "--output=new")),
    "compress": Command(
        "dit_moe.commands.compress",
        ("--workdir=run", "--output=new", "--steps=drop:keep=1,by=random"),
    ),
    "analysis": Command("dit_moe.commands.analysis", ("--workdir=run", "--output=new")),
    "place": Command("dit_moe.commands.place", ("--workdir=run", "--devices=2", "--output=new")),
    "report": Command("dit_moe.commands.report", ("--workdir=run", "--output=new.html")),
    "sweep": Command("dit_moe.commands.sweep", ("--grid=grid.toml", "--output=new")),
    "play": Command("dit_moe.commands.play", ("--workdir=run",)),
    "pairs_train": Command(
        "dit_moe.commands.pairs_train",
        ("--from=run", "--pair=edges", "--workdir=new"),
        overrides=True,
    ),
    "pairs_sample": Command(
        "dit_moe.commands.pairs_sample",
        ("--workdir=pairs", "--task=image", "--given=samples.npz", "--output=new"),
    ),
    "text_train": Command(
        "dit_moe.commands.text_train", ("--workdir=new", "--config.data.below=20"), overrides=True
    ),
    "text_sample": Command(
        "dit_moe.commands.text_sample", ("--workdir=texts", "--sources=text.txt", "--output=new")
    ),
    "text_eval": Command("dit_moe.commands.text_eval", ("--workdir=texts", "--output=new.json")),
    "plan": Command("dit_moe.commands.plan", ("--config=tiny.py",), overrides=True),
    "post_hoc_ema": Command(
        "dit_moe.commands.post_hoc_ema",
        ("--workdir=run", "--sigma_rel=0.1", "--output=new"),
    ),
    "fid": Command(
        "eval.fid",
        (
            "--samples=samples.npz",
            "--reference=set",
            "--features=digits",
            "--metrics=fid",
            "--output=new.json",
        ),
    ),
    "digits": Command("eval.classes.command", ("--samples=samples.npz", "--output=new.json")),
    "weights": Command(
        "eval.features.weights", ("--network=dinov2", "--check=foreign.safetensors")
    ),
}


def parser_of(command: Command) -> argparse.ArgumentParser:
    """The parser that the command builds."""
    found = []

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        found.append(parser)
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        command.main([])
    return found[0]


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """Keeps the output to itself; what was said on stderr can be read from what is yielded."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        yield said


def check(command: Command, argv: Sequence[str], copy: "Copy", given: str = "") -> str:
    """Runs the command in a copy of the house, and mends the copy; returns what it says on stderr,
    or nothing if it succeeds.

    Raises:
      AssertionError: it ends in any way but with an exit code of `EXIT_CODES`, and where it fails,
        a sentence; the message has what is needed to do it again.
    """
    told = " where ".join(filter(None, (f"{command.module} {list(argv)!r}", given)))
    failure = ""
    with contextlib.chdir(copy.folder), _quiet() as said:
        try:
            with _limit(LIMIT):
                code = command.main(list(argv))
        except SystemExit as stop:
            code = stop.code or 0
        except Hang:
            code, failure = None, f"does not end:\n{traceback.format_exc(limit=-12)}"
        except Exception:
            code, failure = None, f"raises:\n{traceback.format_exc(limit=-12)}"
    copy.mend()
    assert not failure, f"{told} {failure}"
    assert code in EXIT_CODES, f"{told} ends with {code!r}"
    text = said.getvalue()
    assert "Traceback" not in text, f"{told} says:\n{text}"
    if code in (1, 2):
        assert re.search(r"error: .", text), f"{told} ends with {code}, but says no error:\n{text}"
    return text if code else ""


class Copy:
    """A copy of the house in which a command may write anywhere; `mend` makes it new again."""

    def __init__(self, house: Path, folder: Path):
        self._house = house
        self.folder = folder
        shutil.copytree(house, folder, symlinks=True)
        self._there = self._entries()

    def mend(self) -> None:
        """Takes away what is new, and puts back what is changed or gone."""
        now = self._entries()
        for name in sorted(now.keys() | self._there.keys()):
            if now.get(name) == self._there.get(name):
                continue
            path, origin = self.folder / name, self._house / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            if not path.parent.is_dir():
                continue  # it was in a new folder
            if origin.is_dir() and not origin.is_symlink():
                shutil.copytree(origin, path, symlinks=True)
            elif origin.is_symlink() or origin.exists():
                shutil.copy2(origin, path, follow_symlinks=False)
        self._there = self._entries()

    def _entries(self) -> dict[str, tuple[int, ...]]:
        """What tells whether anything was written, by name."""
        found = {}
        for root, folders, files in os.walk(self.folder):
            for path in (Path(root, name) for name in (*folders, *files)):
                about = path.lstat()
                # The time of a folder changes with what lies in it, which has entries of its own.
                times = () if path.is_dir() else (about.st_mtime_ns, about.st_size)
                found[str(path.relative_to(self.folder))] = (about.st_mode, about.st_ino, *times)
        return found
