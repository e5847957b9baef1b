"""Stores hold what the model that they were made of holds."""

import dataclasses
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dit_moe.commands import store as command
from dit_moe.config import ConfigError, LowRankConfig, PackedConfig
from dit_moe.config.files import load_json, to_json
from dit_moe.convert.export import export_run
from dit_moe.models.parameters import Parameters
from dit_moe.models.unpacking import packed_kinds
from dit_moe.nn.packed import packed_bytes
from dit_moe.runs.loading import load_each, load_run
from dit_moe.sampling.run_sampler import _digest
from dit_moe.streaming.layout import EXPERTS, PAGE, REST, Store, read_store
from dit_moe.streaming.making import make_store
from dit_moe.training.loop import train
from tests.streaming.stores import W_IN, packed, write_model
from tests.tiny import DIT_MOE, PROMOE, PYRAMID, UNLIKE, tiny


def stored(folder: Path) -> tuple[Store, dict[tuple[str, int], np.ndarray]]:
    """The record, and every tensor of experts by path and unit, [E, ...]."""
    store = read_store(folder, load_json(folder / "config.json").model)
    raw = np.fromfile(folder / EXPERTS, np.uint8)
    found = {}
    for layer, start in zip(store.layers, store.starts, strict=False):
        blocks = raw[start : start + layer.bytes].reshape(layer.experts, layer.block)
        for leaf, offset in zip(layer.leaves, layer.offsets, strict=False):
            tensor = np.ascontiguousarray(blocks[:, offset : offset + leaf.bytes])
            tensor = tensor.view(np.dtype(leaf.dtype)).reshape(-1, *leaf.shape)
            found[f"{layer.path}.{leaf.name}", layer.unit] = tensor
    return store, found


def check(folder: Path, parameters: Parameters) -> Store:
    """Every parameter is in the store once, as it is."""
    store, found = stored(folder)
    rest = load_file(folder / REST)
    assert {path for path, _ in found} | rest.keys() == parameters.keys()
    assert not {path for path, _ in found} & rest.keys()
    for path, value in rest.items():
        np.testing.assert_array_equal(value, parameters[path], strict=True)
    for (path, unit), value in found.items():
        np.testing.assert_array_equal(value, parameters[path][unit], strict=True)
    assert all(start % PAGE == 0 for start in store.starts)
    return store


@pytest.mark.parametrize(
    "config",
    [tiny(PROMOE), tiny(PYRAMID), tiny(UNLIKE), packed(UNLIKE)],
    ids=["promoe", "pyramid", "unlike", "packed"],
)
def test_of_an_open_folder(config, tmp_path):
    parameters = write_model(tmp_path / "model", config)
    store = make_store(tmp_path / "model", tmp_path / "store", ema=False)
    assert check(tmp_path / "store", parameters) == store
    assert store.weights == _digest(parameters)
    with pytest.raises(ConfigError, match="holds the parameters themselves alone"):
        make_store(tmp_path / "model", tmp_path / "other", ema=True)


def test_bytes_of_packed_experts(tmp_path):
    """Those of their bits, scales and zeros, and at most a page for what aligns a block."""
    kinds = (PackedConfig(("*.experts.w_in",), 5, 6), PackedConfig(("*.experts.w_out",), 2, 64))
    config = packed(DIT_MOE, kinds)
    write_model(tmp_path / "model", config)
    store = make_store(tmp_path / "model", tmp_path / "store", ema=False, dtype="float16")
    closed = sum(
        packed_bytes(shape, kind.bits, kind.group)
        for path, (kind, shape) in packed_kinds(config.model).items()
        if ".shared." not in path
    )
    own = [sum(leaf.bytes for leaf in layer.leaves) for layer in store.layers]
    number = store.layers[0].experts
    assert number * sum(own) == closed
    for size, layer in zip(own, store.layers, strict=True):
        assert size <= layer.block < size + 64 * len(layer.leaves) + PAGE


def test_experts_of_unlike_bits_are_refused(tmp_path, capsys):
    kinds = (PackedConfig(("*feed_forward.experts.w_in",), 4, 6, experts=(4, 4, 3, 3)),)
    write_model(tmp_path / "model", packed(DIT_MOE, kinds))
    line = ["--workdir", str(tmp_path / "model"), "--output", str(tmp_path / "store")]
    assert command.main([*line, "--parameters", "raw"]) == 2
    assert "has experts of unlike bits (its field experts)" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_of_a_run_and_its_additions(tmp_path):
    settings = {"steps": 2, "learning_rate": 0.05, "ema_decay": 0.5}
    train(tiny(DIT_MOE, **settings), tmp_path / "plain")
    added = tiny(DIT_MOE, **settings, lora=LowRankConfig(rank=2))
    train(added, tmp_path / "added", init_from=str(tmp_path / "plain"))
    for name in ("plain", "added"):
        for ema in (True, False):
            folder = tmp_path / f"{name}-{ema}"
            assert make_store(tmp_path / name, folder, ema=ema).step == 2
            check(folder, load_run(tmp_path / name, ema).parameters)
    export_run(tmp_path / "plain", tmp_path / "open", "safetensors", ema=True)
    make_store(tmp_path / "open", tmp_path / "open-store", ema=True)
    check(tmp_path / "open-store", load_run(tmp_path / "plain").parameters)


def test_in_half_the_bytes(tmp_path):
    """What the network casts anyway is stored as it is then; other numbers stay."""
    config = tiny(PROMOE)
    parameters = write_model(tmp_path / "model", config)
    half = make_store(tmp_path / "model", tmp_path / "half", ema=False, dtype="float16")
    store, found = stored(tmp_path / "half")
    assert store == half
    for (path, unit), value in found.items():
        matrix = path.endswith(("w_in", "w_out"))
        assert value.dtype == (np.float16 if matrix else np.float32)
        np.testing.assert_array_equal(value, parameters[path][unit].astype(value.dtype))
    rest = load_file(tmp_path / "half" / REST)
    assert rest["trunk.segments.0.blocks.0.attention.qkv.kernel"].dtype == np.float16
    assert rest["patch_in.kernel"].dtype == np.float32
    # A model that computes in bfloat16 loses nothing by it.
    model = dataclasses.replace(config.model, dtype="bfloat16")
    (tmp_path / "model" / "config.json").write_text(
        to_json(dataclasses.replace(config, model=model))
    )
    assert make_store(tmp_path / "model", tmp_path / "b", ema=False).dtype == "bfloat16"


def test_one_tensor_of_an_open_folder_is_held_at_a_time(tmp_path):
    config = tiny(dataclasses.replace(DIT_MOE, hidden_ratio=4))
    model = dataclasses.replace(config.model, depth=16, width=64)
    config = dataclasses.replace(config, model=model)
    parameters = write_model(tmp_path / "model", config)
    whole = sum(np.asarray(p).nbytes for path, p in parameters.items() if ".experts.w" in path)
    del parameters
    for _ in load_each(tmp_path / "model", ema=False).parts:  # imports
        pass
    tracemalloc.start()
    for _, _, array in load_each(tmp_path / "model", ema=False).parts:
        del array
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < whole / 4


def test_what_cannot_be_stored_is_one_sentence(tmp_path, capsys):
    def failed(*arguments: object) -> str:
        assert command.main([*map(str, arguments), "--parameters", "raw"]) == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        return capsys.readouterr().err

    write_model(tmp_path / "model", tiny(DIT_MOE))
    write_model(tmp_path / "dense", tiny(None))
    write_model(tmp_path / "large", tiny(DIT_MOE), largest=1e6)
    before = sorted(path.name for path in tmp_path.iterdir())
    to = ("--output", tmp_path / "out")
    assert "a model without experts to store" in failed("--workdir", tmp_path / "dense", *to)
    assert "dtype is 'int8'; allowed: float32, " in failed(
        "--workdir", tmp_path / "model", "--dtype", "int8", *to
    )
    error = failed("--workdir", tmp_path / "large", "--dtype", "float16", *to)
    assert f"{W_IN} of {tmp_path / 'large'} as float16 holds numbers that are not finite" in error
    assert "which is there already" in failed(
        "--workdir", tmp_path / "model", "--output", tmp_path / "dense"
    )


def test_other_commands_say_what_a_store_is(tmp_path, capsys):
    write_model(tmp_path / "model", tiny(DIT_MOE))
    line = ["--workdir", str(tmp_path / "model"), "--output", str(tmp_path / "store")]
    assert command.main([*line, "--parameters", "raw"]) == 0
    assert "Wrote " in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"which sample[.]py and eval alone"):
        load_run(tmp_path / "store", ema=False)


def test_a_store_that_was_changed(tmp_path):
    config = tiny(DIT_MOE)
    write_model(tmp_path / "model", config)
    folder = tmp_path / "store"
    make_store(tmp_path / "model", folder, ema=False)
    record, experts = folder / "store.json", folder / EXPERTS
    text = record.read_text()
    for old, new, message in (
        ('"format": 1', '"format": 2', "of format 2, and this version"),
        ('"dtype": "float32"', '"dtype": "int4"', "dtype 'int4'; allowed: float32"),
        ('"experts": 4', '"experts": 3', "does not fit config.json beside it"),
        ('"unit": 0', '"unit": -1', "layers.0.unit: "),
    ):
        record.write_text(text.replace(old, new, 1))
        with pytest.raises(ConfigError, match=message):
            read_store(folder, config.model)
    record.write_text(text)
    with experts.open("r+b") as file:
        file.truncate(PAGE)
    with pytest.raises(ConfigError, match=r"has 4,096 bytes, and store.json tells of"):
        read_store(folder, config.model)
    experts.unlink()
    with pytest.raises(ConfigError, match=r"is missing, and store[.]json tells"):
        read_store(folder, config.model)
