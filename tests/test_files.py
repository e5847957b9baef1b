import hashlib

import pytest

from dit_moe import files


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


def test_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content" * 100_000)
    assert files.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
