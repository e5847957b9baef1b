import hashlib
import json
import pickle
import re
import shlex

import huggingface_hub.constants
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from dit_moe.autoencoder.loading import load
from dit_moe.autoencoder.sources import is_local
from dit_moe.config import ConfigError
from tests.autoencoder import autoencoder_fixture

NAME = "some-group/some-autoencoder"


@pytest.fixture
def folder(tmp_path):
    return autoencoder_fixture.write_folder(tmp_path / "folder")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return load(str(autoencoder_fixture.write_folder(tmp_path_factory.mktemp("expected"))))


def original():
    names = autoencoder_fixture.description()["original_names"]
    return {names[name]: tensor for name, tensor in autoencoder_fixture.tensors().items()}


def old_attention():
    new = ("to_q.", "to_k.", "to_v.", "to_out.0.")
    old = ("query.", "key.", "value.", "proj_attn.")
    tensors = {}
    for name, tensor in autoencoder_fixture.tensors().items():
        for a, b in zip(new, old, strict=True):
            name = name.replace(a, b)
        tensors[name] = tensor
    return tensors


def as_1x1_convolution(tensors):
    attention = re.compile(r"(attentions\.0\.(to_|query|key|value|proj)|attn_1\.[qkvp]).*weight$")
    changed = {
        name: tensor[..., None, None] if attention.search(name) else tensor
        for name, tensor in tensors.items()
    }
    assert sum(changed[name].ndim != tensors[name].ndim for name in tensors) == 8
    return changed


def in_stable_diffusion(tensors):
    inside = {f"first_stage_model.{name}": tensor for name, tensor in tensors.items()}
    return inside | {"model.diffusion_model.out.2.bias": np.zeros(4, np.float32)}


def with_training_state(tensors):
    return tensors | {
        "loss.logvar": np.zeros(1, np.float32),
        "model_ema.decay": np.ones(1, np.float32),
    }


@pytest.mark.parametrize(
    "tensors",
    [
        pytest.param(original, id="original"),
        pytest.param(lambda: as_1x1_convolution(original()), id="original-1x1"),
        pytest.param(lambda: in_stable_diffusion(original()), id="stable-diffusion"),
        pytest.param(lambda: with_training_state(original()), id="training"),
        pytest.param(old_attention, id="old-diffusers"),
        pytest.param(lambda: as_1x1_convolution(old_attention()), id="old-diffusers-1x1"),
    ],
)
def test_every_layout_gives_the_same_parameters(folder, expected, tensors):
    path = folder / "weights.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in tensors().items()}, path)
    loaded = load(str(path))
    assert loaded.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, loaded.model, expected.model)


def test_what_is_told_of_the_source(folder):
    loaded = load(str(folder))
    content = (folder / "diffusion_pytorch_model.safetensors").read_bytes()
    assert loaded.sha256 == hashlib.sha256(content).hexdigest()
    assert loaded.source == str(folder)
    assert loaded.config.block_out_channels == (8, 16, 16)
    assert loaded.model.config == loaded.config


class TestHub:
    @pytest.fixture(autouse=True)
    def _offline(self, tmp_path, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def test_from_the_cache(self, tmp_path, expected):
        repository = tmp_path / "hub" / "models--some-group--some-autoencoder"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        (repository / "snapshots").mkdir()
        assert not is_local(NAME)
        autoencoder_fixture.write_folder(repository / "snapshots" / ("0" * 40))
        assert is_local(NAME)
        loaded = load(NAME)
        assert (loaded.source, loaded.sha256) == (NAME, expected.sha256)

    def test_without_a_network(self):
        assert not is_local(NAME)
        with pytest.raises(ConfigError) as caught:
            load(NAME)
        for part in (NAME, "by hand", "config.json", "diffusion_pytorch_model.safetensors"):
            assert part in str(caught.value)
        assert f"https://huggingface.co/{NAME}" in str(caught.value)
        assert "\n" not in str(caught.value)


class TestRefusals:
    def test_nothing_there(self, tmp_path):
        source = str(tmp_path / "nothing")
        assert not is_local(source)
        with pytest.raises(ConfigError, match=r"does not exist; allowed: .*sd-vae-ft-mse"):
            load(source)

    def test_a_path_that_records_cannot_keep(self, folder):
        with pytest.raises(
            ConfigError, match=r"autoencoder is '.*\\udcff'; allowed: text in UTF-8"
        ):
            load(str(folder.rename(folder.with_name("\udcff"))))

    def test_folder_without_weights(self, folder):
        assert is_local(str(folder))
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        with pytest.raises(ConfigError, match=r"has no diffusion_pytorch_model.safetensors"):
            load(str(folder))
        (folder / "diffusion_pytorch_model.bin").touch()
        with pytest.raises(ConfigError, match=r"diffusion_pytorch_model.bin is a pickle"):
            load(str(folder))

    @pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
    def test_pickles_are_not_read(self, tmp_path, suffix):
        class Harm:
            def __reduce__(self):
                return (tmp_path.joinpath("harm").write_text, ("done",))

        path = tmp_path / f"it's a model{suffix}"
        path.write_bytes(pickle.dumps(Harm()))
        with pytest.raises(
            ConfigError, match=r"convert it with: python -c .*weights_only=True"
        ) as e:
            load(str(path))
        # A shell and Python can read the command, whatever the name.
        _, _, code = shlex.split(str(e.value)[str(e.value).index("python -c") :])
        compile(code, "code", "exec")
        assert f'torch.load("{path}"' in code
        assert not (tmp_path / "harm").exists()

    def test_other_files(self, tmp_path):
        path = tmp_path / "model.npz"
        path.touch()
        with pytest.raises(ConfigError, match=r"allowed: a .safetensors file or a folder"):
            load(str(path))

    def test_truncated_file(self, folder):
        path = folder / "diffusion_pytorch_model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ConfigError, match="is not a whole safetensors file"):
            load(str(folder))

    def test_tensors_that_do_not_fit(self, folder):
        tensors = autoencoder_fixture.tensors()
        for name in [n for n in tensors if n.startswith("encoder.mid_block.resnets.0")]:
            del tensors[name]
        tensors["extra"] = np.zeros(1, np.float32)
        tensors["quant_conv.bias"] = tensors["quant_conv.bias"].astype(np.int8)
        tensors["decoder.conv_out.bias"] = np.zeros(2, np.float32)
        tensors["decoder.conv_in.bias"][1] = np.nan
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
        with pytest.raises(ConfigError) as caught:
            load(str(folder))
        message = str(caught.value)
        assert "8 missing (encoder.mid_block.resnets.0." in message
        assert ", ...)" in message
        assert "1 unexpected (extra)" in message
        assert "1 not of a plain float type (quant_conv.bias)" in message
        assert "1 of another shape (decoder.conv_out.bias)" in message
        assert "1 with numbers that are not finite (decoder.conv_in.bias)" in message
        assert "\n" not in message

    def test_file_alone_is_taken_for_f8(self, folder):
        (folder / "config.json").unlink()
        with pytest.raises(ConfigError, match="do not fit the default shape, KL-f8"):
            load(str(folder / "diffusion_pytorch_model.safetensors"))

    def test_config_of_another_network(self, folder):
        (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
        with pytest.raises(ConfigError, match=r"config.json: .*"):
            load(str(folder))
