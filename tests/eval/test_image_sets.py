import hashlib
import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from eval.image_set import ImageSetError
from eval.image_sets import open_set
from eval.npz_images import open_npz

IMAGES = np.arange(5 * 8 * 8 * 3).reshape(5, 8, 8, 3).astype(np.uint8)
LABELS = np.array([0, 1, 2, 3, 9])


def read(path):
    """All images and labels."""
    image_set = open_npz(path)
    return image_set.read(), image_set.label


@pytest.fixture
def path(tmp_path):
    return tmp_path / "set.npz"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_reads_what_adm_writes(path, channels, save, dtype):
    save(path, IMAGES[..., :channels], LABELS.astype(dtype))
    image_set = open_npz(path)
    assert (image_set.num, image_set.shape) == (5, (8, 8, channels))
    assert image_set.label.dtype == np.int64
    np.testing.assert_array_equal(image_set.label, LABELS)
    batches = list(image_set.batches(2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(batches), IMAGES[..., :channels])
    assert batches[0].dtype == np.uint8
    np.testing.assert_array_equal(next(image_set.batches(4, start=3)), IMAGES[3:, ..., :channels])
    assert image_set.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.astype(np.float32), LABELS, r"are float32, but must be uint8, .* round them"),
        (IMAGES / 255, LABELS, r"span 0 to 1: clip and round x \* 255"),
        (IMAGES / 127.5 - 1, LABELS, r"span -1 to 1: clip and round \(x \+ 1\) \* 127.5"),
        (IMAGES.astype(np.int32), LABELS, "are int32, but must be uint8, 0 to 255.$"),
        (np.asfortranarray(IMAGES), LABELS, "is in Fortran order"),
        (IMAGES[0], LABELS, "must be .N, H, W, C."),
        (IMAGES.transpose(0, 3, 1, 2), LABELS, r"looks like \[N, C, H, W\]"),
        (IMAGES.repeat(2, axis=3)[..., :5], LABELS, "must be .N, H, W, C."),
        (IMAGES[:0], LABELS[:0], "holds no images"),
        (IMAGES, LABELS[:4], "5 images need"),
        (IMAGES, LABELS[:, None], "5 images need"),
        (IMAGES, LABELS.astype(float), "are float64, but must be integers"),
    ],
)
def test_wrong_arrays_are_refused(path, images, labels, message):
    np.savez(path, images, labels)
    with pytest.raises(ImageSetError, match=message) as info:
        read(path)
    assert str(path) in str(info.value)
    assert "\n" not in str(info.value)


def test_missing_images_are_refused(path):
    np.savez(path, images=IMAGES, arr_1=LABELS)
    with pytest.raises(ImageSetError, match=r"has no images \(arr_0\)"):
        read(path)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(ImageSetError, match="does not exist"):
        read(tmp_path / "absent.npz")
    with pytest.raises(ImageSetError, match="is not a file"):
        read(tmp_path)


def test_other_formats_are_refused(path):
    array = io.BytesIO()
    np.save(array, IMAGES)
    for content in (b"", b"text", array.getvalue(), pickle.dumps({"arr_0": 1})):
        path.write_bytes(content)
        with pytest.raises(ImageSetError, match=r"is not an \.npz file"):
            read(path)


class Bomb:
    """Leaves a trace if it is ever unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_pickles_are_never_executed(path, tmp_path):
    trace = tmp_path / "trace"
    bombs = np.empty(5, object)
    bombs[:] = Bomb(trace)

    np.savez(path, IMAGES, bombs, allow_pickle=True)
    with pytest.raises(ImageSetError, match="arr_1 holds pickled Python objects"):
        read(path)
    np.savez(path, bombs, LABELS, allow_pickle=True)
    with pytest.raises(ImageSetError, match="arr_0 holds pickled Python objects"):
        read(path)
    # A bare pickle where an array should be.
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", pickle.dumps(Bomb(trace)))
        archive.writestr("arr_1.npy", pickle.dumps(Bomb(trace)))
    with pytest.raises(ImageSetError):
        read(path)
    path.write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(ImageSetError):
        read(path)

    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))  # the bomb does work
    assert trace.exists()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 2000, 2000, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000000000000, 8, 8, 1)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (True, 8, 8, 1)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 8, 1)}",
        "{[]: 1}",
        "{",
        "",
    ],
)
def test_absurd_headers_are_refused(path, header):
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"0" * 99
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", content)
        archive.writestr("arr_1.npy", content)
    with pytest.raises(ImageSetError, match="cannot be read"):
        read(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_truncated_files_are_refused(path, save):
    save(path, IMAGES, LABELS)
    content = path.read_bytes()
    for length in range(0, len(content) - 1, 13):
        path.write_bytes(content[:length])
        with pytest.raises(ImageSetError):
            read(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_files_raise_nothing_else(path, save):
    save(path, IMAGES, LABELS)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            images, labels = read(path)
        except ImageSetError:
            continue
        # Some bytes (dates) mean nothing; the pixels are guarded by a checksum. The labels are
        # absent if their name is damaged.
        np.testing.assert_array_equal(images, IMAGES)
        if labels is not None:
            np.testing.assert_array_equal(labels, LABELS)


def test_memory_is_flat(path):
    np.savez_compressed(path, np.zeros((2000, 64, 64, 3), np.uint8))
    tracemalloc.start()
    assert sum(len(batch) for batch in open_npz(path).batches(16)) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6  # all of them are 25 MB


def test_a_member_that_lies_about_its_size_is_not_inflated(path):
    member = io.BytesIO()
    np.save(member, np.zeros(5000))
    length = len(member.getvalue())
    np.savez(path, IMAGES)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_1.npy", member.getvalue() + bytes(2**26))
    declared, said = (struct.pack("<I", number) for number in (length + 2**26, length))
    path.write_bytes(path.read_bytes().replace(declared, said))
    tracemalloc.start()
    with pytest.raises(ImageSetError, match="Bad CRC-32"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21


def test_labels_may_be_absent(path):
    np.savez(path, IMAGES)
    assert open_set(path).label is None


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"
FLOAT = np.zeros((8, 8), np.float32)


def write_image(file, pixels, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)


def zip_of(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))
    return path


class TestImageFiles:
    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "images"
        for i, name in enumerate(("cat/b.png", "cat/a.png", "ant/x/c.PNG", "dog/d.bmp")):
            write_image(folder / name, IMAGES[i])
        (folder / "notes.txt").write_text("not an image")
        (folder / ".hidden.png").write_bytes(b"no image either")
        return folder

    def test_sorted_paths_and_class_folders(self, folder, tmp_path):
        for image_set in (open_set(folder), open_set(zip_of(folder, tmp_path / "set.zip"))):
            assert (image_set.num, image_set.shape) == (4, (8, 8, 3))
            np.testing.assert_array_equal(image_set.read(), IMAGES[[2, 1, 0, 3]])
            np.testing.assert_array_equal(image_set.label, [0, 1, 1, 2])
            np.testing.assert_array_equal(next(image_set.batches(2, start=3)), IMAGES[[3]])

    def test_flat_folders_have_no_labels(self, folder):
        write_image(folder / "z.png", IMAGES[4])
        assert open_set(folder).label is None

    def test_edm_labels(self, folder):
        names = ["ant/x/c.PNG", "cat/a.png", "cat/b.png", "dog/d.bmp"]
        labels = [[name, 10 + i] for i, name in enumerate(names)]
        (folder / "dataset.json").write_text(json.dumps({"labels": labels[::-1]}))
        np.testing.assert_array_equal(open_set(folder).label, [10, 11, 12, 13])
        (folder / "dataset.json").write_text(json.dumps({"labels": None}))
        assert open_set(folder).label is None
        for wrong in (
            "",
            "[]",
            "[" * 100_000,
            '{"labels": [["cat/a.png", 1.5]]}',
            json.dumps({"labels": labels[1:]}),
        ):
            (folder / "dataset.json").write_text(wrong)
            with pytest.raises(ImageSetError, match=r"dataset\.json must hold"):
                open_set(folder)

    def test_hash_is_of_names_and_contents(self, folder):
        first = open_set(folder).sha256
        assert open_set(folder).sha256 == first
        (folder / "cat/a.png").rename(folder / "cat/c.png")
        second = open_set(folder).sha256
        write_image(folder / "cat/c.png", IMAGES[4])
        assert len({first, second, open_set(folder).sha256}) == 3

    def test_grey_and_palette_become_rgb(self, tmp_path):
        grey = IMAGES[0, :, :, 0]
        write_image(tmp_path / "a.png", grey)
        Image.fromarray(IMAGES[1]).convert("P").save(tmp_path / "b.png")
        first, second = open_set(tmp_path).read()
        np.testing.assert_array_equal(first, np.stack([grey] * 3, -1))
        assert second.shape == (8, 8, 3)

    def test_wrong_images_are_named(self, folder):
        cases = {
            "other size": (
                lambda f: write_image(f, np.zeros((8, 9, 3), np.uint8)),
                "is 8x9, but.* dit_moe.data.prepare --autoencoder none",
            ),
            "damaged": (lambda f: f.write_bytes(b"\x89PNG\r\n"), "cannot be read"),
            "empty": (lambda f: f.write_bytes(b""), "cannot be read"),
            "cut": (lambda f: f.write_bytes((folder / "cat/a.png").read_bytes()[:60]), "be read"),
            "PostScript": (lambda f: f.write_bytes(POSTSCRIPT), "not an image"),
            "floating point": (lambda f: write_image(f, FLOAT, format="TIFF"), "floating-point"),
        }
        for make, message in cases.values():
            make(folder / "cat/e.png")
            with pytest.raises(ImageSetError, match=message) as info:
                open_set(folder).read()
            assert "cat/e.png" in str(info.value)
            assert "\n" not in str(info.value)

    def test_pictures_are_those_of_prepare(self, tmp_path):
        """Any suffix, upright, on white, 16 bits as 8, through a link to a class folder."""
        exif = Image.Exif()
        exif[0x0112] = 6
        clear = np.zeros((8, 8, 4), np.uint8)
        classes = tmp_path / "in"
        write_image(tmp_path / "cat/a.tif", IMAGES[0])
        write_image(tmp_path / "cat/b.jfif", IMAGES[1], format="PNG", exif=exif)
        write_image(classes / "ant/c.png", clear)
        write_image(classes / "ant/d.png", np.full((8, 8), 257 * 99, np.uint16))
        Image.new("CMYK", (8, 8)).save(classes / "ant/e.JPG", "JPEG")
        (classes / "cat").symlink_to(tmp_path / "cat")
        image_set = open_set(classes)
        image_NxHxWxC = image_set.read()
        np.testing.assert_array_equal(image_set.label, [0, 0, 0, 1, 1])
        assert image_NxHxWxC[0].min() == 255
        assert set(image_NxHxWxC[1].ravel()) == {99}
        assert image_NxHxWxC[2].min() >= 254
        np.testing.assert_array_equal(image_NxHxWxC[3], IMAGES[0])
        np.testing.assert_array_equal(image_NxHxWxC[4], np.rot90(IMAGES[1], -1))

    def test_what_is_left_out_is_told(self, folder, capsys):
        open_set(folder)
        assert "by their names" in (told := capsys.readouterr().err)
        assert "1, such as notes.txt" in told
        (folder / "notes.txt").unlink()
        (folder / "Thumbs.db").touch()
        open_set(folder)
        assert not capsys.readouterr().err

    def test_zip_that_holds_one_folder(self, folder, tmp_path, capsys):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for file in (file for file in folder.rglob("*") if file.is_file()):
                archive.write(file, f"images/{file.relative_to(folder)}")
            archive.writestr("beside.png", b"")
        image_set = open_set(tmp_path / "a.zip")
        np.testing.assert_array_equal(image_set.label, [0, 1, 1, 2])
        assert ": 2, such as notes.txt" in capsys.readouterr().err

    def test_names_that_are_not_utf8(self, folder):
        (folder / "cat/a.png").rename(folder / "cat" / os.fsdecode(b"\xe9.png"))
        image_set = open_set(folder)
        assert image_set.sha256
        assert len(image_set.read()) == 4

    def test_no_images_are_refused(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(ImageSetError, match="holds no images"):
            open_set(tmp_path / "empty")
        zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
        with pytest.raises(ImageSetError, match="holds no images"):
            open_set(tmp_path / "empty.zip")


def test_pipes_are_no_sets(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageSetError, match="is neither a file nor a folder"):
        open_set(tmp_path / "pipe")


def test_labels_beyond_64_bits_are_refused(path):
    np.savez(path, IMAGES, np.full(len(IMAGES), 2**64 - 1, np.uint64))
    with pytest.raises(ImageSetError, match=r"\(arr_1\) hold 18446744073709551615, but must"):
        open_set(path)


def test_other_files_are_no_sets(tmp_path):
    with pytest.raises(ImageSetError, match="does not exist"):
        open_set(tmp_path / "absent")
    (tmp_path / "file").write_text("text")
    with pytest.raises(ImageSetError, match="is no set of images"):
        open_set(tmp_path / "file")
