"""Published checkpoints in: forms of files, refusals, and the same answers as the peers' code."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import dit_moe
import dit_moe.commands.sample as sample
from dit_moe.autoencoder.latent_space import read_latent_space
from dit_moe.commands import convert as command
from dit_moe.config import BatchPoolRouterConfig, ConfigError, RectifiedFlowConfig
from dit_moe.convert import peers
from dit_moe.convert.importing import SD_VAE
from dit_moe.convert.recognise import read_arguments, recognise
from dit_moe.diffusion.integrate import sample as draw
from dit_moe.diffusion.rectified_flow import RectifiedFlow
from dit_moe.diffusion.solvers import step_noise
from dit_moe.models.parameters import functional
from dit_moe.runs.fingerprint import fingerprints
from dit_moe.runs.loading import load_run
from dit_moe.runs.writer import InMemory, write_run
from dit_moe.storage.hub import find_checkpoint
from tests.convert.converted import (
    FAMILIES,
    FIXTURES,
    answer,
    arguments,
    arguments_of,
    convert,
    expected,
    imported,
    inputs,
    relative_error,
    store,
    tensors_of,
)


@pytest.mark.parametrize("name", FAMILIES)
def test_there_and_back(name, tmp_path):
    run = imported(tmp_path, name)
    assert relative_error(answer(dit_moe.load(run), *inputs(name)), expected(name)) < 1e-5
    assert read_latent_space(run) == SD_VAE
    back = tmp_path / "back.safetensors"
    exporting = [f"--workdir={run}", f"--format={FAMILIES[name]}", f"--output={back}"]
    assert command.main(exporting) == 0
    tensors, original = load_file(back), tensors_of(name)
    assert tensors.keys() == original.keys()
    for key in original:
        # The clock is exchanged there and back in this layer, which rounds twice.
        rounding = 1e-7 if (FAMILIES[name], key) == ("ds-moe", "t_embedder.mlp.0.weight") else 0
        np.testing.assert_allclose(tensors[key], original[key], rtol=0, atol=rounding, err_msg=key)
    # What the peer's constructor needs is written beside it, and says the same.
    written, given = json.loads(back.with_suffix(".json").read_text()), arguments(name)
    if name == "dsmoe_tiny":  # two groups of which a token has both are none
        assert given["MoE_config"]["n_group"] == given["MoE_config"]["topk_group"] == 2
        given["MoE_config"] |= {"n_group": 1, "topk_group": 1}
    assert written.items() >= given.items()


def test_samples_from_a_converted_folder(tmp_path):
    run = imported(tmp_path, "dit_moe_tiny")
    flags = ["--num_samples=8", "--steps=2", "--autoencoder=none", "--classes=3"]
    for parameters in ("ema", "raw"):
        output = tmp_path / parameters
        command_line = [f"--workdir={run}", f"--output={output}", f"--parameters={parameters}"]
        assert sample.main(command_line + flags) == 0
    with (
        np.load(tmp_path / "ema" / "samples.npz") as ema,
        np.load(tmp_path / "raw" / "samples.npz") as raw,
    ):
        assert ema["arr_0"].shape == (8, 8, 8, 4)
        np.testing.assert_array_equal(ema["arr_0"], raw["arr_0"])


@pytest.mark.parametrize(
    ("family", "preset"),
    [
        ("dit", "DiT-XL/2"),
        ("dit", "DiT-B/2"),
        ("dit-moe", "DiT-MoE-S/2-8E2A"),
        ("dit-moe", "DiT-MoE-G/2-16E2A"),
        ("promoe", "ProMoE-L/2"),
        ("promoe-ec", "ProMoE-EC-L/2"),
        ("tc-dit", "TC-DiT-L/2-E8"),
        ("ec-dit", "EC-DiT-L/2-E8"),
        ("diffmoe", "DiffMoE-XL/2-E8"),
        ("ds-moe", "DSMoE-L/2-E16"),
        ("ds-moe", "DSMoE-S/2-E48"),
    ],
)
def test_published_sizes_need_no_arguments(family, preset):
    # Where positions turn queries and keys, no table of them tells the size of the image.
    pixels = 256 if family == "ds-moe" else 512
    config = dit_moe.preset(preset, pixels)
    shapes = {
        path: np.broadcast_to(np.float32(0), p.shape)
        for path, p in peers.abstract_parameters(config.model).items()
    }
    tensors = {k: x.shape for k, x in peers.to_peer(config.model, shapes).items()}
    found = recognise(family, tensors, None)
    expected = dataclasses.replace(config.model, dtype="float32")
    if family == "diffmoe":  # as its code samples
        router = BatchPoolRouterConfig(inference="batch")
        expected = dataclasses.replace(
            expected, moe=dataclasses.replace(expected.moe, router=router)
        )
    assert found.model == expected
    assert found.objective == config.objective
    assert found.name == f"{preset}@{pixels}"


def test_a_table_without_a_row_for_the_null_label():
    """Its last class would guide."""
    shapes = {
        path: np.broadcast_to(np.float32(0), p.shape)
        for path, p in peers.abstract_parameters(dit_moe.preset("DiT-S/2").model).items()
    }
    tensors = peers.to_peer(dit_moe.preset("DiT-S/2").model, shapes)
    found = {key: tensor.shape for key, tensor in tensors.items()}
    found["y_embedder.embedding_table.weight"] = (1000, 384)
    with pytest.raises(ConfigError, match="has 1000 rows, one for each class of ImageNet"):
        recognise("dit", found, None)
    assert recognise("dit", found, {"num_classes": 999}).model.num_classes == 999


class TestSiT:
    """SiT has DiT's network: the DiT fixture serves as one, under the other clock."""

    @pytest.fixture
    def run(self, tmp_path):
        output = tmp_path / "sit"
        flags = [f"--checkpoint={FIXTURES / 'dit_tiny.safetensors'}", "--family=sit"]
        flags += [f"--model_json={arguments_of('dit_tiny')}", f"--output={output}"]
        assert command.main(flags) == 0
        return output

    def test_network(self, run):
        x, _, y = inputs("dit_tiny")
        t = jnp.linspace(0.0, 1.0, len(y))
        theirs = self.theirs(load_run(run).config)(x, t, y).value
        ours = answer(dit_moe.load(run), x, 1 - t, y)
        assert relative_error(ours, -np.asarray(theirs)) < 1e-5

    def test_samples_are_those_of_its_own_equation(self, run):
        loaded = load_run(run)
        network = functional(loaded.config.model)
        theirs = self.theirs(loaded.config)
        key_N, y_N, steps = jax.random.split(jax.random.key(0), 4), jnp.arange(4), 6
        assert isinstance(loaded.config.objective, RectifiedFlowConfig)
        flow = RectifiedFlow(loaded.config.objective)
        shape = (8, 8, 4)
        denoiser = flow.denoiser(network(loaded.parameters))
        ours = draw(flow, denoiser, key_N, y_N, shape, "euler", steps)
        # dx/dt = v(x, t), from noise at t = 0 to data at t = 1.
        x = step_noise(key_N, 0, shape)
        for i in range(steps):
            x += theirs(x, jnp.full(4, i / steps), y_N).value[..., :4] / steps
        np.testing.assert_allclose(ours, x, atol=1e-4)

    def test_export_is_the_inverse(self, run, tmp_path):
        back = tmp_path / "back.safetensors"
        assert command.main([f"--workdir={run}", "--format=sit", f"--output={back}"]) == 0
        original = tensors_of("dit_tiny")
        for key, tensor in load_file(back).items():
            rounding = 1e-7 if key == "t_embedder.mlp.0.weight" else 0
            np.testing.assert_allclose(tensor, original[key], atol=rounding, err_msg=key)

    def theirs(self, config):
        tensors = peers.from_peer(config.model, tensors_of("dit_tiny"))
        return functional(config.model)({k: jnp.asarray(v) for k, v in tensors.items()})


class TestFlashAttention:
    """DiT-MoE's other attention, with its own names and normalised queries and keys."""

    name = "dit_moe_tiny"

    @pytest.fixture
    def tensors(self):
        rng, tensors = np.random.default_rng(0), {}
        for key, x in tensors_of(self.name).items():
            own = key.replace("attn.qkv", "attn.Wqkv").replace("attn.proj", "attn.out_proj")
            tensors[own] = x
        for block in range(2):
            for norm in ("q_norm", "k_norm"):
                for part in ("weight", "bias"):
                    x = rng.normal(1, 0.1, 8).astype(np.float32)  # of six heads
                    tensors[f"blocks.{block}.attn.{norm}.{part}"] = x
        return tensors

    def arguments(self, tmp_path, **changes) -> Path:
        path = tmp_path / "model.json"
        path.write_text(json.dumps({**arguments(self.name), "num_heads": 6, **changes}))
        return path

    def test_there_and_back(self, tensors, tmp_path, capsys):
        file = store(tmp_path / "a.safetensors", tensors)
        run, given = tmp_path / "run", self.arguments(tmp_path, use_flash_attn=True)
        needed = ["--family=dit-moe", f"--checkpoint={file}", f"--model_json={given}"]
        assert command.main([*needed, f"--output={run}"]) == 0
        model = load_run(run).config.model
        assert (model.qk_norm, model.qk_norm_epsilon) == (True, 1e-6)
        back = tmp_path / "back.safetensors"
        assert command.main([f"--workdir={run}", "--format=dit-moe", f"--output={back}"]) == 0
        exported = load_file(back)
        assert exported.keys() == tensors.keys()
        for key, x in tensors.items():
            np.testing.assert_array_equal(exported[key], x, err_msg=key)
        assert json.loads(back.with_suffix(".json").read_text())["use_flash_attn"] is True
        # What the constructor was given must agree.
        given = self.arguments(tmp_path, use_flash_attn=False)
        assert command.main([*needed, f"--output={tmp_path / 'other'}"]) == 2
        assert "use_flash_attn is False in --model_json" in capsys.readouterr().err

    def test_a_part_under_both_names(self, tensors, tmp_path, capsys):
        tensors["blocks.0.attn.qkv.bias"] = tensors["blocks.0.attn.Wqkv.bias"]
        file = store(tmp_path / "a.safetensors", tensors)
        flags = [f"--model_json={self.arguments(tmp_path)}", f"--output={tmp_path / 'run'}"]
        assert command.main(["--family=dit-moe", f"--checkpoint={file}", *flags]) == 2
        assert "blocks.0.attn.qkv.bias is there twice" in capsys.readouterr().err


class TestForms:
    """Other files with the same network."""

    name = "dit_tiny"

    def check(self, tmp_path, checkpoint, expected, *flags):
        assert convert(checkpoint, tmp_path / "run", self.name, *flags) == 0
        run = load_run(tmp_path / "run")
        original = peers.from_peer(run.config.model, expected)
        for path, value in run.parameters.items():
            np.testing.assert_array_equal(value, original[path])

    @pytest.mark.parametrize(
        "prefix",
        ["module.", "_orig_mod.module.", "ema.", "model.", "state_dict.", "module._orig_mod."],
    )
    def test_prefixes(self, prefix, tmp_path):
        tensors = tensors_of(self.name)
        file = store(tmp_path / "a.safetensors", {prefix + k: x for k, x in tensors.items()})
        self.check(tmp_path, file, tensors)

    def test_compiled_blocks(self, tmp_path):
        tensors = tensors_of(self.name)
        renamed = {k.replace("blocks.0.", "blocks.0._orig_mod."): x for k, x in tensors.items()}
        self.check(tmp_path, store(tmp_path / "a.safetensors", renamed), tensors)

    @pytest.mark.parametrize(("flags", "sign"), [([], 1), (["--parameters=raw"], -1)])
    def test_average_and_parameters(self, flags, sign, tmp_path):
        tensors = tensors_of(self.name)
        table = tensors.pop("pos_embed")
        both = {f"ema.{k}": x for k, x in tensors.items()}
        both |= {f"model.module.{k}": -x for k, x in tensors.items()}
        both |= {"ema.pos_embed": table, "model.module.pos_embed": table}
        wanted = {k: sign * x for k, x in tensors.items()}
        self.check(tmp_path, store(tmp_path / "a.safetensors", both), wanted, *flags)

    def test_an_average_within_the_names_of_the_parameters(self, tmp_path):
        tensors = tensors_of(self.name)
        both = {f"net.ema.{k}": x for k, x in tensors.items()}
        both |= {f"net.{k}": -x for k, x in tensors.items()}
        self.check(tmp_path, store(tmp_path / "a.safetensors", both), tensors)

    @pytest.mark.parametrize("inner", ["", "diffusion_model."])
    def test_an_average_under_names_without_dots(self, inner, tmp_path, capsys):
        """As Lightning's LitEma keeps it, of what is trained alone."""
        tensors = tensors_of(self.name)
        table = tensors.pop("pos_embed")
        both = {f"model.{inner}{k}": -x for k, x in tensors.items()} | {
            f"model.{inner}pos_embed": table
        }
        both |= {f"model_ema.{(inner + k).replace('.', '')}": x for k, x in tensors.items()}
        both |= {"model_ema.decay": np.ones(1, np.float32)}
        file = store(tmp_path / "a.safetensors", both)
        self.check(tmp_path, file, tensors)
        assert "Took the moving average (ema) under 'model_ema" in capsys.readouterr().out
        shutil.rmtree(tmp_path / "run")
        self.check(tmp_path, file, {k: -x for k, x in tensors.items()}, "--parameters=raw")
        assert "Took the parameters (raw) under 'model" in capsys.readouterr().out

    def test_one_of_several_averages(self, tmp_path, capsys):
        tensors = tensors_of(self.name)
        del tensors["pos_embed"]
        both = {f"ema_0.999.{k}": x for k, x in tensors.items()}
        both |= {f"ema_0.99.{k}": -x for k, x in tensors.items()}
        both |= {f"model.{k}": 2 * x for k, x in tensors.items()}
        file = store(tmp_path / "a.safetensors", both)
        assert convert(file, tmp_path / "run", self.name) == 2
        error = capsys.readouterr().err
        assert "more than one network: its networks are 'ema_0.99', 'ema_0.999', 'model'" in error
        assert "allowed: one of them by --network" in error
        assert convert(file, tmp_path / "run", self.name, "--network=ema") == 2
        assert "network is 'ema', which " in capsys.readouterr().err
        self.check(tmp_path, file, tensors, "--network=ema_0.999")
        assert "Took the moving average (ema) under 'ema_0.999'" in capsys.readouterr().out
        shutil.rmtree(tmp_path / "run")
        self.check(tmp_path, file, {k: 2 * x for k, x in tensors.items()}, "--network=model")
        assert "Took the parameters (raw) under 'model'" in capsys.readouterr().out
        with pytest.raises(SystemExit):
            convert(file, tmp_path / "other", self.name, "--network=model", "--parameters=raw")

    def test_an_average_without_dots_by_name(self, tmp_path):
        tensors = {k: x for k, x in tensors_of(self.name).items() if k != "pos_embed"}
        both = {f"model.{k}": -x for k, x in tensors.items()}
        for factor, name in ((1, "fast_ema"), (2, "slow_ema")):
            both |= {f"{name}.{k.replace('.', '')}": factor * x for k, x in tensors.items()}
        file = store(tmp_path / "a.safetensors", both)
        self.check(tmp_path, file, {k: 2 * x for k, x in tensors.items()}, "--network=slow_ema")

    def test_an_average_alone_is_not_drawn_as_parameters(self, tmp_path):
        tensors = tensors_of(self.name)
        file = store(tmp_path / "a.safetensors", {f"ema.{k}": x for k, x in tensors.items()})
        self.check(tmp_path, file, tensors)
        with pytest.raises(ConfigError, match=r"holds the moving average of the parameters alone"):
            load_run(tmp_path / "run", ema=False)

    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
    def test_types_become_float32(self, dtype, tmp_path):
        tensors = {k: x.astype(dtype) for k, x in tensors_of(self.name).items()}
        file = store(tmp_path / "a.safetensors", tensors)
        self.check(tmp_path, file, {k: x.astype(np.float32) for k, x in tensors.items()})

    def test_shards(self, tmp_path, capsys):
        tensors = tensors_of(self.name)
        folder = tmp_path / "shards"
        folder.mkdir()
        names = {k: f"model-{i % 3 + 1:05d}-of-00003.safetensors" for i, k in enumerate(tensors)}
        for name in set(names.values()):
            store(folder / name, {k: x for k, x in tensors.items() if names[k] == name})
        index = {"metadata": {}, "weight_map": names}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        self.check(tmp_path, folder, tensors)
        (folder / names["pos_embed"]).unlink()
        assert convert(folder, tmp_path / "other", self.name) == 2
        index["weight_map"]["pos_embed"] = "../a.safetensors"
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert convert(folder, tmp_path / "other", self.name) == 2
        assert "names '../a.safetensors'; allowed: files beside it" in capsys.readouterr().err


class TestHub:
    """Without a network: of a cache that a stub of it has filled."""

    name = "dit_tiny"

    @pytest.fixture(autouse=True)
    def snapshot(self, tmp_path, monkeypatch):
        """The folder of the cache for some-group/models."""
        hub = tmp_path / "hub"
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.chdir(tmp_path)
        repository = hub / "models--some-group--models"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        folder = repository / "snapshots" / ("0" * 40)
        (folder / "deep").mkdir(parents=True)
        return folder

    def converted(self, reference, tmp_path) -> bool:
        """Whether it became the network of the fixture."""
        assert convert(reference, tmp_path / "run", self.name) == 0
        run = load_run(tmp_path / "run")
        original = peers.from_peer(run.config.model, tensors_of(self.name))
        shutil.rmtree(tmp_path / "run")
        return all(np.array_equal(x, original[path]) for path, x in run.parameters.items())

    def test_the_one_file_or_one_by_name(self, snapshot, tmp_path, capsys):
        store(snapshot / "deep" / "dit.safetensors", tensors_of(self.name))
        assert self.converted("some-group/models", tmp_path)
        assert self.converted("some-group/models:deep/dit.safetensors", tmp_path)
        (snapshot / "b.pt").write_bytes(b"never read")
        assert self.converted("some-group/models:deep/dit.safetensors", tmp_path)
        capsys.readouterr()
        assert convert("some-group/models", tmp_path / "run", self.name) == 2
        error = capsys.readouterr().err
        assert "a repository with 2 files of weights: b.pt, deep/dit.safetensors; allowed" in error
        assert "--checkpoint some-group/models:FILE" in error
        # A model under the name of the hub's clients goes before other files.
        store(snapshot / "model.safetensors", tensors_of(self.name))
        assert self.converted("some-group/models", tmp_path)

    def test_shards(self, snapshot, tmp_path):
        tensors = tensors_of(self.name)
        names = {k: f"deep-{i % 2}.safetensors" for i, k in enumerate(tensors)}
        for name in set(names.values()):
            store(snapshot / name, {k: x for k, x in tensors.items() if names[k] == name})
        (snapshot / "deep.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        assert self.converted("some-group/models:deep.safetensors.index.json", tmp_path)

    def test_what_is_asked_of_the_hub(self, snapshot, tmp_path, monkeypatch):
        """No more than the one form of the model."""
        asked = []

        class Hub:
            def list_repo_files(self, name):
                return ["README.md", *(f"transformer/{name}" for name in files), "vae/x.bin"]

        def snapshot_download(name, allow_patterns):
            asked.extend([name, allow_patterns])
            return str(snapshot)

        monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        files = ["config.json", "diffusion_pytorch_model.bin"]
        assert find_checkpoint(Path("a/b")) == snapshot
        stem = "transformer/diffusion_pytorch_model"
        assert asked == ["a/b", ["transformer/config.json", f"{stem}.bin"]]
        files += ["diffusion_pytorch_model.safetensors.index.json"]
        find_checkpoint(Path("a/b"))
        index = f"{stem}.safetensors.index.json"
        assert asked[3] == ["transformer/config.json", index, f"{stem}-*"]

    def test_what_is_not_there(self, snapshot, tmp_path, capsys):
        for reference in ("no-group/models", "no-group/models:a.pt", "some-group/models:a.pt"):
            assert convert(reference, tmp_path / "run", self.name) == 2
            error = capsys.readouterr().err
            assert f"checkpoint is '{reference}', which is no file or folder here" in error
            assert f"https://huggingface.co/{reference.partition(':')[0]}/tree/main" in error
        # What looks like a file, or lies in a folder that is here, is none of the hub's.
        (tmp_path / "here").mkdir()
        for reference in ("no-group/a.pt", "here/models"):
            assert convert(reference, tmp_path / "run", self.name) == 2
            assert f"checkpoint is '{reference}', which does not exist" in capsys.readouterr().err


class TestRefusals:
    name = "dit_tiny"

    def refuse(self, capsys, tmp_path, checkpoint, *flags, name=name):
        """The one message of a command that writes nothing."""
        before = sorted(tmp_path.rglob("*"))
        assert convert(checkpoint, tmp_path / "run", name, *flags) == 2
        assert sorted(tmp_path.rglob("*")) == before
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert "Traceback" not in error
        return error

    def test_tensors_that_do_not_fit_are_listed(self, capsys, tmp_path):
        tensors = tensors_of(self.name)
        del tensors["blocks.0.attn.qkv.bias"]
        tensors["extra"] = np.zeros(3, np.float32)
        tensors["final_layer.linear.bias"] = np.zeros(5, np.float32)
        tensors["t_embedder.mlp.2.bias"] = np.zeros(48, np.int32)
        error = self.refuse(capsys, tmp_path, store(tmp_path / "a.safetensors", tensors))
        assert "4 tensors do not fit" in error
        for problem in (
            "missing: blocks.0.attn.qkv.bias",
            "unexpected: extra",
            "shape of final_layer.linear.bias: (5,), but (32,) is expected",
            "type of t_embedder.mlp.2.bias: int32",
        ):
            assert problem in error

    def test_a_long_list_is_cut(self, capsys, tmp_path):
        tensors = {k: x for k, x in tensors_of(self.name).items() if ".attn." not in k}
        tensors |= {f"extra.{i}": np.zeros(1, np.float32) for i in range(20)}
        error = self.refuse(capsys, tmp_path, store(tmp_path / "a.safetensors", tensors))
        assert "28 tensors do not fit" in error
        assert error.count("missing: ") + error.count("unexpected: ") == 20
        assert "and 8 more" in error

    def test_learned_positions(self, capsys, tmp_path):
        tensors = tensors_of(self.name)
        tensors["pos_embed"] += 0.1
        error = self.refuse(capsys, tmp_path, store(tmp_path / "a.safetensors", tensors))
        assert "pos_embed: they are not the fixed ones" in error

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"hidden_size": 64},
                "hidden_size is 64 in --model_json, but the tensors' shapes say 48",
            ),
            ({"num_heads": 5}, "heads is 5; allowed: a divisor of width 48"),
            ({"num_heads": None}, "num_heads is missing"),
            ({"objective": "score"}, "objective is 'score' in --model_json"),
            ({"class_dropout_prob": 0}, "class_dropout_prob is 0 in --model_json"),
        ],
    )
    def test_arguments(self, change, message, capsys, tmp_path):
        values = {**arguments(self.name), **change}
        path = tmp_path / "model.json"
        path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
        file = FIXTURES / f"{self.name}.safetensors"
        assert message in self.refuse(capsys, tmp_path, file, f"--model_json={path}")

    def test_unpublished_size_needs_arguments(self, capsys, tmp_path):
        file = FIXTURES / f"{self.name}.safetensors"
        flags = ["--family=dit", f"--checkpoint={file}", f"--output={tmp_path / 'run'}"]
        assert command.main(flags) == 2
        assert "allowed: with --model_json" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("name", "file", "found"),
        [
            ("dit_tiny", "promoe_tiny", "promoe or promoe-ec"),
            ("ecdit_tiny", "diffmoe_tiny", "diffmoe"),
            ("diffmoe_tiny", "ecdit_tiny", "ec-dit"),
            ("dit_moe_tiny", "tcdit_tiny", "tc-dit"),
            ("tcdit_tiny", "dit_tiny", "dit or sit"),
            ("tcdit_tiny", "dsmoe_tiny", "ds-moe"),
            ("dsmoe_tiny", "tcdit_tiny", "tc-dit"),
        ],
    )
    def test_another_family(self, name, file, found, capsys, tmp_path):
        error = self.refuse(capsys, tmp_path, FIXTURES / f"{file}.safetensors", name=name)
        assert error == (
            f"error: family is {FAMILIES[name]!r}, but the tensors are those of {found}\n"
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"capacity": None}, "MoE_config.capacity is missing in --model_json"),
            ({"num_experts": 4}, "num_experts is 4 in --model_json, but the tensors' shapes say 5"),
            ({"capacity": 1.5}, "moe.top_k is 1.5; "),
        ],
    )
    def test_arguments_of_a_mixture(self, change, message, capsys, tmp_path):
        name = "ecdit_tiny"
        values = arguments(name)
        mixture = {**values["MoE_config"], **change}
        values["MoE_config"] = {k: v for k, v in mixture.items() if v is not None}
        path = tmp_path / "model.json"
        path.write_text(json.dumps(values))
        file, flag = FIXTURES / f"{name}.safetensors", f"--model_json={path}"
        assert message in self.refuse(capsys, tmp_path, file, flag, name=name)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"num_experts_per_tok": None}, "MoE_config.num_experts_per_tok is missing"),
            ({"topk_group": 1}, "MoE_config.topk_group is 1 in --model_json; allowed: n_group (2)"),
            ({"topk_group": "2"}, "MoE_config.topk_group is '2' in --model_json; allowed: n_group"),
        ],
    )
    def test_arguments_of_ds_moe(self, change, message):
        values = arguments("dsmoe_tiny")
        mixture = {**values["MoE_config"], **change}
        values["MoE_config"] = {k: v for k, v in mixture.items() if v is not None}
        shapes = {k: x.shape for k, x in tensors_of("dsmoe_tiny").items()}
        with pytest.raises(ConfigError) as error:
            recognise("ds-moe", shapes, values)
        assert message in str(error.value)

    def test_shapes_of_ds_moe(self):
        name = "dsmoe_tiny"
        shapes = {k: x.shape for k, x in tensors_of(name).items()}
        for change, message in [
            ({"rope_type": "1d"}, "rope_type is '1d' in --model_json"),
            ({"input_size": "8"}, "input_size is '8' in --model_json; allowed: a whole number"),
            ({"MoE_config": [8]}, r"MoE_config is \[8\] in --model_json; allowed: a JSON object"),
        ]:
            with pytest.raises(ConfigError, match=message):
                recognise("ds-moe", shapes, {**arguments(name), **change})
        bare = {k: shape for k, shape in shapes.items() if "shared_experts" not in k}
        with pytest.raises(ConfigError, match="the MoE blocks have no shared expert"):
            recognise("ds-moe", bare, arguments(name))
        # As deep as the published model of 48 experts, but with 16.
        model = dit_moe.preset("DSMoE-S/2-E48").model
        moe = dataclasses.replace(model.moe, num_experts=16)
        shapes = {
            path: np.broadcast_to(np.float32(0), p.shape)
            for path, p in peers.abstract_parameters(dataclasses.replace(model, moe=moe)).items()
        }
        state = peers.to_peer(dataclasses.replace(model, moe=moe), shapes)
        with pytest.raises(ConfigError, match="width 384 and depth 12, which is no published one"):
            recognise("ds-moe", {k: x.shape for k, x in state.items()}, None)

    def test_blocks_without_a_number(self):
        shapes = {k: x.shape for k, x in tensors_of("promoe_tiny").items()}
        for foreign, message in [
            (shapes | {"blocks.norm.weight": (48,)}, "blocks are 0, 1, 2, 3, norm; allowed: blo"),
            ({k: s for k, s in shapes.items() if "blocks." not in k}, "blocks are none; allowed"),
            ({k: s for k, s in shapes.items() if "blocks.1." not in k}, "blocks are 0, 2, 3; allo"),
        ]:
            with pytest.raises(ConfigError, match=message):
                recognise("promoe", foreign, arguments("promoe_tiny"))
        # What else has such a name is left to the check of all tensors.
        more = {"mlp.cluster_centers": (4, 48), "blocks.1.mlp.experts.bank.weight": (8,)}
        assert recognise("promoe", shapes | more, arguments("promoe_tiny")) == recognise(
            "promoe", shapes, arguments("promoe_tiny")
        )

    def test_time_of_another_width_or_type(self, capsys, tmp_path):
        """In the layers that the other clock changes."""
        name = "dsmoe_tiny"
        tensors = tensors_of(name)
        tensors["t_embedder.mlp.0.weight"] = np.zeros((16, 300), np.float32)
        tensors["final_layer.linear.bias"] = tensors["final_layer.linear.bias"].astype(np.int8)
        file = store(tmp_path / "a.safetensors", tensors)
        error = self.refuse(capsys, tmp_path, file, name=name)
        assert "shape of t_embedder.mlp.0.weight: (16, 300), but (16, 256) is" in error
        assert "type of final_layer.linear.bias: int32" in error

    def test_tensors_of_a_router(self, capsys, tmp_path):
        name = "diffmoe_tiny"
        tensors = tensors_of(name)
        del tensors["blocks.1.mlp.expert_threshold"]
        tensors["blocks.3.mlp.shared_experts.fc1.bias"] = np.zeros(128, np.float32)
        tensors["blocks.3.mlp.capacity_predictor.2.weight"] = np.zeros((4, 16), np.float32)
        file = store(tmp_path / "a.safetensors", tensors)
        error = self.refuse(capsys, tmp_path, file, name=name)
        assert "3 tensors do not fit" in error
        for problem in (
            "missing: blocks.1.mlp.expert_threshold",
            "unexpected: blocks.3.mlp.shared_experts.fc1.bias",
            "shape of blocks.3.mlp.capacity_predictor.2.weight: (4, 16), but (5, 16) is expected",
        ):
            assert problem in error

    def test_another_decay(self, capsys, tmp_path):
        name = "diffmoe_tiny"
        tensors = tensors_of(name)
        tensors["blocks.3.mlp.ema_decay"] *= 0.9
        error = self.refuse(capsys, tmp_path, store(tmp_path / "a.safetensors", tensors), name=name)
        assert "values of blocks.3.mlp.ema_decay: they are not the fixed ones" in error

    def test_a_width_that_no_ratio_gives(self):
        """The nearest floats to 120 / 1408, times 1408, are not 120."""
        shapes = {k: x.shape for k, x in tensors_of("promoe_tiny").items()}
        wide = {k: tuple({48: 1408, 64: 120}.get(n, n) for n in s) for k, s in shapes.items()}
        with pytest.raises(ConfigError, match="120 hidden units at width 1408 cannot be kept"):
            recognise("promoe", wide, {**arguments("promoe_tiny"), "hidden_size": 1408})

    def test_files(self, capsys, tmp_path):
        whole = (FIXTURES / f"{self.name}.safetensors").read_bytes()
        (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
        store(tmp_path / "other.safetensors", {"conv.weight": np.zeros((2, 2), np.float32)})
        (tmp_path / "model.gguf").write_bytes(b"")
        for file, message in {
            "cut.safetensors": "is not a whole safetensors file",
            "other.safetensors": "holds no diffusion transformer of these families",
            "nowhere.pt": "does not exist",
            "model.gguf": "allowed: .safetensors, .pt",
        }.items():
            assert message in self.refuse(capsys, tmp_path, tmp_path / file)

    @pytest.mark.parametrize(
        ("beside", "message"),
        [
            ("model_ema.x_embedderprojweight", "the tensors' blocks are none"),
            ("ema.shadow_params.0", "holds an average as a list (ema.shadow_params.0 to 0)"),
            ("callbacks.EMA.weights.3", "in a form that is not known (callbacks.EMA.weights.3)"),
        ],
    )
    def test_averages_that_cannot_be_read(self, beside, message, capsys, tmp_path):
        tensors = {f"model.{k}": x for k, x in tensors_of(self.name).items()}
        tensors[beside] = tensors["model.x_embedder.proj.weight"]
        file = store(tmp_path / "a.safetensors", tensors)
        error = self.refuse(capsys, tmp_path, file)
        assert message in error
        assert convert(file, tmp_path / "raw", self.name, "--parameters=raw") == 0

    def test_an_average_whose_names_nothing_tells(self, capsys, tmp_path):
        tensors = {f"model_ema.{k.replace('.', '')}": x for k, x in tensors_of(self.name).items()}
        error = self.refuse(capsys, tmp_path, store(tmp_path / "a.safetensors", tensors))
        assert "no network beside that tells the whole names" in error

    def test_numbers_that_are_not_finite(self, capsys, tmp_path):
        tensors = tensors_of(self.name)
        tensors["blocks.1.attn.proj.weight"][3, 2] = np.nan
        file = store(tmp_path / "a.safetensors", tensors)
        assert convert(file, tmp_path / "run", self.name) == 2
        error = capsys.readouterr().err
        assert "blocks.1.attn.proj.weight of the checkpoint holds numbers that are not" in error
        assert [*tmp_path.iterdir()] == [file]

    def test_hostile_arguments(self, tmp_path):
        path = tmp_path / "model.json"
        path.write_text("[" * 100_000)
        with pytest.raises(ConfigError, match="nested deeper than 50 levels"):
            read_arguments(path)

    def test_no_pytorch(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        (tmp_path / "a.pt").write_bytes(b"whatever")
        error = self.refuse(capsys, tmp_path, tmp_path / "a.pt")
        assert "needs PyTorch to be read: pip install torch" in error

    def test_output_is_there(self, capsys, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "mine.txt").write_text("mine")
        error = self.refuse(capsys, tmp_path, FIXTURES / f"{self.name}.safetensors")
        assert "which is there already" in error

    def test_flags_of_another_way(self, capsys, tmp_path):
        with pytest.raises(SystemExit) as stopped:
            command.main([f"--workdir={tmp_path}", "--family=dit", "--output=a"])
        assert stopped.value.code == 2
        assert "--family is given without --checkpoint" in capsys.readouterr().err


def test_a_failure_half_way_leaves_nothing(tmp_path):
    run = load_run(imported(tmp_path / "first", "dit_tiny"))
    shapes = {path: p.shape for path, p in run.parameters.items()}

    def read(path, index):
        if path == "patch_out.bias":
            raise OSError("the disk is full")
        return np.asarray(run.parameters[path])[index]

    with pytest.raises(OSError, match="the disk is full"):
        write_run(tmp_path / "second", run.config, None, InMemory(shapes, read))
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_fingerprints(tmp_path):
    """Those that are summed up piece by piece are those of the whole arrays."""
    run = imported(tmp_path, "dit_tiny")
    about = run / "checkpoints" / "0" / "about" / "about.json"
    described = json.loads(about.read_text())["arrays"]
    ema = {path: a for path, a in described.items() if path.startswith("ema/")}
    assert len(ema) == len(load_run(run).parameters)
    found = fingerprints({"ema": load_run(run).parameters})
    assert found == {path: a["fingerprint"] for path, a in ema.items()}
