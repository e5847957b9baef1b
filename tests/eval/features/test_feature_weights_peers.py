"""PyTorch's files of weights are read without executing what they hold."""

import pickle

import numpy as np
import pytest

from eval.features import inception, weights
from eval.features.random_weights import random_tensors
from eval.features.weights import WeightsError

pytestmark = pytest.mark.peers


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_pickles_are_refused(tmp_path, how):
    import torch

    made = tmp_path / "made_by_malice"
    path = tmp_path / "weights.pth"
    content = {"fc.weight": torch.zeros(2), "x": Malice(made)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError, match="refused because reading it can execute code"):
        weights.read(path, "inception")
    assert not made.exists()
    torch.load(path, weights_only=False) if how == "torch" else pickle.loads(path.read_bytes())
    assert made.exists()  # the test would have noticed


def test_pth_and_its_conversion_are_the_same(tmp_path):
    import torch

    tensors = random_tensors(inception.layout())
    path, output = tmp_path / "inception.pth", tmp_path / "inception.safetensors"
    torch.save({name: torch.from_numpy(x) for name, x in tensors.items()}, path)
    arguments = ["--network", "inception", "--check", str(path), "--convert", str(output)]
    assert weights.main(arguments) == 0
    converted = weights.read(output, "inception")
    assert converted.keys() == tensors.keys()
    assert all(np.array_equal(converted[name], x) for name, x in tensors.items())


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}])
def test_other_content_is_refused(tmp_path, content):
    import torch

    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match="something else than tensors by name"):
        weights.read(path, "inception")


def test_torchvisions_network_is_told_apart(tmp_path):
    import torch
    import torchvision

    network = torchvision.models.inception_v3(weights=None, init_weights=False)
    path = tmp_path / "torchvision.pth"
    torch.save(network.state_dict(), path)
    with pytest.raises(WeightsError, match="does not hold the weights of inception") as caught:
        weights.read(path, "inception")
    assert "AuxLogits" in str(caught.value)
    assert "fc.weight as float32 (1000, 2048) instead of float32 (1008, 2048)" in str(caught.value)
