"""Models out: open folders, the hub, the peers' state_dicts."""

import dataclasses
import json
import resource
import shlex
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import dit_moe
from dit_moe.autoencoder.latent_space import read_latent_space
from dit_moe.commands import convert as command
from dit_moe.config import (
    BatchPoolRouterConfig,
    ConfigError,
    ExpertGroup,
    MoEConfig,
    RectifiedFlowConfig,
    TopKRouterConfig,
)
from dit_moe.config.mixtures import DIFFMOE, TC_DIT
from dit_moe.convert.constructors import constructor_arguments
from dit_moe.devices.mesh import build_mesh
from dit_moe.runs import open_folder as published
from dit_moe.runs.loading import load_run
from dit_moe.runs.state import abstract_state
from dit_moe.runs.weights import write_weights
from dit_moe.runs.writer import InMemory, write_run
from dit_moe.sampling.run_sampler import RunSampler
from dit_moe.training.label_rows import LabelRows
from dit_moe.training.origin import InitFrom, Start, start_parameters
from tests.convert.converted import imported

NAME = "promoe_tiny"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = imported(tmp_path_factory.mktemp("runs"), NAME)
    result = {"metrics": {"fid": {"fid": 2.345}, "per_class": {"fid": {"0": 1.0}}}}
    (folder / "fid.json").write_text(json.dumps(result))
    (folder / "metrics.csv").write_text("step,loss\n100,0.9\n200,0.75\n")
    return folder


@pytest.fixture(scope="module")
def exported(run):
    folder = run.parent / "exported"
    assert command.main([f"--workdir={run}", f"--output={folder}"]) == 0
    return folder


def assert_same_run(folder, run, ema=True):
    a, b = load_run(folder, ema), load_run(run, ema)
    assert a.config == b.config
    assert a.parameters.keys() == b.parameters.keys()
    for path, value in b.parameters.items():
        np.testing.assert_array_equal(a.parameters[path], value)


def test_open_folder(exported, run):
    assert_same_run(exported, run)
    assert read_latent_space(exported) == read_latent_space(run)
    assert dit_moe.load(exported).config == load_run(run).config.model


def test_shards(run, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "SHARD_BYTES", 200_000)
    assert command.main([f"--workdir={run}", f"--output={tmp_path / 'shards'}"]) == 0
    files = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 3
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    total = 0
    for file in files:
        with safe_open(file, framework="numpy") as shard:
            assert {index["weight_map"][key] for key in shard.keys()} == {file.name}  # noqa: SIM118
            sizes = [shard.get_tensor(key).nbytes for key in shard.keys()]  # noqa: SIM118
        assert sum(sizes) <= 200_000 or len(sizes) == 1
        total += sum(sizes)
    assert total == index["metadata"]["total_size"]
    assert_same_run(tmp_path / "shards", run)
    files[0].unlink()
    with pytest.raises(ConfigError, match=f"{files[0].name} is missing"):
        load_run(tmp_path / "shards")


def test_a_tensor_of_no_float_type(exported, tmp_path):
    tensors = load_file(exported / "model.safetensors")
    tensors["label.table"] = tensors["label.table"].astype(np.int8)
    shutil.copy(exported / "config.json", tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"fit config.json: label.table and 0 more are missing"):
        load_run(tmp_path)


def damaged(exported, folder, change):
    """A copy of the exported folder with changed tensors, which its digests are made to fit."""
    shutil.copytree(exported, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    write_weights(folder, ema=True, files=("model.safetensors",))
    return folder


def test_a_flipped_bit(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "flipped")
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.safetensors is damaged or another file"):
        load_run(folder)
    (folder / "weights.json").unlink()  # as older folders are without
    assert load_run(folder).config == load_run(exported).config


def test_numbers_that_are_not_finite(exported, tmp_path):
    def change(tensors):
        tensors["trunk.segments.0.1.blocks.0.modulation.bias"][3] = np.inf

    folder = damaged(exported, tmp_path / "infinite", change)
    with pytest.raises(
        ConfigError, match=r"trunk\.segments\.0\.1\.blocks\.0\.modulation\.bias of .* not finite"
    ):
        load_run(folder)


def test_a_run_with_numbers_that_are_not_finite(run, tmp_path):
    loaded = load_run(run)
    shapes = {path: p.shape for path, p in loaded.parameters.items()}
    broken = {path: np.array(p) for path, p in loaded.parameters.items()}
    broken["patch_out.bias"][0] = np.nan
    source = InMemory(shapes, lambda path, index: broken[path][index])
    write_run(tmp_path / "broken", loaded.config, None, source)
    with pytest.raises(
        ConfigError, match=r"patch_out\.bias and 0 more parameters of .* not finite"
    ):
        load_run(tmp_path / "broken")


def test_one_of_average_and_parameters(exported, run, tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"average of the parameters alone.*--parameters ema"):
        load_run(exported, ema=False)
    output = tmp_path / "it's raw"
    assert command.main([f"--workdir={run}", f"--output={output}", "--parameters=raw"]) == 0
    assert "Took the parameters (raw)." in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"the parameters themselves alone.*--parameters raw"):
        load_run(output)
    assert_same_run(output, run, ema=False)
    card = (output / "README.md").read_text()
    assert f"python sample.py --workdir {shlex.quote(output.name)} --parameters raw" in card
    assert 'dit_moe.load("it\'s raw", ema=False)' in card
    # What does not ask for one of them takes what there is.
    assert command.main([f"--workdir={output}", f"--output={tmp_path / 'again'}"]) == 0
    assert_same_run(tmp_path / "again", run, ema=False)
    config = load_run(run).config
    mesh = build_mesh(config.mesh)
    like = abstract_state(config.model, config.train, mesh).parameters
    same = tuple(range(config.model.num_classes))
    start = Start(InitFrom(str(output)), config, config.model, LabelRows(same, same))
    started = start_parameters(start, tmp_path / "new", like)
    np.testing.assert_array_equal(started["label.table"], load_run(run).parameters["label.table"])
    assert f"Starts from the parameters of {output}" in capsys.readouterr().out


def test_a_folder_whose_name_is_no_text(run, tmp_path):
    output = tmp_path / "\udcff"
    assert command.main([f"--workdir={run}", f"--output={output}"]) == 0
    assert "--workdir '\\udcff' --output" in (output / "README.md").read_text()


def test_model_card(exported, run):
    card = (exported / "README.md").read_text()
    count = sum(p.size for p in load_run(run).parameters.values())
    for text in (
        f"| parameters | {count:,} |",
        "| experts | 4 of gelu, 1 for a token, router prototype |",
        "| latents of | `stabilityai/sd-vae-ft-mse` |",
        "| fid: fid fid | 2.345 |",
        "| training loss | 0.75 |",
        'dit_moe.load("exported")',
    ):
        assert text in card


def test_from_the_hub(exported, run, monkeypatch):
    asked = []

    def snapshot_download(name):
        asked.append(name)
        return str(exported)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert_same_run("someone/promoe", run)
    assert asked == ["someone/promoe"]
    # As sample.py and eval.fid ask for it.
    sampler = RunSampler(
        Path("someone/promoe"), ema=True, batch_size=8, num_samples=8, autoencoder="none"
    )
    assert sampler.identity["workdir"] == str(exported)
    asked.pop()
    # A folder of this machine goes before, and a missing one beside others is no name.
    monkeypatch.chdir(run.parent.parent)
    assert_same_run(f"{run.parent.name}/{run.name}", run)
    with pytest.raises(ConfigError, match="which is not a folder"):
        load_run(f"{run.parent.name}/nothing")
    assert asked == ["someone/promoe"]


def test_no_network(monkeypatch):
    def snapshot_download(name):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ConfigError, match=r"cannot be downloaded .*no route to host"):
        dit_moe.load("someone/promoe")


@pytest.mark.parametrize("works", [True, False])
def test_upload(works, run, tmp_path, monkeypatch, capsys):
    calls = {}

    class Hub:
        def create_repo(self, name, exist_ok):
            assert exist_ok
            if not works:
                raise PermissionError("401 Unauthorized")

        def upload_folder(self, repo_id, folder_path):
            calls[repo_id] = sorted(path.name for path in Path(folder_path).iterdir())

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    flags = [f"--workdir={run}", f"--output={tmp_path / 'out'}", "--upload=someone/promoe"]
    assert command.main(flags) == (0 if works else 2)
    if works:
        files = ["README.md", "config.json", "latents.json", "model.safetensors", "weights.json"]
        assert calls == {"someone/promoe": files}
    else:
        assert "401 Unauthorized" in capsys.readouterr().err


BY_IMAGE = MoEConfig(unlike=(ExpertGroup("gru"),), choose_by="image")
MIXED = MoEConfig(shared_mix="learnt")
SIGMOID = dataclasses.replace(TC_DIT, router=TopKRouterConfig(gate="sigmoid"))
BIASED = dataclasses.replace(TC_DIT, router=TopKRouterConfig(bias="sign"))
SLOW = dataclasses.replace(DIFFMOE, router=BatchPoolRouterConfig(threshold_decay=0.99))


def with_model(config, **changes):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


@pytest.mark.parametrize(
    ("family", "preset", "changes", "message"),
    [
        ("dit", "DiT-MoE-S/2-8E2A", {}, "model.moe is 'a mixture' (allowed: none)"),
        ("dit", "DiT-S/2", {"qk_norm": True}, "model.qk_norm is True (allowed: false)"),
        ("sit", "DiT-S/2", {}, "(allowed: rectified_flow with time_scale 1)"),
        ("dit-moe", "DiT-S/2", {}, "model.moe is None (allowed: a mixture)"),
        ("dit-moe", "ProMoE-S/2", {}, "model.moe.router.name is 'prototype' (allowed: top_k)"),
        ("dit-moe", "DiT-S/2", {"moe": MoEConfig(shared_hidden_ratio=1)}, "(allowed: 2)"),
        ("dit-moe", "DiT-S/2", {"moe": MIXED}, "shared_mix is 'learnt' (allowed: sum)"),
        ("dit-moe", "DiT-MoE-S/2-8E2A", {"qk_norm": True}, "epsilon is 1e-05 (allowed: 1e-06)"),
        ("promoe", "ProMoE-S/2", {"qk_norm": True, "qk_norm_epsilon": 1e-6}, "(allowed: 1e-05)"),
        ("dit-moe", "DiT-S/2", {"moe": BY_IMAGE}, "choose_by is 'image' (allowed: token)"),
        ("dit-moe", "DiT-S/2", {"moe": BY_IMAGE}, "kind='gru'"),
        ("promoe", "DiT-MoE-S/2-8E2A", {}, "model.moe.expert is 'swiglu' (allowed: gelu)"),
        ("promoe", "ProMoE-S/2", {"num_classes": 10}, "model.num_classes is 10 (allowed: 1000"),
        ("promoe", "ProMoE-EC-L/2", {}, "is 'prototype_expert_choice' (allowed: prototype)"),
        ("promoe-ec", "ProMoE-L/2", {}, "is 'prototype' (allowed: prototype_expert_choice)"),
        ("dit-moe", "TC-DiT-L/2-E8", {}, "model.moe.expert is 'gelu' (allowed: swiglu)"),
        ("tc-dit", "EC-DiT-L/2-E8", {}, "is 'expert_choice' (allowed: top_k)"),
        (
            "tc-dit",
            "TC-DiT-L/2-E8",
            {"moe": SIGMOID},
            "router.gate is 'sigmoid' (allowed: softmax)",
        ),
        ("tc-dit", "TC-DiT-L/2-E8", {"moe": BIASED}, "router.bias is 'sign' (allowed: absent)"),
        ("ec-dit", "DiffMoE-L/2-E8", {}, "is 'batch_pool' (allowed: expert_choice)"),
        ("ec-dit", "EC-DiT-L/2-E8", {"mlp_ratio": 2}, "hidden_ratio is 4.0 (allowed: 2, the"),
        ("diffmoe", "DiffMoE-L/2-E8", {"moe": SLOW}, "threshold_decay is 0.99 (allowed: 0.95"),
        ("dit", "DiT-S/2", {"position": "rope"}, "model.position is 'rope' (allowed: sincos)"),
        ("tc-dit", "DSMoE-S/2-E16", {}, "model.mlp_activation is 'silu' (allowed: gelu)"),
        ("ds-moe", "DiT-MoE-S/2-8E2A", {}, "is 'top_k' (allowed: sigmoid_top_k)"),
        ("ds-moe", "DSMoE-S/2-E16", {"mlp_activation": "gelu"}, "'gelu' (allowed: silu)"),
        ("ds-moe", "ProMoE-S/2", {}, "(allowed: rectified_flow with time_scale 1)"),
    ],
)
def test_formats_that_have_no_such_network(family, preset, changes, message):
    config = with_model(dit_moe.preset(preset), **changes)
    with pytest.raises(ConfigError) as error:
        constructor_arguments(family, config.model, config.objective)
    assert message in str(error.value)


def test_sit_needs_its_own_unit_of_time():
    config = dit_moe.preset("DiT-S/2")
    config = dataclasses.replace(config, objective=RectifiedFlowConfig())
    assert constructor_arguments("sit", config.model, config.objective)["hidden_size"] == 384


def test_a_table_of_labels_has_a_row_for_none():
    """Whatever the rate of the run: with a rate of 0 the peers' constructors leave it out."""
    config = with_model(dit_moe.preset("DiT-S/2"), label_dropout=0.0)
    assert constructor_arguments("dit", config.model, config.objective)["class_dropout_prob"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format=promoe", "--output=a.bin"], "allowed: .safetensors, .pt or .pth"),
        (["--format=dit", "--output=a.safetensors"], "format 'dit' has no such network"),
        (["--format=promoe", "--output=mine.safetensors"], "but mine.json is there already"),
        (["--output=."], "which is there already"),
    ],
)
def test_outputs(flags, message, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").touch()
    assert command.main([f"--workdir={run}", *flags]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--output=a"],
        ["--format=promoe", "--output=a.safetensors"],
        pytest.param(["--format=promoe", "--output=a.pt"], marks=pytest.mark.peers),
    ],
)
def test_a_file_that_cannot_be_written(flags, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        assert command.main([f"--workdir={run}", *flags]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be written" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_an_empty_name_is_no_folder(capsys):
    with pytest.raises(SystemExit):
        command.main(["--workdir=", "--output=a", "--format=dit", "--upload="])
    assert "--upload is given with --format dit" in capsys.readouterr().err
    assert command.main(["--workdir=", "--output=a"]) == 2
    assert "config.json does not exist" in capsys.readouterr().err
