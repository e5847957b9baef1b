"""What is kept of a set that is being drawn."""

from pathlib import Path

import numpy as np
import pytest

from dit_moe.config import ConfigError
from dit_moe.sampling.sample_parts import Parts, differences, read_description

MADE_OF = {"num_samples": 9, "batch_size": 2, "seed": 0, "classes": (0, 1)}


def drawn(folder: Path) -> Parts:
    parts = Parts(folder, MADE_OF)
    for value in range(3):
        parts.add(np.full((2, 1, 1, 1), value, np.uint8))
    return parts


def test_parts_are_found_again(tmp_path):
    parts = drawn(tmp_path / "parts")
    again = Parts(tmp_path / "parts", {**MADE_OF, "num_samples": 99, "batch_size": 5})
    assert (again.done, again.files) == (6, parts.files)
    assert [np.load(file)[0, 0, 0, 0] for file in again.files] == [0, 1, 2]
    parts.files[1].unlink()  # those behind a gap are no use
    assert Parts(tmp_path / "parts", MADE_OF).done == 2
    parts.remove()
    assert not list(tmp_path.iterdir())


def test_parts_of_another_set_stay(tmp_path):
    parts = drawn(tmp_path / "parts")
    with pytest.raises(ConfigError, match="differs in classes, seed; allowed: the command that"):
        Parts(tmp_path / "parts", {**MADE_OF, "seed": 1, "classes": (0,)})
    for text in ("", "[]", "[" * 100_000, "{}"):
        (tmp_path / "parts" / "request.json").write_text(text)
        with pytest.raises(ConfigError, match=r"differs in request\.json"):
            Parts(tmp_path / "parts", MADE_OF)
    assert all(file.is_file() for file in parts.files)


def test_a_folder_without_images_is_free(tmp_path):
    parts = drawn(tmp_path)
    for file in parts.files:
        file.unlink()
    assert Parts(tmp_path, {**MADE_OF, "seed": 1}).done == 0


def test_a_whole_set_is_the_first_part(tmp_path):
    x = np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1)
    np.savez(tmp_path / "set.npz", x)
    parts = Parts(tmp_path / "parts", MADE_OF)
    parts.adopt(tmp_path / "set.npz", 6)
    assert Parts(tmp_path / "parts", MADE_OF).done == 6
    np.testing.assert_array_equal(np.load(parts.files[0]), x)


def test_a_damaged_set_is_no_part(tmp_path):
    npz = tmp_path / "set.npz"
    np.savez(npz, np.zeros((6, 40, 40, 1), np.uint8))
    whole = npz.read_bytes()
    for content, count in ((whole, 7), (whole[:999], 6), (whole[:999] + b"x" + whole[1000:], 6)):
        npz.write_bytes(content)
        parts = Parts(tmp_path / "parts", MADE_OF)
        with pytest.raises(ConfigError, match=r"set\.npz is damaged .* allowed: another --output"):
            parts.adopt(npz, count)
        assert Parts(tmp_path / "parts", MADE_OF).done == 0


def test_descriptions(tmp_path):
    assert differences(MADE_OF, {**MADE_OF, "classes": [0, 1], "num_samples": 1}) == []
    assert differences(MADE_OF, {"seed": 0}) == ["classes"]
    # A set from before the share was told is the same set.
    assert differences(MADE_OF, {**MADE_OF, "start_share": 0.5}) == []
    guided = {"guidance": {"scale": 1.5, "interval": (0, 1)}, "guide": None}
    assert differences(guided, {**guided, "guide": {"step": 3}}) == ["guide"]
    other = {"guidance": {"scale": 2, "interval": (0, 1)}, "guide": None}
    assert differences(guided, other) == ["guidance.scale"]
    path = tmp_path / "samples.json"
    assert read_description(path) is None
    for damage in (
        "",
        "{",
        "[" * 100_000,
        '{"num_samples": 3, "seed": NaN}',
        '{"num_samples": "3"}',
    ):
        path.write_text(damage)
        assert read_description(path) is None
    path.write_text('{"num_samples": 3}')
    assert read_description(path) == {"num_samples": 3}
