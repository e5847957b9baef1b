"""The program `dit-moe`, without installing it; tests/test_wheel.py installs it."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import dit_moe
from dit_moe.commands.program import main
from dit_moe.config import ConfigError
from dit_moe.config.files import load_file
from dit_moe.config.verbs import VERBS, speaking_of_verbs, spoken

ROOT = Path(__file__).parent.parent


@pytest.fixture
def installed(monkeypatch):
    """`eval` under the name that an installation gives it."""
    spec = importlib.util.spec_from_file_location("dit_moe.eval", ROOT / "eval" / "__init__.py")
    package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "dit_moe.eval", package)
    monkeypatch.setattr(dit_moe, "eval", package, raising=False)
    spec.loader.exec_module(package)
    yield
    for name in [name for name in sys.modules if name.startswith("dit_moe.eval.")]:
        del sys.modules[name]


def test_help_teaches(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert main([]) == 0
    assert capsys.readouterr().out == text
    for name, verb in VERBS.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {name} ")]
        assert line.endswith(f" {verb.help}")
    assert "dit-moe train --config configs/digits.py --workdir runs/digits\n" in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("dit-moe 0.")


def test_an_unknown_verb_is_one_sentence(capsys):
    assert main(["trian", "--help"]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err == (
        f"error: verb is 'trian'; allowed: {', '.join(VERBS)} (see dit-moe --help)\n"
    )


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.usefixtures("installed")
def test_help_of_a_verb(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: dit-moe {verb} [-h]")
    # Some have verbs of their own.
    example = re.search(rf"dit-moe {verb} (\w+ )?--", text.partition("example")[2])
    assert example or verb == "prepare-beam"
    assert "python " not in text


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.usefixtures("installed")
def test_a_wrong_flag_of_a_verb(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--no_such_flag"])
    assert stop.value.code == 2
    assert f"\ndit-moe {verb}: error: " in capsys.readouterr().err


def test_errors_name_verbs(tmp_path, capsys):
    code = main(["preview", "--input", str(tmp_path), "--output", str(tmp_path / "a.png")])
    assert code == 2
    assert "allowed: a folder that dit-moe prepare has finished\n" in capsys.readouterr().err


def test_commands_are_named_as_they_were_called():
    text = "python -m dit_moe.data.prepare, python -m dit_moe.data.prepare.beam or python train.py."
    assert spoken(text) == text
    with speaking_of_verbs():
        assert spoken(text) == "dit-moe prepare, dit-moe prepare-beam or dit-moe train."
        longer = "python -m dit_moe.plan" + "ner"
        assert spoken(longer) == longer
    assert spoken(text) == text


def test_configs_of_the_package_are_found_from_any_folder(tmp_path, monkeypatch):
    expected = load_file(str(ROOT / "configs" / "digits.py") + ":dit")
    monkeypatch.chdir(tmp_path)
    assert load_file("configs/digits.py:dit") == expected
    with pytest.raises(ConfigError, match=r"^--config is 'configs/none.py', which is not a file"):
        load_file("configs/none.py")
    for elsewhere in ("digits.py", "my/configs/digits.py", "configs/../configs/digits.py"):
        with pytest.raises(ConfigError, match="which is not a file"):
            load_file(elsewhere)
    own = tmp_path / "configs" / "digits.py"
    own.parent.mkdir()
    own.write_text("def get_config():\n    return 3\n")
    with pytest.raises(ConfigError, match="get_config returned 3"):
        load_file("configs/digits.py")
