"""Networks with packed matrices: which they are, and that they compute what whole ones do."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.config import ConfigError, ModelConfig, PackedConfig, SegmentConfig
from dit_moe.config.files import from_dict, to_dict
from dit_moe.config.presets import preset
from dit_moe.models.low_rank import is_matrix
from dit_moe.models.parameters import (
    Parameters,
    abstract_parameters,
    functional,
    init_parameters,
    logical_axes,
)
from dit_moe.models.unpacking import (
    check_whole,
    packed_kinds,
    packed_matrices,
    packed_parameters,
    unpacked,
    whole_model,
)
from dit_moe.nn.packed import Packed, packed_bytes, range_grid
from tests.tiny import DIT_MOE, PROMOE, SOFT_MOE, UNLIKE, tiny

PACKED = (
    PackedConfig(("*.experts.w_in", "*.unlike.0.w_*"), 4, 8),
    PackedConfig(("*.experts.w_out", "*.attention.*.kernel", "*modulation.kernel"), 8, 64),
    PackedConfig(("patch_*.kernel",), 3, 6),
)


def packed_model(moe) -> ModelConfig:
    packed = PACKED
    if moe is not UNLIKE:
        packed = (PackedConfig(("*.experts.w_in",), 4, 8), *PACKED[1:])
    return dataclasses.replace(tiny(moe).model, packed=packed)


def random_parameters(model: ModelConfig) -> Parameters:
    """Of which none is 0, as some are in a fresh network."""
    parameters = init_parameters(model, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), len(parameters))
    return {
        path: p + 0.2 * jax.random.normal(key, p.shape)
        for key, (path, p) in zip(keys, parameters.items(), strict=True)
    }


@partial(jax.jit, static_argnums=0)
def rounded(model: ModelConfig, parameters: Parameters) -> Parameters:
    found = dict(parameters)
    for path, (kind, _) in packed_kinds(model).items():
        w = found.pop(path)
        grid = range_grid(w, kind.bits, kind.group)
        found |= packed_parameters(path, Packed.of(w, grid, kind.bits, kind.group))
    return found


def outputs(model: ModelConfig, parameters: Parameters) -> np.ndarray:
    x = jax.random.normal(jax.random.key(2), (4, 8, 8, 1))
    t, y = jnp.linspace(0.1, 0.9, 4), jnp.array([0, 1, 10, 3])
    run = jax.jit(lambda parameters, x: functional(model)(parameters)(x, t, y).value)
    return np.asarray(run(parameters, x))


@pytest.mark.parametrize(
    "moe",
    [PROMOE, SOFT_MOE, UNLIKE, None],
    ids=["promoe", "soft", "unlike", "dense"],
)
def test_packed_and_unpacked_compute_the_same(moe):
    model = packed_model(moe)
    whole = random_parameters(whole_model(model))
    parameters = rounded(model, whole)
    abstract = abstract_parameters(model)
    assert {k: (p.shape, p.dtype) for k, p in parameters.items()} == {
        k: (p.shape, p.dtype) for k, p in abstract.items()
    }
    again, dense = unpacked(model, parameters)
    assert again == whole_model(model)
    assert dense.keys() == whole.keys()
    found = outputs(model, parameters)
    assert found.std() > 0.1
    np.testing.assert_allclose(found, outputs(again, dense), rtol=1e-4, atol=1e-5)


def test_a_fresh_network_is_rounded_to_nearest():
    model = packed_model(PROMOE)
    fresh = init_parameters(model, jax.random.key(0))
    expected = rounded(model, init_parameters(whole_model(model), jax.random.key(0)))
    for path, p in expected.items():
        np.testing.assert_array_equal(fresh[path], p, err_msg=path)


def test_the_config_tells_all():
    """Of a run folder's text, and of one that was written before there were packed matrices."""
    config = dataclasses.replace(tiny(PROMOE), model=packed_model(PROMOE))
    values = to_dict(config)
    assert from_dict(values) == config
    del values["model"]["packed"]
    assert from_dict(values) == tiny(PROMOE)


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (PackedConfig(("*.nothing",)), r"packed.0.patterns has '\*.nothing', which matches no"),
        (PackedConfig(("*.router.prototypes",)), "which matches no matrix that can be packed"),
        (PackedConfig(("label.table",)), "which matches no matrix that can be packed"),
        (PackedConfig(("*.1.*.experts.w_in",), 4, 8, (4, 2)), "has bits for 2 experts of trunk"),
        (PackedConfig(("*.qkv.kernel",), 4, 8, (4, 2)), "allowed: for 0, as many as it has"),
    ],
)
def test_what_cannot_be_packed(packed, message):
    model = dataclasses.replace(tiny(PROMOE).model, packed=(packed,))
    with pytest.raises(ConfigError, match=message):
        abstract_parameters(model)


def test_a_matrix_is_packed_once():
    twice = (PackedConfig(("*.w_in",)), PackedConfig(("*.experts.*",), 4))
    model = dataclasses.replace(tiny(PROMOE).model, packed=twice)
    with pytest.raises(ConfigError, match=r"has trunk.*w_in in 2 of its parts; allowed: one"):
        abstract_parameters(model)


@pytest.mark.parametrize(
    ("field", "value"),
    [("bits", 1), ("bits", 9), ("group", 0), ("patterns", []), ("experts", [2, 4])],
)
def test_settings_that_there_are_not(field, value):
    values = to_dict(tiny(PROMOE))
    kind = {"patterns": ["*.w_in"], "bits": 4, "group": 64, field: value}
    values["model"]["packed"] = [kind]
    with pytest.raises(ConfigError, match=rf"config.model.packed.*{field}"):
        from_dict(values)


def test_only_whole_networks_are_changed():
    check_whole(tiny(PROMOE).model, "it")
    with pytest.raises(ConfigError, match="it has matrices packed to 3 and 4 and 8 bits"):
        check_whole(packed_model(PROMOE), "it")


def test_devices_have_all_of_what_is_packed():
    axes = logical_axes(packed_model(PROMOE))
    assert all(set(names) == {None} for path, names in axes.items() if path.endswith(".codes"))


def test_packed_bytes_of_the_largest_published_model():
    """DiT-MoE-XL/2-8E2A by hand: experts and attention at 4 bits with groups of 64, modulation at
    8, all else as it is. A group's scale and zero are 32 bits."""
    model = preset("DiT-MoE-XL/2-8E2A").model
    width, depth, hidden = model.width, model.depth, 4 * model.width
    moe = model.moe
    assert moe is not None
    assert (width, depth, moe.num_experts) == (1152, 28, 8)
    packed = (
        PackedConfig(("*.experts.w_*", "*.attention.*.kernel"), 4),
        PackedConfig(("trunk.*.modulation.kernel",), 8),
    )
    abstract = abstract_parameters(dataclasses.replace(model, packed=packed))
    found = sum(p.size * p.dtype.itemsize for p in abstract.values())

    routed = 8 * 3 * width * hidden
    shared = 3 * width * int(moe.shared_hidden_ratio * width)
    at_four = depth * (routed + shared + 4 * width**2)
    at_eight = depth * 6 * width**2
    whole = abstract_parameters(model)
    rest = sum(p.size for p in whole.values()) - at_four - at_eight
    assert found == at_four * 4.5 / 8 + at_eight * 8.5 / 8 + 4 * rest
    # Less than a third of float16's bytes, and what is whole is the least of it.
    assert found < 0.3 * 2 * (at_four + at_eight + rest)
    matrices = [path for path, names in logical_axes(model).items() if is_matrix(path, names)]
    assert set(packed_kinds(dataclasses.replace(model, packed=packed))) < set(matrices)


def test_layers_may_differ():
    """Segments have paths of their own."""
    config = tiny((SegmentConfig(1, DIT_MOE), SegmentConfig(1, DIT_MOE)))
    packed = (
        PackedConfig(("trunk.segments.0.*.w_*",), 2, 8),
        PackedConfig(("trunk.segments.1.*.experts.w_in",), 5, 16),
    )
    model = dataclasses.replace(config.model, packed=packed)
    parameters = rounded(model, random_parameters(config.model))
    found = packed_matrices(model, parameters)
    assert {packed.bits for packed in found.values()} == {2, 5}
    for path, matrix in found.items():
        sizes = sum(leaf.nbytes for leaf in jax.tree.leaves(matrix))
        assert sizes == packed_bytes(matrix.shape, matrix.bits, matrix.group), path
    again, dense = unpacked(model, parameters)
    np.testing.assert_allclose(
        outputs(model, parameters), outputs(again, dense), rtol=1e-4, atol=1e-5
    )
