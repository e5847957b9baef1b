"""Files of weights: reading, refusing, converting, and the command."""

import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from eval.features import inception, weights
from eval.features.networks import NETWORKS
from eval.features.random_weights import random_tensors
from eval.features.weights import WeightsError


@pytest.fixture(scope="module")
def tensors():
    return random_tensors(inception.layout())


@pytest.fixture
def small(monkeypatch):
    """Inception's layout, small; tensors that fit it."""
    layout = {"a.weight": (2, 3), "a.bias": (2,), "b.weight": (4,)}
    network = NETWORKS["inception"]
    monkeypatch.setitem(
        NETWORKS, "inception", type(network)(**{**vars(network), "layout": lambda: layout})
    )
    return random_tensors(layout)


def test_safetensors_of_inception(tensors, tmp_path):
    path = tmp_path / "inception.safetensors"
    save_file(tensors | {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.array(0)}, path)
    read = weights.read(path, "inception")
    assert read.keys() == tensors.keys()
    assert all(np.array_equal(read[name], x) for name, x in tensors.items())


def test_no_torch_is_needed_for_safetensors(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    path = tmp_path / "w.safetensors"
    save_file(small, path)
    assert weights.read(path, "inception").keys() == small.keys()
    path = path.rename(tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="needs PyTorch to be read"):
        weights.read(path, "inception")


def test_half_precision_becomes_float32(small, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({name: x.astype(np.float16) for name, x in small.items()}, path)
    assert all(x.dtype == np.float32 for x in weights.read(path, "inception").values())


def test_misfits_are_listed_in_one_sentence(small, tmp_path):
    path = tmp_path / "w.safetensors"
    wrong = {"a.weight": np.zeros((3, 2), np.float32), "b.weight": np.zeros(4, np.int32)}
    save_file(wrong | {f"c{i}": np.zeros(1, np.float32) for i in range(5)}, path)
    with pytest.raises(WeightsError) as caught:
        weights.read(path, "inception")
    assert str(caught.value) == (
        f"{path} does not hold the weights of inception: it lacks a.bias; has c0, c1, c2 and 2 "
        "more too many; has a.weight as float32 (3, 2) instead of float32 (2, 3), b.weight as "
        "int32 (4,) instead of float32 (4,)."
    )


def test_weights_must_be_finite(small, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(small | {"a.bias": np.array([0, np.nan], np.float32)}, path)
    with pytest.raises(WeightsError, match=r"not finite: a\.bias\."):
        weights.read(path, "inception")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"not safetensors", "cannot be read as safetensors"),
        ("w.ckpt", b"", "must end in .safetensors, .pth or .pt"),
        ("pt_inception-2015-12-05-6726825d.pth", b"cut short", "should with 6726825d"),
        ("weights-inception-2015-12-05-6726825d.pth", b"cut short", "should with 6726825d"),
    ],
)
def test_unusable_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        weights.read(tmp_path / name, "inception")


def test_missing_files(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        weights.read(tmp_path / "none.pth", "inception")
    with pytest.raises(WeightsError, match="is not a file"):
        weights.read(tmp_path, "inception")


class TestCommand:
    def test_tells_where_weights_are(self, capsys):
        assert weights.main([]) == 0
        output = capsys.readouterr().out
        assert "pt_inception-2015-12-05-6726825d.pth" in output
        assert "facebook/dinov2-large" in output

    def test_checks_and_converts(self, small, tmp_path, capsys):
        path, output = tmp_path / "w.safetensors", tmp_path / "converted.safetensors"
        save_file(small, path)
        arguments = ["--network", "inception", "--check", str(path), "--convert", str(output)]
        assert weights.main(arguments) == 0
        assert "3 tensors, 12 numbers; SHA-256 " in capsys.readouterr().out
        converted = weights.read(output, "inception")
        assert all(np.array_equal(converted[name], x) for name, x in small.items())

    def test_one_sentence_for_errors(self, small, tmp_path, capsys):
        path = tmp_path / "w.safetensors"
        save_file(small, path)
        check = ["--network", "inception", "--check", str(path)]
        assert weights.main([*check, "--convert", str(tmp_path / "w.pth")]) == 2
        message = f"error: {tmp_path / 'w.pth'} must end in .safetensors.\n"
        assert capsys.readouterr().err == message
        assert not (tmp_path / "w.pth").exists()
        assert weights.main(["--network", "inception", "--check", str(tmp_path / "none")]) == 2
        with pytest.raises(SystemExit):
            weights.main(["--check", str(path)])
