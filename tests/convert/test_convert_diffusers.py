"""DiT in the folders of the diffusers package, in and out."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import dit_moe
from dit_moe.commands import convert as command
from dit_moe.config import ConfigError
from dit_moe.convert.export import export_run
from dit_moe.runs import open_folder as published
from dit_moe.runs.loading import load_run
from tests.convert.converted import (
    answer,
    arguments,
    expected,
    imported,
    inputs,
    relative_error,
    store,
    tensors_of,
)

NAME = "dit_tiny"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def layout() -> dict[str, np.ndarray]:
    """The fixture in the names of DiTTransformer2DModel."""
    old = tensors_of(NAME)
    new = {}
    for kind in ("weight", "bias"):
        new[f"pos_embed.proj.{kind}"] = old[f"x_embedder.proj.{kind}"]
        new[f"proj_out_1.{kind}"] = old[f"final_layer.adaLN_modulation.1.{kind}"]
        new[f"proj_out_2.{kind}"] = old[f"final_layer.linear.{kind}"]
        for i in range(arguments(NAME)["depth"]):
            a, b = f"blocks.{i}", f"transformer_blocks.{i}"
            time, label = f"{b}.norm1.emb.timestep_embedder", f"{b}.norm1.emb.class_embedder"
            new[f"{time}.linear_1.{kind}"] = old[f"t_embedder.mlp.0.{kind}"]
            new[f"{time}.linear_2.{kind}"] = old[f"t_embedder.mlp.2.{kind}"]
            new[f"{label}.embedding_table.weight"] = old["y_embedder.embedding_table.weight"]
            new[f"{b}.norm1.linear.{kind}"] = old[f"{a}.adaLN_modulation.1.{kind}"]
            width = len(old[f"{a}.attn.proj.weight"])
            for j, part in enumerate(("to_q", "to_k", "to_v")):
                rows = slice(j * width, (j + 1) * width)
                new[f"{b}.attn1.{part}.{kind}"] = old[f"{a}.attn.qkv.{kind}"][rows]
            new[f"{b}.attn1.to_out.0.{kind}"] = old[f"{a}.attn.proj.{kind}"]
            new[f"{b}.ff.net.0.proj.{kind}"] = old[f"{a}.mlp.fc1.{kind}"]
            new[f"{b}.ff.net.2.{kind}"] = old[f"{a}.mlp.fc2.{kind}"]
    return new


def config(**changes) -> dict:
    given = arguments(NAME)
    told = {
        "_class_name": "DiTTransformer2DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": given["hidden_size"] // given["num_heads"],
        "in_channels": 4,
        "norm_elementwise_affine": False,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": given["num_heads"],
        "num_embeds_ada_norm": given["num_classes"],
        "num_layers": given["depth"],
        "out_channels": 8,
        "patch_size": given["patch_size"],
        "sample_size": given["input_size"],
    }
    return {**told, **changes}


def write(folder: Path, tensors: dict[str, np.ndarray], **changes) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(**changes)))
    store(folder / WEIGHTS, tensors)
    return folder


def convert(folder: Path, output: Path, *flags: str) -> int:
    return command.main([f"--checkpoint={folder}", f"--output={output}", "--family=dit", *flags])


def test_there_and_back(tmp_path, monkeypatch):
    tensors = layout()
    write(tmp_path / "pipeline" / "transformer", tensors)
    assert convert(tmp_path / "pipeline", tmp_path / "run") == 0
    ours = answer(dit_moe.load(tmp_path / "run"), *inputs(NAME))
    assert relative_error(ours, expected(NAME)) < 1e-5

    back = tmp_path / "back"
    exporting = [f"--workdir={tmp_path / 'run'}", "--format=diffusers"]
    assert command.main([*exporting, f"--output={back}"]) == 0
    written = load_file(back / WEIGHTS)
    assert written.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(written[key], tensor, err_msg=key)
    # The second normalisation of a block is as DiT has it; the class's default is 1e-5.
    assert json.loads((back / "config.json").read_text()) == config(norm_eps=1e-6)

    monkeypatch.setattr(published, "SHARD_BYTES", 100_000)
    assert command.main([*exporting, f"--output={tmp_path / 'shards'}"]) == 0
    assert len([*(tmp_path / "shards").glob("*-of-*.safetensors")]) > 2
    assert convert(tmp_path / "shards", tmp_path / "again") == 0
    a, b = load_run(tmp_path / "run"), load_run(tmp_path / "again")
    assert a.config == b.config
    for path, value in a.parameters.items():
        np.testing.assert_array_equal(value, b.parameters[path])


EMBEDDING = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
KEYS = "transformer_blocks.0.attn1.to_k.weight"


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({EMBEDDING: 1.0}, {}, f"{EMBEDDING} in "),
        ({KEYS: None}, {}, "missing: blocks.0.attn.qkv.weight"),
        ({"extra": 1.0}, {}, "unexpected: extra"),
        ({"transformer_blocks.scale": 1.0}, {}, "unexpected: transformer_blocks.scale"),
        ({KEYS: np.zeros((48, 8))}, {}, "missing: blocks.0.attn.qkv.weight"),
        ({}, {"_class_name": "PixArtTransformer2DModel"}, "_class_name is 'PixArtTransformer2D"),
        ({}, {"attention_bias": False}, "attention_bias is False in "),
        ({}, {"num_layers": 7}, "depth is 7 in --model_json, but the tensors' shapes say"),
    ],
)
def test_refusals(change, settings, message, tmp_path, capsys):
    tensors = layout()
    for key, value in change.items():
        if value is None:
            del tensors[key]
        elif isinstance(value, np.ndarray):
            tensors[key] = value.astype(np.float32)
        else:
            tensors[key] = tensors.get(key, np.zeros(3, np.float32)) + np.float32(value)
    folder = write(tmp_path / "folder", tensors, **settings)
    assert convert(folder, tmp_path / "run") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_family_or_an_empty_folder(tmp_path, capsys):
    folder = write(tmp_path / "folder", layout())
    flags = [f"--checkpoint={folder}", f"--output={tmp_path / 'run'}", "--family=promoe"]
    assert command.main(flags) == 2
    assert "is diffusers'; allowed: 'dit'" in capsys.readouterr().err
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    assert convert(folder, tmp_path / "run") == 2
    assert f"which has none of {WEIGHTS}.index.json, " in capsys.readouterr().err


def test_format_without_such_a_network(tmp_path):
    run = imported(tmp_path, "tcdit_tiny")
    with pytest.raises(ConfigError, match=r"model\.moe is 'a mixture' \(allowed: none\)"):
        export_run(run, tmp_path / "out", "diffusers")
    assert not (tmp_path / "out").exists()


def built(folder: Path):
    """The package's own network from a folder, with the frequencies of time that DiT has."""
    from diffusers import DiTTransformer2DModel  # pyright: ignore[reportMissingImports]

    net, told = DiTTransformer2DModel.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    for block in net.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        block.norm3.eps = 1e-6
    return net.eval()


@pytest.mark.peers
def test_the_package_itself(tmp_path):
    import torch
    from diffusers import DiTTransformer2DModel  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    net = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        num_embeds_ada_norm=5,
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 0.1)
    for block in net.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(net.transformer_blocks[0].norm1.emb.state_dict())
    net.save_pretrained(tmp_path / "net", max_shard_size="20KB")
    assert (tmp_path / "net" / f"{WEIGHTS}.index.json").is_file()
    assert convert(tmp_path / "net", tmp_path / "run") == 0

    exporting = [f"--workdir={tmp_path / 'run'}", "--format=diffusers"]
    assert command.main([*exporting, f"--output={tmp_path / 'back'}"]) == 0
    x, t, y = torch.randn(4, 4, 8, 8), 1000 * torch.rand(4), torch.tensor([0, 3, 1, 5])
    model = dit_moe.load(tmp_path / "run")
    ours = answer(
        model,
        jnp.asarray(x.permute(0, 2, 3, 1).numpy()),
        jnp.asarray(t.numpy()),
        jnp.asarray(y.numpy(), jnp.int32),
    )
    for folder in ("net", "back"):
        with torch.no_grad():
            theirs = built(tmp_path / folder)(x, timestep=t, class_labels=y).sample
        assert relative_error(ours, theirs.permute(0, 2, 3, 1).numpy()) < 1e-5
