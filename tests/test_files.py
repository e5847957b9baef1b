import hashlib
import os
import sys
from pathlib import Path

import pytest

from dit_moe.config import ConfigError
from dit_moe.storage import files


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    path.write_bytes(b"old")

    def fail_half_way():
        with files.atomic(path) as temporary:
            temporary.write_bytes(b"new")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail_half_way()
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
    assert path.read_bytes() == b"old"


def test_write_makes_the_folder_and_keeps_the_suffix(tmp_path):
    path = tmp_path / "a" / "result.json"
    with files.atomic(path) as temporary:
        assert temporary.suffix == ".json"
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


def test_a_new_folder_is_whole_or_absent(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "deep/new"):
        with files.new_folder(tmp_path / name) as folder:
            (folder / "file").touch()
        assert [p.name for p in (tmp_path / name).iterdir()] == ["file"]
    with (
        pytest.raises(OSError, match="no space"),
        files.new_folder(tmp_path / "deep" / "failed"),
    ):
        raise OSError("no space")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["new"]


def test_what_no_folder_can_replace_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "full" / "inner").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    (tmp_path / "mount").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "mount")
    for name in ("file", "full", "link", "dangling", "mount"):
        with pytest.raises(ConfigError, match=r"is there already; allowed: a new one$"):
            files.new_folder(tmp_path / name).__enter__()


def test_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content" * 100_000)
    assert files.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_no_file_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(FileExistsError, match="Is there and not a file"):
            files.atomic(tmp_path / name).__enter__()
    assert (tmp_path / "link").is_fifo()


def test_a_lock_empties_nothing(tmp_path):
    path, other = tmp_path / ".lock", tmp_path / "thesis"
    path.write_text("kept")
    with files.lock(path, ConfigError("busy")):
        assert path.read_text() == "kept"
        with pytest.raises(ConfigError, match="busy"):
            files.lock(path, ConfigError("busy")).__enter__()
    path.unlink()
    for content in ("kept", None):  # of the file that the link points to, or none
        if content:
            other.write_text(content)
        path.symlink_to(other)
        with pytest.raises(ConfigError, match=r"\.lock is a link; .* remove the link$"):
            files.lock(path, ConfigError("busy")).__enter__()
        path.unlink()
        assert not content or other.read_text() == content
        other.unlink(missing_ok=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket/run", "what://bucket/run"])
def test_an_object_store_without_its_client(address, monkeypatch):
    for client in ("fsspec", "s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, client, None)
    message = f"^workdir is '{address}', which cannot be reached \\(.*gs:// gcsfs"
    with pytest.raises(ConfigError, match=message):
        files.check_reachable("workdir", address)
    files.check_reachable("workdir", "a/local/path")
