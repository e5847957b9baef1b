import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from eval.image_sets import ImageSetError, read

IMAGES = np.arange(5 * 8 * 8 * 3).reshape(5, 8, 8, 3).astype(np.uint8)
LABELS = np.array([0, 1, 2, 3, 9])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "set.npz"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_reads_what_adm_writes(path, channels, save, dtype):
    save(path, IMAGES[..., :channels], LABELS.astype(dtype))
    image_set = read(path)
    np.testing.assert_array_equal(image_set.image, IMAGES[..., :channels])
    np.testing.assert_array_equal(image_set.label, LABELS)
    assert image_set.image.dtype == np.uint8
    assert image_set.label.dtype == np.int64


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.astype(np.float32), LABELS, "are float32, but must be uint8"),
        (IMAGES[0], LABELS, "must be .N, H, W, C."),
        (IMAGES.transpose(0, 3, 1, 2), LABELS, "must be .N, H, W, C."),
        (IMAGES[..., :2], LABELS, "must be .N, H, W, C."),
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


def test_missing_arrays_are_refused(path):
    np.savez(path, IMAGES)
    with pytest.raises(ImageSetError, match=r"has no labels \(arr_1\)"):
        read(path)
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
            image_set = read(path)
        except ImageSetError:
            continue
        # Some bytes (dates) mean nothing; the pixels are guarded by a checksum.
        np.testing.assert_array_equal(image_set.image, IMAGES)
        np.testing.assert_array_equal(image_set.label, LABELS)
