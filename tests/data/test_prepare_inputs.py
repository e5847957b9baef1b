import io
import json
import os
import stat
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from PIL import Image
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from dit_moe.config import ConfigError
from dit_moe.data import picture_files, prepared
from dit_moe.data.picture_files import printable
from dit_moe.data.prepare.input import Entry, Input
from dit_moe.data.prepare.inputs import open_input
from dit_moe.storage.pictures import ImageError
from eval.image_set import ImageSetError
from eval.image_sets import open_set


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 5), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def fill(root: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))


NAMES = ["dog/b.png", "dog/a.png", "cat/deep/er/x.webp", "cat/z", "cat/notes.txt", "Zoo/1.png"]
ENTRIES = [
    Entry("Zoo/1.png", 0),
    Entry("cat/deep/er/x.webp", 1),
    Entry("cat/notes.txt", 1),
    Entry("cat/z", 1),
    Entry("dog/a.png", 2),
    Entry("dog/b.png", 2),
]


def zipped(path: Path, names: list[str], prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(prefix + name, png(number))
    return path


def reason(found: Input, key: str) -> str:
    (entry,) = (entry for entry in found.entries if entry.key == key)
    with pytest.raises(ImageError) as info:
        found.reader.read(entry)
    return str(info.value)


def refusal(source, path: Path | str, split: str = "train") -> str:
    with pytest.raises(ConfigError) as info:
        open_input(source, str(path), split)
    assert "\n" not in str(info.value)
    return str(info.value)


# Folders.


def test_folder(tmp_path):
    fill(tmp_path, NAMES)
    found = open_input("auto", str(tmp_path), "train")
    assert found.kind == "image_folder"
    assert found.entries == ENTRIES
    assert found.classes == ("Zoo", "cat", "dog")
    for entry in found.entries:
        assert found.reader.read(entry) == (png(NAMES.index(entry.key)), entry.label)


def test_hidden_and_loose_files_are_left_out(tmp_path):
    fill(tmp_path, [*NAMES, "README.md", ".x/a.png", "cat/.DS_Store", "cat/.cache/a.png"])
    found = open_input("image_folder", str(tmp_path), "train")
    assert found.entries == ENTRIES
    assert found.ignored == 1


def test_digest_follows_the_listing(tmp_path):
    def digest(names: list[str]) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        fill(folder, names)
        return open_input("auto", str(folder), "train").digest

    assert digest(NAMES) == digest(NAMES[::-1])
    assert digest(NAMES) != digest(NAMES[1:])
    assert digest(NAMES) != digest([*NAMES[1:], "dog/c.png"])
    assert digest(["a/1", "b/2"]) != digest(["a/1", "a/2"])


def test_links_do_not_lead_out(tmp_path):
    root = tmp_path / "in"
    fill(tmp_path, ["in/cat/a.png", "secret/b.png"])
    targets = {
        "inside": root / "cat/a.png",
        "outside": tmp_path / "secret/b.png",
        "outside_folder": tmp_path / "secret",
        "inside_folder": root / "cat",
        "broken": root / "nothing",
        "circle": root / "cat/circle",
    }
    for name, target in targets.items():
        (root / "cat" / name).symlink_to(target)
    found = open_input("auto", str(root), "train")
    assert [entry.key for entry in found.entries] == [
        f"cat/{n}" for n in sorted([*targets, "a.png"])
    ]
    assert reason(found, "cat/outside") == "link out of the input"
    assert reason(found, "cat/outside_folder") == "link out of the input"
    assert reason(found, "cat/inside_folder") == "not a file"
    assert reason(found, "cat/broken") == reason(found, "cat/circle") == "unreadable"
    assert found.reader.read(Entry("cat/inside", 0)) == (png(0), 0)

    # The input itself may be a link.
    (tmp_path / "link").symlink_to(root)
    linked = open_input("auto", str(tmp_path / "link"), "train")
    assert linked.digest == found.digest
    assert linked.reader.read(Entry("cat/a.png", 0)) == (png(0), 0)


def test_class_folders_may_be_links(tmp_path):
    fill(tmp_path, ["photos/one/a.png", "photos/one/more/b.png", "secret/c.png", "in/cat/a.png"])
    root = tmp_path / "in"
    (root / "dog").symlink_to(tmp_path / "photos/one")
    (tmp_path / "photos/one/circle").symlink_to(tmp_path / "photos/one")
    (tmp_path / "photos/one/out.png").symlink_to(tmp_path / "secret/c.png")
    found = open_input("auto", str(root), "train")
    assert found.classes == ("cat", "dog")
    keys = ["cat/a.png", "dog/a.png", "dog/circle", "dog/more/b.png", "dog/out.png"]
    assert [entry.key for entry in found.entries] == keys
    assert found.reader.read(Entry("dog/more/b.png", 1)) == (png(1), 1)
    assert reason(found, "dog/circle") == "not a file"
    assert reason(found, "dog/out.png") == "link out of the input"
    (root / "loop").symlink_to(tmp_path)
    assert "folder 'loop', which is a link to the folder that it lies in" in refusal("auto", root)


def test_links_are_followed_on_request(tmp_path):
    root = tmp_path / "in"
    fill(tmp_path, ["in/cat/a.png", "store/b.png", "store/deep/c.png"])
    (root / "cat/b.png").symlink_to(tmp_path / "store/b.png")
    (root / "cat/more").symlink_to(tmp_path / "store")
    (root / "cat/gone").symlink_to(root / "nothing")
    found = open_input("auto", str(root), "train", follow_links=True)
    keys = ["cat/a.png", "cat/b.png", "cat/gone", "cat/more/b.png", "cat/more/deep/c.png"]
    assert [entry.key for entry in found.entries] == keys
    read = {key: found.reader.read(Entry(key, 0))[0] for key in keys if key != "cat/gone"}
    assert list(read.values()) == [png(0), png(1), png(1), png(2)]
    assert reason(found, "cat/gone") == "unreadable"

    # Two folders that hold links to each other.
    (tmp_path / "store/deep/back").symlink_to(root / "cat")
    with pytest.raises(ConfigError, match="'cat/more/deep/back', which is a link to the folder"):
        open_input("auto", str(root), "train", follow_links=True)
    path = zipped(tmp_path / "a.zip", ["cat/a.png"])
    with pytest.raises(ConfigError, match="follow_links is given for an input of zip"):
        open_input("auto", str(path), "train", follow_links=True)


def test_what_is_no_file_is_not_opened(tmp_path):
    fill(tmp_path, ["cat/a.png", "cat/gone.png"])
    os.mkfifo(tmp_path / "cat/pipe")
    found = open_input("auto", str(tmp_path), "train")
    assert reason(found, "cat/pipe") == "not a file"
    (tmp_path / "cat/gone.png").unlink()
    assert reason(found, "cat/gone.png") == "unreadable"


def test_unreadable_and_large_files(tmp_path, monkeypatch):
    fill(tmp_path, ["cat/a.png"])
    found = open_input("auto", str(tmp_path), "train")

    def fail(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:  # root may read all files
        patch.setattr(Path, "read_bytes", fail)
        assert reason(found, "cat/a.png") == "unreadable"
    monkeypatch.setattr(picture_files, "MAX_BYTES", 10)
    assert reason(found, "cat/a.png") == "file too large"


def test_names_that_are_not_utf8(tmp_path):
    fill(tmp_path, ["cat/a.png"])
    name = os.fsdecode(b"cat/caf\xe9.png")
    (tmp_path / name).write_bytes(png(7))
    found = open_input("auto", str(tmp_path), "train")
    assert found.reader.read(found.entries[1]) == (png(7), 0)
    assert printable(found.entries[1].key) == r"cat/caf\udce9.png"


def test_folders_without_classes_or_images(tmp_path):
    assert "does not exist" in refusal("auto", tmp_path / "absent")
    assert "does not exist" in refusal("image_folder", tmp_path / "absent")
    assert "holds no images" in refusal("auto", tmp_path)
    fill(tmp_path, ["a.txt"])
    assert "has no class folders and no file that is named as a" in refusal("auto", tmp_path)
    assert "is a file" in refusal("image_folder", tmp_path / "a.txt")
    fill(tmp_path, ["cat/a.png"])
    (tmp_path / "dog").mkdir()
    assert "class folder 'dog' without files" in refusal("auto", tmp_path)
    (tmp_path / "dog/Thumbs.db").touch()  # of the system, as a hidden file
    assert "class folder 'dog' without files" in refusal("auto", tmp_path)


def test_pictures_without_class_folders_are_of_one_class(tmp_path):
    names = ["b.png", "a.png", "notes.txt", ".hidden.png"]
    (tmp_path / "in").mkdir()
    fill(tmp_path / "in", names)
    expected = [Entry("a.png", 0), Entry("b.png", 0)]
    for path in (tmp_path / "in", zipped(tmp_path / "a.zip", names)):
        found = open_input("auto", str(path), "train")
        assert found.entries == expected
        assert found.classes == ("all",)
        assert found.ignored == 1
        assert found.reader.read(expected[1]) == (png(0), 0)


@pytest.mark.parametrize("name", ["two\nlines", " cat", "cat\t"])
def test_class_names_that_cannot_be_listed(tmp_path, name):
    fill(tmp_path, [f"{name}/a.png"])
    assert f"class named {name!r}" in refusal("auto", tmp_path)


# Archives.


@pytest.mark.parametrize("prefix", ["", "photos/"])
def test_zip_is_as_its_folder(tmp_path, prefix):
    extra = ["README", ".hidden/a.png", "cat/._a.png"]
    path = zipped(tmp_path / "photos.zip", [*NAMES, *extra], prefix)
    with zipfile.ZipFile(path, "a") as archive:
        archive.mkdir(f"{prefix}empty")
        archive.writestr("__MACOSX/photos/cat/a.png", b"")
    found = open_input("auto", str(path), "train")
    assert found.kind == "zip"
    assert found.entries == ENTRIES
    assert found.classes == ("Zoo", "cat", "dog")
    assert found.ignored == 1
    for entry in found.entries:
        assert found.reader.read(entry) == (png(NAMES.index(entry.key)), entry.label)


def test_a_loose_file_beside_the_folder_of_a_zip_changes_no_class(tmp_path):
    path = zipped(tmp_path / "photos.zip", NAMES, "photos/")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.txt", b"")
    found = open_input("zip", str(path), "train")
    assert found.classes == ("Zoo", "cat", "dog")
    assert found.entries == ENTRIES
    assert found.ignored == 1


def test_zip_of_one_class_is_not_unwrapped(tmp_path):
    found = open_input("zip", str(zipped(tmp_path / "a.zip", ["cat/a.png", "cat/b.png"])), "train")
    assert found.entries == [Entry("cat/a.png", 0), Entry("cat/b.png", 0)]


def test_zip_paths_do_not_lead_out(tmp_path):
    unsafe = ["../up.png", "/etc/root.png", "cat/../../up.png"]
    path = zipped(tmp_path / "a.zip", ["cat/a.png", "dog/a.png", *unsafe])
    link = zipfile.ZipInfo("cat/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "../../etc/passwd")
    found = open_input("zip", str(path), "train")
    assert found.classes == ("cat", "dog")
    assert sorted(entry.key for entry in found.entries) == sorted(
        ["cat/a.png", "cat/link.png", "dog/a.png", *unsafe]
    )
    for name in unsafe:
        assert reason(found, name) == "path out of the archive"
    assert reason(found, "cat/link.png") == "link in an archive"


def test_zip_bombs_and_damage(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/bomb.png", bytes(10**6))
        archive.writestr("cat/good.png", png(1))
        archive.writestr("cat/hurt.png", png(2), zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(png(2)) + 20] ^= 1
    encrypted = content.rindex(b"cat/good.png") - 46 + 8  # flags in the central directory
    path.write_bytes(content)
    monkeypatch.setattr(picture_files, "MAX_BYTES", 10**5)
    found = open_input("zip", str(path), "train")
    assert reason(found, "cat/bomb.png") == "file too large"
    assert reason(found, "cat/hurt.png") == "unreadable"
    assert found.reader.read(Entry("cat/good.png", 0)) == (png(1), 0)

    content[encrypted] |= 1
    locked = tmp_path / "locked.zip"
    locked.write_bytes(content)
    message = refusal("zip", locked)
    assert "is encrypted ('cat/good.png'); allowed: a zip without a password (unpack it" in message


def test_a_member_that_lies_about_its_size_is_not_inflated(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/a.png", bytes(2**26))
    content = path.read_bytes().replace(struct.pack("<I", 2**26), struct.pack("<I", 100))
    path.write_bytes(content)
    found = open_input("zip", str(path), "train")
    tracemalloc.start()
    assert reason(found, "cat/a.png") == "unreadable"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21  # the compressed member is 64 KiB


@pytest.mark.parametrize(
    ("method", "message"), [(9, "packed by Deflate64"), (14, "packed by method 14")]
)
def test_zips_of_other_packing_name_the_remedy(tmp_path, method, message):
    path = zipped(tmp_path / "a.zip", ["cat/a.png", "dog/b.png"])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 10] = method
    path.write_bytes(content)
    found = refusal("auto", path)
    assert message in found
    assert "unpack it, by 7z x for example, and give the folder" in found


def test_odd_names_in_zips(tmp_path):
    message = refusal("zip", zipped(tmp_path / "a.zip", ["cat\\a.png", "dog\\b.png"]))
    assert "has backslashes in its names" in message
    assert "pack it again" in message
    path = zipped(tmp_path / "b.zip", ["cat/a.png", "nameless"])
    content = path.read_bytes()
    for start in (b"PK\3\4", b"PK\1\2"):  # the name becomes part of the extra field
        size, extra = (26, 28) if start == b"PK\3\4" else (28, 30)
        at = content.rindex(start)
        content = bytearray(content)
        content[at + size] = 0
        content[at + extra] = len("nameless")
        content = bytes(content).replace(b"nameless", struct.pack("<HH", 0xFFFE, 4) + b"none")
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["cat/a.png", ""]
    assert open_input("zip", str(path), "train").entries == [Entry("cat/a.png", 0)]
    # Flagged as UTF-8, which it is not.
    path = zipped(tmp_path / "c.zip", ["cat/\u00e9.png"])
    path.write_bytes(path.read_bytes().replace("\u00e9".encode(), b"\xe9\xe9"))
    assert "not a readable zip archive" in refusal("zip", path)


def test_zip_of_one_class_with_folders_is_unclear(tmp_path):
    path = zipped(tmp_path / "a.zip", ["cats/a.png", "cats/more/b.png"])
    message = refusal("auto", path)
    assert "unclear which folders are the classes" in message
    assert "'cats/a.png'" in message
    assert "unpack it and give the folder" in message


# EDM's dataset.json.

EDM = ["00000/img0.png", "00000/img1.png", "00001/img2.png", "img3.png"]
EDM_LABELS = [[name, label] for name, label in zip(EDM, (2, 0, 2, 4), strict=True)]


@pytest.mark.parametrize("form", ["folder", "zip", "zip with a folder"])
def test_edm_labels_count_before_folders(tmp_path, form):
    text = json.dumps({"labels": [*EDM_LABELS[::-1], ["gone.png", 1]], "more": 1})
    if form == "folder":
        fill(tmp_path / "in", [*EDM, "00000/notes.txt"])
        path = tmp_path / "in"
        (path / "dataset.json").write_text(text)
    else:
        prefix = "set/" if "folder" in form else ""
        path = zipped(tmp_path / "in.zip", [*EDM, "00000/notes.txt"], prefix)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{prefix}dataset.json", text)
    found = open_input("auto", str(path), "train")
    assert found.entries == [Entry(*pair) for pair in EDM_LABELS]
    assert found.classes == ("0", "1", "2", "3", "4")
    assert found.ignored == 2
    assert found.reader.read(found.entries[3]) == (png(3), 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must hold {'labels': [[file, class], ...]}"),
        ("[" * 100_000, "must hold"),
        ("[]", "must hold"),
        ('{"labels": [["00000/img0.png", 1.5]]}', "must hold"),
        ('{"labels": [["00000/img0.png", true]]}', "must hold"),
        ('{"labels": [["00000/img0.png", -1]]}', "classes from 0 to 99,999"),
        ('{"labels": [["00000/img0.png", 99999999999999999999]]}', "must hold"),
        (json.dumps({"labels": EDM_LABELS[:3]}), "it lacks 'img3.png'"),
    ],
)
def test_wrong_edm_labels(tmp_path, text, message):
    fill(tmp_path, EDM)
    (tmp_path / "dataset.json").write_text(text)
    assert message in refusal("auto", tmp_path)


def test_edm_without_labels_is_unconditional(tmp_path):
    fill(tmp_path, [*EDM, "notes.txt"])
    (tmp_path / "dataset.json").write_text('{"labels": null}')
    found = open_input("auto", str(tmp_path), "train")
    assert found.entries == [Entry(name, 0) for name in EDM]
    assert found.classes == ("all",)


def test_what_is_no_archive(tmp_path):
    path = zipped(tmp_path / "a.zip", ["cat/a.png"])
    cut = tmp_path / "cut.zip"
    cut.write_bytes(path.read_bytes()[:-30])
    (tmp_path / "text.zip").write_text("text")
    for name in ("cut.zip", "text.zip"):
        assert "not a readable zip archive" in refusal("auto", tmp_path / name)
    assert "does not exist" in refusal("zip", tmp_path / "absent.zip")
    assert "is a folder" in refusal("zip", tmp_path)
    assert "holds no images" in refusal("zip", zipped(tmp_path / "empty.zip", []))
    assert "no class folders" in refusal("zip", zipped(tmp_path / "flat.zip", ["a.txt"]))


# TFDS.


def tfds_folder(folder: Path, fields: dict, examples: list[dict], name: str = "photos") -> Path:
    """A data set as TFDS writes it, without TensorFlow; with only a split named train."""
    features = tfds.features.FeaturesDict(fields)
    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(folder),
        dataset_name=name,
        split="train",
        filetype_suffix="array_record",
    )
    folder.mkdir(parents=True)
    serializer = ExampleSerializer(features.get_serialized_info())  # pyright: ignore
    writer = ArrayRecordWriter(str(folder / prepared.shard_name(name, 0, 1)), "group_size:1")
    for example in examples:
        writer.write(serializer.serialize_example(features.encode_example(example)))
    writer.close()
    split = tfds.core.SplitInfo(
        name="train", shard_lengths=[len(examples)], num_bytes=1, filename_template=template
    )
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=features, split_infos=[split], check_data=False
    )
    return folder


IMAGE = tfds.features.Image(shape=(None, None, 3))
LABEL = tfds.features.ClassLabel(names=["cat", "dog"])


def encoded() -> list[dict]:
    """Four examples; what writes them reads their files to the end."""
    return [{"image": io.BytesIO(png(i)), "label": label} for i, label in enumerate([1, 0, -1, 1])]


def test_tfds_files(tmp_path):
    folder = tfds_folder(tmp_path / "1.0.0", {"image": IMAGE, "label": LABEL}, encoded())
    found = open_input("auto", str(folder), "train")
    assert found.kind == "tfds"
    assert found.classes == ("cat", "dog")
    assert [entry.key for entry in found.entries] == [f"{i:08d}" for i in range(4)]
    read = found.reader.read
    assert [read(found.entries[i]) for i in (3, 0, 1)] == [(png(3), 1), (png(0), 1), (png(1), 0)]
    assert reason(found, "00000002") == "no label"

    half = open_input("tfds", str(folder), "train[:50%]")
    assert len(half.entries) == 2
    assert half.digest != found.digest
    assert "split is 'test'" in refusal("tfds", folder, "test")
    assert "allowed: train" in refusal("tfds", folder, "test")


def test_tfds_arrays(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3)).astype(np.uint8)
    fields = {"photo": tfds.features.Tensor(shape=(4, 6, 3), dtype=np.uint8), "kind": LABEL}
    examples = [{"photo": array, "kind": 1} for array in pixels]
    found = open_input("tfds", str(tfds_folder(tmp_path / "a", fields, examples)), "train")
    for entry, array in zip(found.entries, pixels, strict=True):
        data, label = found.reader.read(entry)
        np.testing.assert_array_equal(data, array)
        assert label == 1


def test_tfds_records_without_a_field(tmp_path):
    folder = tfds_folder(tmp_path / "a", {"image": IMAGE, "kind": LABEL}, _kinds())
    for name in ("features.json", "kind.labels.txt"):
        path = folder / name
        text = path.read_text().replace("kind", "label")
        path.unlink()
        (folder / name.replace("kind", "label")).write_text(text)
    found = open_input("tfds", str(folder), "train")
    assert reason(found, "00000000") == "unreadable"


def _kinds() -> list[dict]:
    return [{"image": example["image"], "kind": 1} for example in encoded()]


def test_tfds_fields_are_found_or_named(tmp_path):
    two = {"image": IMAGE, "mask": IMAGE, "label": LABEL, "fine": LABEL}
    examples = [{"image": io.BytesIO(png(1)), "mask": io.BytesIO(png(2)), "label": 1, "fine": 0}]
    found = open_input("tfds", str(tfds_folder(tmp_path / "two", two, examples)), "train")
    assert found.reader.read(found.entries[0]) == (png(1), 1)

    none = {"text": tfds.features.Text(), "label": LABEL}
    folder = tfds_folder(tmp_path / "none", none, [{"text": "a", "label": 1}])
    assert "0 fields that may be the image" in refusal("tfds", folder)
    assert "its fields: label, text" in refusal("tfds", folder)
    many = {"left": IMAGE, "right": IMAGE, "label": LABEL}
    examples = [{"left": io.BytesIO(png(1)), "right": io.BytesIO(png(2)), "label": 1}]
    folder = tfds_folder(tmp_path / "many", many, examples)
    assert "2 fields that may be the image" in refusal("tfds", folder)


def test_tfds_sets_that_cannot_be_read(tmp_path):
    folder = tfds_folder(tmp_path / "a", {"image": IMAGE, "label": LABEL}, encoded())
    info = folder / "dataset_info.json"
    text = info.read_text()
    info.write_text(text.replace("array_record", "tfrecord"))
    message = refusal("tfds", folder)
    assert "is stored as tfrecord" in message
    assert "--file_format=array_record" in message
    info.write_text("{")
    assert "cannot be read as a TFDS data set" in refusal("tfds", folder)
    info.write_text(text)
    (folder / prepared.shard_name("photos", 0, 1)).unlink()
    assert "lacks the file" in refusal("tfds", folder)
    assert "not a TFDS data set" in refusal("tfds", tmp_path)


@pytest.mark.parametrize("place", ["top", "field", "text", "old", "info"])
def test_tfds_folders_run_no_code(tmp_path, monkeypatch, place):
    """Whatever class their metadata name."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "payload.py").write_text("open(__file__ + '.ran', 'w')\nclass X: pass\n")
    folder = tfds_folder(tmp_path / "a", {"image": IMAGE, "label": LABEL}, encoded())
    path = folder / "features.json"
    content = json.loads(path.read_text())
    evil = {"pythonClassName": "payload.X", "text": {}}
    match place:
        case "top":
            content["pythonClassName"] = "payload.X"
        case "field":
            content["featuresDict"]["features"]["more"] = evil
        case "text":
            old = {"type": content["pythonClassName"], "content": {"more": {"type": "payload.X"}}}
            content = {**content, "jsonFeature": {"json": json.dumps(old)}}
            del content["featuresDict"]
        case "old":
            content = {"type": "payload.X", "content": {}}
        case "info":
            info = json.loads((folder / "dataset_info.json").read_text())
            text = json.dumps({**info, "features": evil, "moduleName": "payload"})
            (folder / "dataset_info.json").write_text(text)
    path.write_text(json.dumps(content))
    if place in ("field", "info"):
        found = open_input("auto", str(folder), "train")
        assert found.reader.read(found.entries[0]) == (png(0), 1)
        assert len(open_set(folder).read()) == 4
    else:
        assert "cannot be read as a TFDS data set" in refusal("auto", folder)
        with pytest.raises(ImageSetError, match="cannot be read"):
            open_set(folder)
    assert not list(tmp_path.glob("payload.py.ran"))


def test_hostile_tfds_metadata(tmp_path):
    folder = tfds_folder(tmp_path / "a", {"image": IMAGE, "label": LABEL}, encoded())
    features, info = folder / "features.json", folder / "dataset_info.json"
    text = features.read_text()
    features.write_text("[" * 100_000)
    assert "cannot be read as a TFDS data set" in refusal("tfds", folder)
    features.write_text(text.replace('"numClasses": "2"', '"numClasses": "9000000000"'))
    assert "'label' has 9,000,000,000 classes" in refusal("tfds", folder)
    features.write_text(text)
    lengths = json.loads(info.read_text())
    lengths["splits"][0]["shardLengths"] = ["9000000000"]
    info.write_text(json.dumps(lengths))
    assert "a file too short for its records" in refusal("tfds", folder)
    for template in ("{}", "{SPLIT:>99999999999}", "{SPLIT.__class__}"):
        lengths["splits"][0]["filepathTemplate"] = template
        info.write_text(json.dumps(lengths))
        assert f"its files are named {template!r}; allowed: TFDS's names" in refusal("tfds", folder)


def test_tfds_names(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert "does not exist" in refusal("tfds", "no/../such set")
    assert "neither a folder nor a TFDS data set" in refusal("tfds", "no_such_set")
    message = refusal("tfds", "mnist")
    assert "has not been prepared" in message
    assert "tfds build mnist --file_format=array_record" in message
