"""Dense models become sparse ones with the same function, where that can be."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
from flax import nnx

import dit_moe
from dit_moe.commands import convert as command
from dit_moe.config import (
    ConfigError,
    ExpertGroup,
    ExpertRaceRouterConfig,
    MoEConfig,
    PrototypeRouterConfig,
    RectifiedFlowConfig,
    SigmoidTopKRouterConfig,
    SoftRouterConfig,
    TopKRouterConfig,
)
from dit_moe.models.parameters import abstract_parameters
from dit_moe.runs.loading import load_run
from dit_moe.runs.writer import InMemory, write_run
from dit_moe.surgery import upcycle
from dit_moe.surgery.upcycle import check, upcycle_run
from tests.convert.converted import answer, imported, inputs

GELU = MoEConfig(num_experts=4, top_k=4, expert="gelu", hidden_ratio=4, shared_hidden_ratio=0)
SOFTMAX = PrototypeRouterConfig(activation="softmax")


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return imported(tmp_path_factory.mktemp("runs"), "dit_tiny")


def sparse(run, moe, **changes):
    config = load_run(run).config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, moe=moe), **changes)


def difference(old, new) -> np.ndarray:
    """Largest difference of each image's answer over the largest answer, [N]."""
    arguments = inputs("dit_tiny")
    a, b = (answer(dit_moe.load(run), *arguments) for run in (old, new))
    assert a.std() > 0.1
    return np.abs(a - b).max(axis=(1, 2, 3)) / np.abs(a).max()


@pytest.mark.parametrize(
    "moe",
    [
        GELU,
        dataclasses.replace(GELU, every=2),
        # Cut into a shared part and a routed one.
        dataclasses.replace(GELU, hidden_ratio=3, shared_hidden_ratio=1),
        dataclasses.replace(GELU, router=SOFTMAX, unconditional_expert=True),
        # Two of four, whose weights sum to 2.5.
        dataclasses.replace(GELU, router=SigmoidTopKRouterConfig(scale=2.5), top_k=2),
        # Its layers' guesses begin at 0.
        dataclasses.replace(GELU, router=ExpertRaceRouterConfig(gate="softmax")),
    ],
    ids=["copies", "every_other", "cut", "prototypes", "sigmoid", "race"],
)
def test_exact_where_the_weights_have_one_sum(moe, dense, tmp_path):
    upcycle_run(dense, sparse(dense, moe), tmp_path / "up")
    assert difference(dense, tmp_path / "up").max() < 1e-5


def test_near_where_some_do(dense, tmp_path):
    moe = dataclasses.replace(GELU, num_experts=8, top_k=2)
    upcycle_run(dense, sparse(dense, moe), tmp_path / "up")
    assert 1e-5 < difference(dense, tmp_path / "up").max() < 0.01
    model = nnx.jit(lambda model, *args: model(*args).routing[0].expert)
    expert = model(dit_moe.load(tmp_path / "up"), *inputs("dit_tiny"))
    assert set(np.unique(expert)) == set(range(8))  # tokens spread over the experts


def test_without_a_class_exact(dense, tmp_path):
    moe = dataclasses.replace(
        GELU,
        router=SOFTMAX,
        top_k=1,
        unconditional_expert=True,
        hidden_ratio=2,
        shared_hidden_ratio=2,
    )
    upcycle_run(dense, sparse(dense, moe), tmp_path / "up")
    error_N = difference(dense, tmp_path / "up")
    assert error_N[-1] < 1e-5  # the null label
    assert error_N[:-1].min() > 1e-5


def test_single_expert_becomes_many(dense, tmp_path):
    """The way of DiT-MoE: SwiGLU experts and the shared one are copied."""
    one = MoEConfig(num_experts=1, top_k=1, hidden_ratio=2, shared_hidden_ratio=1)
    single = sparse(dense, one)
    rng = np.random.default_rng(0)
    shapes = {path: p.shape for path, p in abstract_parameters(single.model).items()}
    values = {path: rng.normal(0, 0.1, shape).astype(np.float32) for path, shape in shapes.items()}
    source = InMemory(shapes, lambda path, index: values[path][index])
    write_run(tmp_path / "one", single, None, source)
    many = dataclasses.replace(one, num_experts=3, top_k=3)
    upcycle_run(tmp_path / "one", sparse(tmp_path / "one", many), tmp_path / "many")
    assert difference(tmp_path / "one", tmp_path / "many").max() < 1e-5


def test_the_trunk_is_walked_once_and_a_router_made_once_a_layer(dense, tmp_path):
    config = sparse(dense, dataclasses.replace(GELU, router=SigmoidTopKRouterConfig(scale=2.5)))
    with (
        mock.patch.object(upcycle, "places", wraps=upcycle.places) as walked,
        mock.patch.object(upcycle, "build_router", wraps=upcycle.build_router) as made,
    ):
        upcycle_run(dense, config, tmp_path / "up")
    assert walked.call_count == 2  # the old trunk and the new one
    assert made.call_count == config.model.depth


def test_noise(dense, tmp_path):
    config = sparse(dense, GELU)
    for name, noise in (("a", 0.5), ("b", 0.5), ("none", 0.0)):
        upcycle_run(dense, config, tmp_path / name, noise=noise)
    a, b, none = (load_run(tmp_path / name).parameters for name in ("a", "b", "none"))
    for path, value in none.items():
        changed = np.asarray(a[path]) - np.asarray(value)
        np.testing.assert_array_equal(a[path], b[path])  # it follows from the config's seed
        if "feed_forward.experts.w_" not in path:
            assert not changed.any(), path
            continue
        for layer, expert in np.ndindex(changed.shape[:2]):
            # w_out carries no factor here: the weights sum to 1.
            ratio = changed[layer, expert].std() / np.asarray(value)[layer, expert].std()
            assert 0.45 < ratio < 0.55
        assert np.abs(changed[:, 0] - changed[:, 1]).max() > 0


def replaced(config, **model):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replaced(c, moe=None), "config.model.moe is none"),
        (lambda c: replaced(c, depth=4), "config.model.depth is 4; allowed: 2"),
        (lambda c: replaced(c, num_classes=9), "config.model.num_classes is 9; allowed: 10"),
        (
            lambda c: replaced(c, moe=MoEConfig(shared_hidden_ratio=0)),
            "has swiglu experts with hidden_ratio 4 and shared_hidden_ratio 0; allowed: gelu",
        ),
        (
            lambda c: replaced(c, moe=dataclasses.replace(GELU, hidden_ratio=2)),
            "ratios that sum to 4",
        ),
        (
            lambda c: replaced(
                c,
                moe=dataclasses.replace(
                    GELU, hidden_ratio=2, shared_hidden_ratio=2, shared_mix="learnt"
                ),
            ),
            "config.model.moe.shared_mix is 'learnt'; allowed: 'sum'",
        ),
        (
            lambda c: replaced(
                c, moe=dataclasses.replace(GELU, unlike=(ExpertGroup("gru", 1, 0.5),))
            ),
            "config.model.moe.unlike has gru; allowed: none",
        ),
        (
            lambda c: replaced(c, moe=dataclasses.replace(GELU, router=PrototypeRouterConfig())),
            "router.activation is 'identity'",
        ),
        (
            lambda c: replaced(
                c, moe=dataclasses.replace(GELU, router=TopKRouterConfig(gate="identity"))
            ),
            "router.gate is 'identity'",
        ),
        (
            lambda c: replaced(
                c, moe=dataclasses.replace(GELU, router=SoftRouterConfig(), top_k=1)
            ),
            "config.model.moe.router.name is 'soft', whose experts see mixes of tokens",
        ),
        (
            lambda c: dataclasses.replace(c, objective=RectifiedFlowConfig()),
            "config.objective.name is 'rectified_flow'; allowed: 'ddpm'",
        ),
        (
            lambda c: dataclasses.replace(
                c, objective=dataclasses.replace(c.objective, timesteps=500)
            ),
            "config.objective.timesteps is 500; allowed: 1000",
        ),
    ],
)
def test_refusals(change, message, dense):
    with pytest.raises(ConfigError) as error:
        check(load_run(dense).config, change(sparse(dense, GELU)))
    assert message in str(error.value)


def test_many_experts_cannot_be_upcycled(dense):
    config = sparse(dense, dataclasses.replace(GELU, router=TopKRouterConfig()))
    with pytest.raises(ConfigError, match="has 4 experts per layer"):
        check(config, config)


def test_a_single_expert_whose_weight_is_not_1_cannot_be_upcycled(dense):
    config = sparse(dense, dataclasses.replace(GELU, num_experts=1, top_k=1))
    sigmoid = dataclasses.replace(config.model.moe, router=TopKRouterConfig(gate="sigmoid"))
    null = dataclasses.replace(config.model.moe, cheap_experts=("zero",))
    for moe in (sigmoid, null):
        with pytest.raises(ConfigError, match="beside cheap ones or with another gate"):
            check(replaced(config, moe=moe), config)


def test_command(dense, tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(
        "import dataclasses\n"
        "from dit_moe.config.files import load_json\n"
        "from pathlib import Path\n"
        f"def get_config():\n    return load_json(Path({str(dense / 'config.json')!r}))\n"
    )
    flags = [f"--upcycle={dense}", f"--config={config}", f"--output={tmp_path / 'up'}"]
    assert command.main(flags) == 2
    assert "config.model.moe is none" in capsys.readouterr().err
    flags += ["--config.model.moe.expert=gelu", "--config.model.moe.shared_hidden_ratio=0"]
    assert command.main([*flags, "--config.model.moe.num_experts=2"]) == 0
    model = dit_moe.load(tmp_path / "up")
    assert model.config.moe is not None
    assert model.config.moe.num_experts == 2
