"""What the fuzz tests share: the house is built once, and its stubs are in place meanwhile."""

from pathlib import Path

import pytest

from tests.fuzz import house as making
from tests.fuzz.commands import Copy


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `house.build`. Not to be written into."""
    folder = tmp_path_factory.mktemp("fuzz") / "house"
    folder.mkdir()
    making.build(folder)
    return folder


@pytest.fixture(scope="session")
def copy(house: Path) -> Copy:
    """A copy of it, to be mended after every call."""
    return Copy(house, house.with_name("copy"))


@pytest.fixture(autouse=True)
def _stubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    making.stub(monkeypatch)
