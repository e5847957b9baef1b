"""One folder read at several numbers of bits."""

import numpy as np
import pytest

from dit_moe import load
from dit_moe.commands import compress as command
from dit_moe.commands import sample
from dit_moe.config import ConfigError
from dit_moe.models.unpacking import packed_kinds
from dit_moe.runs.loading import load_run
from dit_moe.runs.model_folder import write_beside
from dit_moe.runs.open_folder import write_tensors
from dit_moe.surgery.compress.methods import chosen_steps
from dit_moe.surgery.compress.quantise import QuantiseSettings, quantise
from dit_moe.surgery.compress.steps import Model
from tests.surgery.compressing import answer, model_of
from tests.tiny import DIT_MOE, PROMOE


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("whole"), model_of(PROMOE)
    write_tensors(folder, model.parameters, model.config.model, ema=True)
    write_beside(folder, folder, model.config)
    return folder


@pytest.fixture(scope="module", params=["top_bits", "planes"])
def nested(request, run, tmp_path_factory):
    """A folder of 6 bits that may be read at 3."""
    folder = tmp_path_factory.mktemp("nested") / request.param
    step = f"quantise:bits=6,method=nearest,group=8,nested={request.param},least=3"
    assert command.main([f"--workdir={run}", f"--output={folder}", "--steps", step]) == 0
    return folder


def test_bits_are_chosen_as_it_is_read(nested, run):
    """Fewer bits, fewer bytes; adaptive normalisation stays at 8 bits, and the network computes
    with what it has."""
    sizes, by_bits = [], {}
    for bits in (3, 6):
        read = load_run(nested, bits=bits)
        kinds = packed_kinds(read.config.model)
        assert {kind.bits for kind, _ in kinds.values()} == {bits, 8}
        assert all(kind.bits == 8 for path, (kind, _) in kinds.items() if "modulation" in path)
        sizes.append(sum(p.nbytes for p in read.parameters.values()))
        parameters = {path: np.asarray(p) for path, p in read.parameters.items()}
        by_bits[bits] = answer(Model(read.config, parameters, ema=True, step=0))
    assert sizes == sorted(set(sizes))
    whole = load_run(run)
    parameters = {path: np.asarray(p) for path, p in whole.parameters.items()}
    original = answer(Model(whole.config, parameters, ema=True, step=0))
    errors = [np.square(by_bits[bits] - original).sum() for bits in (3, 6)]
    assert errors == sorted(errors, reverse=True)
    assert load(nested, bits=3).trunk is not None
    as_stored = load_run(nested)
    for path, p in load_run(nested, bits=6).parameters.items():
        np.testing.assert_array_equal(p, as_stored.parameters[path])


def test_samples_at_fewer_bits(nested, tmp_path, capsys):
    """And what cannot be read is one sentence."""
    flags = [f"--workdir={nested}", "--num_samples=2", "--steps=1"]
    assert sample.main([*flags, f"--output={tmp_path / 'a'}", "--bits=3"]) == 0
    assert sample.main([*flags, f"--output={tmp_path / 'b'}"]) == 0
    a, b = (np.load(tmp_path / name / "samples.npz")["arr_0"] for name in "ab")
    assert (a != b).any()
    assert sample.main([*flags, f"--output={tmp_path / 'c'}", "--bits=2"]) == 2
    assert "bits is 2; allowed: 3 to 6, as the model is nested" in capsys.readouterr().err


def test_what_cannot_be_read_at_fewer(run):
    with pytest.raises(ConfigError, match="bits is 4, but the model has no nested matrices"):
        load_run(run, bits=4)
    with pytest.raises(ConfigError, match="nested is 'planes' with a budget"):
        chosen_steps(["quantise:budget=3,nested=planes"])


def test_planes_are_of_what_the_method_leaves():
    """The first bits are those of the method alone."""
    model = model_of(DIT_MOE)
    settings = QuantiseSettings(bits=5, nested="planes", least=3, group=8)
    base = quantise(model, QuantiseSettings(bits=3, group=8), None).model
    nested = quantise(model, settings, None).model
    path = "trunk.segments.0.blocks.0.feed_forward.experts.w_in"
    np.testing.assert_array_equal(
        nested.parameters[f"{path}.base.codes"], base.parameters[f"{path}.codes"]
    )
    assert nested.parameters[f"{path}.planes"].shape[-3] == 2
