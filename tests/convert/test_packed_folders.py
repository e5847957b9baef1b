"""Folders of models with packed matrices: written, read, sampled from, converted, refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import dit_moe
from dit_moe.analysis.experts import expert_similarity
from dit_moe.commands import convert, sample, train
from dit_moe.config import Config, ConfigError, PackedConfig
from dit_moe.config.files import load_json, to_json
from dit_moe.convert.export import export_run
from dit_moe.models.parameters import get_parameters, init_parameters
from dit_moe.models.unpacking import unpacked
from dit_moe.nn.packed import ORDER, packed_bytes
from dit_moe.runs.loading import load_run
from dit_moe.runs.open_folder import write_tensors
from dit_moe.runs.weights import write_weights
from dit_moe.surgery.aggregate import aggregate_runs
from dit_moe.surgery.upcycle import upcycle_run
from tests.tiny import PROMOE, tiny

PACKED = (
    PackedConfig(("*.experts.w_*",), 4, 6),
    PackedConfig(("*.attention.*.kernel", "patch_out.kernel"), 8, 64),
)


def write_folder(folder, config: Config):
    folder.mkdir()
    parameters = jax.device_get(init_parameters(config.model, jax.random.key(0)))
    write_tensors(folder, parameters, config.model, ema=True)
    (folder / "config.json").write_text(to_json(config))
    return folder


@pytest.fixture(scope="module")
def config():
    whole = tiny(PROMOE)
    model = dataclasses.replace(whole.model, packed=PACKED, num_classes=1000)  # as ProMoE's code
    return dataclasses.replace(whole, model=model)


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("models") / "packed", config)


def test_a_folder_keeps_every_byte(folder, config):
    """And tells bits, group, shape and order of every packed matrix."""
    written = init_parameters(config.model, jax.random.key(0))
    read = load_run(folder).parameters
    assert read.keys() == written.keys()
    for path, p in written.items():
        assert read[path].dtype == p.dtype, path
        np.testing.assert_array_equal(read[path], p, err_msg=path)
    np.testing.assert_array_equal(
        get_parameters(dit_moe.load(folder))["patch_out.kernel.codes"],
        written["patch_out.kernel.codes"],
    )
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        told = json.loads(file.metadata()["packed"])
    assert told["order"] == ORDER
    matrices = told["matrices"]
    name = "trunk.segments.0.0.blocks.1.feed_forward.experts.w_in"
    assert matrices[name] == {"bits": 4, "group": 6, "shape": [5, 16, 16]}
    assert matrices["patch_out.kernel"] == {"bits": 8, "group": 64, "shape": [16, 4]}
    tensors = load_file(folder / "model.safetensors")
    for name, one in matrices.items():
        size = sum(tensors[f"{name}.{part}"].nbytes for part in ("codes", "scale", "zero"))
        assert size == packed_bytes(tuple(one["shape"]), one["bits"], one["group"]), name


def test_samples_are_those_of_the_unpacked_model(folder, config, tmp_path):
    run = load_run(folder)
    model, parameters = unpacked(config.model, run.parameters)
    whole = tmp_path / "whole"
    whole.mkdir()
    write_tensors(whole, jax.device_get(parameters), model, ema=True)
    (whole / "config.json").write_text(to_json(dataclasses.replace(config, model=model)))
    for source in (folder, whole):
        output = tmp_path / f"samples of {source.name}"
        arguments = [f"--workdir={source}", f"--output={output}", "--num_samples=8", "--steps=3"]
        assert sample.main(arguments) == 0
    found, expected = (
        np.load(tmp_path / f"samples of {name}" / "samples.npz")["arr_0"].astype(int)
        for name in ("packed", "whole")
    )
    assert np.abs(found - expected).max() <= 1


def test_exports_of_a_folder(folder, config, tmp_path):
    """As it is, packed; in a peer's names, whole."""
    export_run(folder, tmp_path / "again", "safetensors")
    ours, theirs = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "again"))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert load_json(tmp_path / "again" / "config.json") == config
    arguments = [f"--workdir={folder}", f"--output={tmp_path}/peer.safetensors", "--format=promoe"]
    assert convert.main(arguments) == 0
    peer = load_file(tmp_path / "peer.safetensors")
    _, parameters = unpacked(config.model, load_run(folder).parameters)
    qkv = parameters["trunk.segments.0.blocks.1.attention.qkv.kernel"][0]
    np.testing.assert_array_equal(peer["blocks.1.attn.qkv.weight"], np.asarray(qkv).T)


def test_experts_are_looked_at_whole(folder, config):
    parameters = load_run(folder).parameters
    found = expert_similarity(config.model, parameters)
    np.testing.assert_allclose(found, expert_similarity(*unpacked(config.model, parameters)))


def changed(folder, target, change, metadata=None):
    """A copy whose tensors are changed by a function."""
    shutil.copytree(folder, target)
    path = target / "model.safetensors"
    with safe_open(path, framework="numpy") as file:
        told = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata or told)
    write_weights(target, ema=True, files=("model.safetensors",))
    return target


def test_folders_that_do_not_fit(folder, config, tmp_path):
    codes = "patch_out.kernel.codes"

    def floats(tensors):
        tensors[codes] = tensors[codes].astype(np.float32)

    def endless(tensors):
        tensors["patch_out.kernel.scale"][0] = np.inf

    with pytest.raises(ConfigError, match=f"do not fit config.json: {codes} and .*another type"):
        load_run(changed(folder, tmp_path / "floats", floats))
    with pytest.raises(ConfigError, match=r"patch_out.kernel.scale .* not finite"):
        load_run(changed(folder, tmp_path / "endless", endless))
    with pytest.raises(ConfigError, match=r"config.json \(model.packed\) tells otherwise"):
        load_run(changed(folder, tmp_path / "mute", lambda tensors: None, {"format": "dit_moe"}))
    # As many groups, of another size.
    other = (PACKED[0], dataclasses.replace(PACKED[1], group=16))
    shutil.copytree(folder, tmp_path / "groups")
    model = dataclasses.replace(config.model, packed=other)
    (tmp_path / "groups" / "config.json").write_text(
        to_json(dataclasses.replace(config, model=model))
    )
    with pytest.raises(ConfigError, match=r"config.json \(model.packed\) tells otherwise"):
        load_run(tmp_path / "groups")


def test_packed_models_are_not_trained(folder, config, tmp_path, capsys):
    file = tmp_path / "config.py"
    for text, flags in (
        (to_json(tiny(PROMOE)), [f"--init_from={folder}"]),
        (to_json(config), []),
    ):
        values = json.loads(text)
        del values["format"]
        file.write_text(
            "import json\nfrom dit_moe.config.files import from_dict\n"
            f"def get_config():\n    return from_dict(json.loads({json.dumps(values)!r}))\n"
        )
        workdir = tmp_path / "run"
        assert train.main([f"--config={file}", f"--workdir={workdir}", *flags]) == 2
        assert "matrices packed to 4 and 8 bits (model.packed)" in capsys.readouterr().err
        assert not workdir.exists() or not list(workdir.glob("config.json"))


def test_packed_models_are_not_made_others_of(folder, tmp_path):
    with pytest.raises(ConfigError, match="the run to upcycle has matrices packed"):
        upcycle_run(folder, tiny(PROMOE), tmp_path / "up")
    with pytest.raises(ConfigError, match="the first run has matrices packed"):
        aggregate_runs(folder, folder, tmp_path / "both")
