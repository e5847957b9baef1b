"""WebDataset's tars and the hub's parquet files as inputs."""

import io
import json
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit_moe.commands.prepare import main
from dit_moe.config import ConfigError
from dit_moe.data import picture_files, prepared
from dit_moe.data.prepare import inputs_parquet, inputs_webdataset
from dit_moe.data.prepare.input import Entry, Input, listing_digest
from dit_moe.data.prepare.inputs import open_input
from dit_moe.storage.pictures import ImageError


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def reason(found: Input, key: str) -> str:
    (entry,) = (entry for entry in found.entries if entry.key == key)
    with pytest.raises(ImageError) as info:
        found.reader.read(entry)
    return str(info.value)


def refusal(path: Path | str, split: str = "train", source="auto") -> str:
    with pytest.raises(ConfigError) as info:
        open_input(source, str(path), split)
    assert "\n" not in str(info.value)
    return str(info.value)


def test_listings_without_places_keep_their_digest():
    assert listing_digest([Entry("a/b.png", 1)]) == listing_digest([["a/b.png", 1]])
    assert listing_digest([Entry("a", 1, (0, 1))]) != listing_digest([Entry("a", 1, (0, 2))])


# WebDataset.


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(numbers: range, kind: str = "cls", label=str) -> dict[str, bytes]:
    """As its TarWriter names them: the key, a dot, what it is."""
    members = {}
    for i in numbers:
        members[f"n{i:03d}_7.jpg"] = png(i)
        members[f"n{i:03d}_7.{kind}"] = label(i % 3).encode()
    return members


def test_webdataset(tmp_path):
    tar(tmp_path / "in-000.tar", samples(range(2)))
    more = {
        **samples(range(2, 4)),
        "n009_7.png": png(9),
        "lone.json": b"{}",
        "lone.x.y": b"",
        "n": b"",
    }
    tar(tmp_path / "in-001.tar", {"./deep/a.PNG": png(7), "./deep/a.cls": b" 4\n", **more})
    (tmp_path / "in-000.json").write_text("{}")  # as img2dataset leaves them beside
    found = open_input("auto", str(tmp_path), "train")
    assert found.kind == "webdataset"
    assert found.classes == ("0", "1", "2", "3", "4")
    assert [(entry.key, entry.label) for entry in found.entries] == [
        ("in-000.tar/n000_7.jpg", 0),
        ("in-000.tar/n001_7.jpg", 1),
        ("in-001.tar/deep/a.png", 4),
        ("in-001.tar/n002_7.jpg", 2),
        ("in-001.tar/n003_7.jpg", 0),
        ("in-001.tar/n009_7.png", -1),
    ]
    read = [found.reader.read(entry) for entry in found.entries[:5]]
    assert read == [(png(0), 0), (png(1), 1), (png(7), 4), (png(2), 2), (png(3), 0)]
    assert reason(found, "in-001.tar/n009_7.png") == "no label"
    assert found.ignored == 2
    for path in ("in-{000..001}.tar", "in-*.tar"):
        again = open_input("auto", str(tmp_path / path), "train")
        assert (again.digest, again.entries) == (found.digest, found.entries)
    (one,) = {open_input("auto", str(tmp_path / "in-000.tar"), "train").digest} - {found.digest}
    tar(tmp_path / "in-000.tar", samples(range(1, 3)))
    assert open_input("auto", str(tmp_path / "in-000.tar"), "train").digest != one


def test_a_tar_beside_class_folders_is_a_loose_file(tmp_path):
    tar(tmp_path / "old.tar", samples(range(2)))
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png(1))
    found = open_input("auto", str(tmp_path), "train")
    assert (found.kind, found.classes, found.ignored) == ("image_folder", ("cat", "dog"), 1)


def test_labels_of_webdataset(tmp_path):
    names = ["cat", "dog", "owl"]
    kinds = {
        "number.json": ("json", str),
        "object.json": ("json", lambda i: json.dumps({"label": i, "width": 8})),
        "named.json": ("json", lambda i: json.dumps({"label": names[i]})),
        "named.txt": ("txt", lambda i: names[i] + "\n"),
        "number.txt": ("txt", str),
    }
    for case, (kind, label) in kinds.items():
        path = tar(tmp_path / f"{case}.tar", samples(range(4), kind, label))
        found = open_input("auto", str(path), "train")
        assert found.classes == (tuple(names) if "named" in case else ("0", "1", "2"))
        assert [entry.label for entry in found.entries] == [0, 1, 2, 0]
    # A caption beside the class is not asked.
    both = {**samples(range(2)), "n000_7.txt": b"a cat on a wall", "n001_7.json": b'{"label": 9}'}
    assert open_input("auto", str(tar(tmp_path / "both.tar", both)), "train").classes == ("0", "1")


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("pyd", b"\x80\x04", "only jpg, pyd (pickles are never read"),
        ("seg", b"", "has no label that can be read for 'n000_7', only jpg, seg"),
        ("cls", b"cat", "a .cls that cannot be read"),
        ("cls", b"\xff", "a .cls that cannot be read"),
        ("cls", b"-1", "the label -1"),
        ("cls", b"99999999999", "the label 99999999999"),
        ("json", b"[" * 100_000, "a .json that cannot be read"),
        ("json", b'{"label": 1.5}', "the label 1.5"),
        ("json", b'{"label": true}', "the label True"),
        ("json", b'{"caption": "a cat"}', "has no label that can be read"),
        ("txt", b"word " * 30, "a label of 149 letters, which is no name of a class"),
        ("txt", b"9" * 5000, "a label of 5000 letters"),
        ("txt", bytes(2**20 + 1), "a .txt of 1,048,577 bytes"),
        ("txt", b"two\nlines", "has a class named 'two\\nlines'"),
    ],
)
def test_wrong_labels_of_webdataset(tmp_path, kind, content, message):
    members = {"n000_7.jpg": png(0), f"n000_7.{kind}": content}
    assert message in refusal(tar(tmp_path / "a.tar", members))


def test_samples_that_are_unclear(tmp_path):
    members = samples(range(1))
    path = tmp_path / "a.tar"
    assert "'n000_7' the pictures jpg and png" in refusal(tar(path, {**members, "n000_7.png": b""}))
    assert "a second file of this name" in refusal(tar(path, {**members, "n000_7.JPG": b""}))
    mixed = {"a.jpg": png(0), "a.txt": b"1", "b.jpg": png(0), "b.txt": b"cat"}
    assert "numbers (1) and names ('cat') as labels" in refusal(tar(path, mixed))
    assert "holds no images" in refusal(tar(path, {"a.cls": b"1"}))


def test_tars_that_cannot_be_read(tmp_path, monkeypatch):
    path = tar(tmp_path / "a.tar", samples(range(3)))
    content = path.read_bytes()
    assert len(content) == 10240
    for wrong in (
        content[:3000],  # amid a file
        content[:4096],  # between two
        content + content,  # cat a.tar b.tar
        content[:1024] + b"x" + content[1025:],
        b"",
        b"text",
        b"\x1f\x8b" + bytes(600),
    ):
        path.write_bytes(wrong)
        assert "is not a whole tar file that is not compressed" in refusal(path)
    # A header that would have much read at once.
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 2**26
    with path.open("wb") as file:
        file.write(info.tobuf())
        file.truncate(2**26 + 2048)
    tracemalloc.start()
    assert "a header of 67,108,864 bytes" in refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23
    path.write_bytes(content)
    found = open_input("auto", str(path), "train")
    monkeypatch.setattr(picture_files, "MAX_BYTES", 10)
    assert reason(found, "a.tar/n000_7.jpg") == "file too large"
    path.unlink()
    monkeypatch.undo()
    assert reason(found, "a.tar/n000_7.jpg") == "unreadable"


def test_links_in_tars_are_left_out(tmp_path):
    path = tar(tmp_path / "a.tar", samples(range(1)))
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"n{kind.decode()}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    found = open_input("auto", str(path), "train")
    assert [entry.key for entry in found.entries] == ["a.tar/n000_7.jpg"]


def test_splits_by_the_names_of_files(tmp_path):
    for name in ("train-0", "train-1", "val-0"):
        tar(tmp_path / f"in/imagenet-{name}.tar", samples(range(2)))
    found = open_input("auto", str(tmp_path / "in"), "train")
    assert [entry.key for entry in found.entries[::2]] == [
        f"imagenet-train-{i}.tar/n000_7.jpg" for i in range(2)
    ]
    assert len(open_input("auto", str(tmp_path / "in"), "validation").entries) == 2
    # A pattern names files itself.
    assert len(open_input("auto", str(tmp_path / "in/*-val-*.tar"), "train").entries) == 2
    message = refusal(tmp_path / "in", "test")
    assert "split is 'test'" in message
    assert "of the splits: train, validation; allowed" in message
    tar(tmp_path / "in/more.tar", samples(range(2)))
    assert "none, train, validation" in refusal(tmp_path / "in")
    assert "no file that is there" in refusal(tmp_path / "in/imagenet-train-{0..2}.tar")
    assert "no file that is there" in refusal(tmp_path / "*.tar")
    assert "has no .parquet files" in refusal(tmp_path / "in", source="parquet")
    assert "does not end in .parquet" in refusal(tmp_path / "in/more.tar", source="parquet")
    assert "more than 1,000,000 files" in refusal(tmp_path / "{0..9999999}.tar")


# Parquet.

NAMES = ["tench", "cat, tabby", "dog"]


def parquet(path: Path, labels: list, names: list | None = NAMES, **columns) -> Path:
    """As the datasets package writes it: image struct<bytes, path>, label int64."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    image = [{"bytes": png(i), "path": f"{i}.png"} for i in range(len(labels))]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    arrays = {"image": pa.array(image, kind), "label": pa.array(labels, pa.int64()), **columns}
    table = pa.table(arrays)
    if names is not None:
        features = {
            "image": {"_type": "Image"},
            "label": {"names": names, "_type": "ClassLabel"},
        }
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    return path


def test_parquet(tmp_path):
    data = tmp_path / "data"
    parquet(data / "train-00000-of-00002.parquet", [0, 2, 1, None, -1])
    parquet(data / "train-00001-of-00002.parquet", [1, 3])
    parquet(data / "test-00000-of-00001.parquet", [-1])
    found = open_input("auto", str(tmp_path), "train")
    assert found.kind == "parquet"
    assert found.classes == tuple(NAMES)
    keys = [
        f"data/train-0000{shard}-of-00002.parquet/{row:08d}"
        for shard, row in [*((0, i) for i in range(5)), (1, 0), (1, 1)]
    ]
    assert [entry.key for entry in found.entries] == keys
    read = [found.reader.read(found.entries[i]) for i in (2, 0, 1, 5)]
    assert read == [(png(2), 1), (png(0), 0), (png(1), 2), (png(0), 1)]
    assert reason(found, keys[3]) == reason(found, keys[4]) == "no label"
    assert reason(found, keys[6]) == "label past the classes"
    assert inputs_parquet._group.cache_info().maxsize == 2
    test = open_input("auto", str(tmp_path), "test")
    assert len(test.entries) == 1
    assert test.digest != found.digest


def test_parquet_without_names_of_classes(tmp_path):
    found = open_input("auto", str(parquet(tmp_path / "a.parquet", [0, 3], names=None)), "train")
    assert found.classes == ("0", "1", "2", "3")
    pa = pytest.importorskip("pyarrow")
    bare = parquet(tmp_path / "b.parquet", [0, 1], image=pa.array([png(5), None], pa.binary()))
    found = open_input("auto", str(bare), "train")
    assert found.reader.read(found.entries[0]) == (png(5), 0)
    assert reason(found, "b.parquet/00000001") == "no bytes, but a path"


def test_parquet_that_cannot_be_used(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    parquet(path, [0, 1], image=pa.array(["a", "b"]))
    assert "has 0 columns that may be the image" in refusal(path)
    assert "its columns: image string, label int64" in refusal(path)
    parquet(path, [0, 1], label=pa.array([0.5, 1.0]))
    assert "0 columns that may be the label; allowed: one of whole numbers" in refusal(path)
    parquet(path, [0, 10**12], names=None)
    assert "has 1,000,000,000,001 classes; allowed: 100,000" in refusal(path)
    parquet(path, [0], names=[1])
    assert "has metadata of the Hugging Face hub that cannot be read" in refusal(path)
    parquet(tmp_path / "b.parquet", [0, 1], names=["a", "b"])
    parquet(path, [0, 1])
    assert "'b.parquet' has other columns or classes than 'a.parquet'" in refusal(tmp_path)
    content = path.read_bytes()
    for wrong in (content[:-20], content[len(content) // 2 :], b"", b"PAR1" + bytes(50) + b"PAR1"):
        path.write_bytes(wrong)
        assert "'a.parquet' cannot be read as parquet: " in refusal(path)
    path.write_bytes(content)
    monkeypatch.setattr(inputs_parquet, "_MAX_GROUP", 100)
    assert "which are read at once; allowed: 100 (write it with a smaller" in refusal(path)
    monkeypatch.undo()
    found = open_input("auto", str(path), "train")
    path.write_bytes(content[:100])
    inputs_parquet._group.cache_clear()
    assert reason(found, "a.parquet/00000001") == "unreadable"
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "needs pyarrow: pip install 'dit-moe[parquet]'" in refusal(path)


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_set_is_made_of_shards(tmp_path, capsys, kind):
    """By the command, with worker processes; the pictures are those of their labels."""
    if kind == "parquet":
        path = parquet(tmp_path / "a.parquet", [0, 2, 1])
    else:
        path = tar(tmp_path / "a.tar", samples(range(3)))
    flags = ["--autoencoder", "none", "--image_size", "8", "--workers", "1"]
    output = tmp_path / "out"
    assert main(["--input", str(path), "--output", str(output), *flags]) == 0
    made = prepared.Prepared(output)
    assert made.label.tolist() == [0, 2, 1] if kind == "parquet" else [0, 1, 2]
    assert [int(made[i]["image"][0, 0, 0]) for i in range(3)] == [0, 1, 2]
    assert f"3 pictures in 3 classes ({kind})" in capsys.readouterr().out
    np.testing.assert_array_equal(made[0]["image"].shape, (8, 8, 3))


def test_nothing_of_a_tar_is_kept_in_memory():
    """Its reader goes to every worker process with every task."""
    import pickle

    reader = inputs_webdataset._TarReader(Path("/somewhere"))
    assert len(pickle.dumps(reader)) < 300
