import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dit_moe.commands import prepare
from dit_moe.config import ConfigError
from dit_moe.data import idx_files
from dit_moe.data.idx_files import find_pair, read_idx
from dit_moe.data.prepare.input import Entry
from dit_moe.data.prepare.inputs import open_input
from dit_moe.data.prepared import Prepared
from dit_moe.storage.pictures import ImageError
from tests.idx import idx_bytes, write_idx

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (6, 5, 5)).astype(np.uint8)
LABELS = np.array([2, 0, 1, 2, 0, 2])


def refusal(path: Path, split: str = "train", source="idx", names=()) -> str:
    with pytest.raises(ConfigError) as info:
        open_input(source, str(path), split, class_names=names)
    assert "\n" not in str(info.value)
    return str(info.value)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("whole_folder", [False, True])
def test_pictures_and_labels(tmp_path, packed, whole_folder):
    file = write_idx(tmp_path, PICTURES, LABELS, packed=packed)
    write_idx(tmp_path, PICTURES[:2], LABELS[:2], head="t10k-")
    found = open_input("auto", str(tmp_path if whole_folder else file), "train")
    assert found.kind == "idx"
    assert found.channels == 1
    assert found.classes == ("0", "1", "2")
    assert found.entries == [Entry(f"{i:08d}", label) for i, label in enumerate(LABELS.tolist())]
    for number, entry in enumerate(found.entries):
        pixels, label = found.reader.read(entry)
        np.testing.assert_array_equal(pixels, PICTURES[number])
        assert label == LABELS[number]
    if whole_folder:
        assert len(open_input("auto", str(tmp_path), "test").entries) == 2


def test_from_files_to_a_set_with_names(tmp_path, capsys):
    write_idx(tmp_path / "in", PICTURES, LABELS)
    flags = {"input": tmp_path / "in", "output": tmp_path / "out", "autoencoder": "none"}
    flags |= {"image_size": 5, "class_names": "shirt,bag,boot,coat", "workers": 1}
    assert prepare.main([f"--{name}={value}" for name, value in flags.items()]) == 0
    assert "6 pictures in 4 classes (idx)" in capsys.readouterr().out
    stored = Prepared(tmp_path / "out")
    assert stored.card.classes == ("shirt", "bag", "boot", "coat")
    assert stored.card.shape == (5, 5, 1)
    np.testing.assert_array_equal(stored.label, LABELS)
    for number in range(6):
        np.testing.assert_array_equal(stored[number]["image"][..., 0], PICTURES[number])


def test_names_must_fit(tmp_path):
    write_idx(tmp_path, PICTURES, LABELS)
    assert "different names of all 3 classes" in refusal(tmp_path, names=("a", "b"))
    assert "different names of all 3 classes" in refusal(tmp_path, names=("a", "b", "a"))
    assert "class named 'c '" in refusal(tmp_path, names=("a", "b", "c "))
    for name in ("x", "y"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        (tmp_path / "folders" / name / "1.png").touch()
    message = refusal(tmp_path / "folders", source="image_folder", names=("a", "b"))
    assert "names its classes itself (x, y)" in message


def test_which_files_are_a_set(tmp_path):
    assert "does not exist" in refusal(tmp_path / "absent")
    assert "has 0 files of pictures of the split 'train' (it has none)" in refusal(tmp_path)
    file = write_idx(tmp_path, PICTURES, LABELS)
    write_idx(tmp_path, PICTURES, LABELS, packed=False)
    assert find_pair(tmp_path, "train").images.name == "train-images-idx3-ubyte"
    assert "has no split 'validation'; allowed: train, test" in refusal(tmp_path, "validation")
    assert "has 0 files of pictures of the split 'test'" in refusal(tmp_path, "test")
    write_idx(tmp_path, PICTURES, LABELS, head="letters-train-")
    assert "has 2 files of pictures" in refusal(tmp_path)
    dotted = tmp_path / "train-images.idx3-ubyte"
    file.rename(dotted)
    assert "has no labels beside it; allowed: with train-labels.idx1-ubyte" in refusal(dotted)
    assert "is not named as pictures are" in refusal(tmp_path / "train-labels-idx1-ubyte.gz")


def test_damage_is_told_in_a_sentence(tmp_path):
    file = write_idx(tmp_path, PICTURES, LABELS, packed=False)
    whole = file.read_bytes()
    for content, message in (
        (b"", "begins with nothing; allowed: 00000803"),
        (b"\0\0\x0d\x03" + whole[4:], "begins with 00000d03; allowed: 00000803"),
        (idx_bytes(LABELS), "begins with 00000801; allowed: 00000803"),
        (whole[:9], "is cut short"),
        (whole[:-1], "holds less than the 6 x 5 x 5 that it says"),
        (whole + b"\0", "holds more than the 6 x 5 x 5 that it says"),
        (idx_bytes(PICTURES[:0]), "is empty (0 x 5 x 5)"),
        (idx_bytes(PICTURES[:5]), "holds 5 pictures, but train-labels-idx1-ubyte 6 labels"),
    ):
        file.write_bytes(content)
        assert message in refusal(tmp_path)

    packed = write_idx(tmp_path / "packed", PICTURES, LABELS)
    content = packed.read_bytes()
    for damaged in (content[:-20], content[:-8] + bytes(4) + content[-4:], b"no gzip"):
        packed.write_bytes(damaged)
        assert "is damaged, or cut short" in refusal(packed)


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_lies_takes_no_memory(tmp_path, packed, monkeypatch):
    header = struct.pack(">HBB3I", 0, 8, 3, 1000, 1000, 1000)
    path = tmp_path / ("x.gz" if packed else "x")
    path.write_bytes(gzip.compress(header + bytes(1000)) if packed else header + bytes(1000))
    tracemalloc.start()
    with pytest.raises(ConfigError, match="holds less than the 1000 x 1000 x 1000"):
        read_idx(path, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21
    monkeypatch.setattr(idx_files, "MAX_BYTES", 10**9 - 1)
    with pytest.raises(ConfigError, match=r"holds 1,000,000,000 bytes; allowed: 999,999,999"):
        read_idx(path, 3)


def test_a_file_that_changes_amid_the_work(tmp_path):
    file = write_idx(tmp_path, PICTURES, LABELS)
    found = open_input("idx", str(tmp_path), "train")
    file.write_bytes(b"")
    with pytest.raises(ImageError, match="unreadable"):
        found.reader.read(found.entries[0])
