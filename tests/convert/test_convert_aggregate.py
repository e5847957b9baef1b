"""Two sparse runs become one with the experts of both; with itself a run stays what it was."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dit_moe
from dit_moe.commands import convert as command
from dit_moe.config import (
    ROUTERS,
    Config,
    ConfigError,
    MixedTopKRouterConfig,
    MoEConfig,
    RectifiedFlowConfig,
    SegmentConfig,
    SigmoidTopKRouterConfig,
    TopKRouterConfig,
)
from dit_moe.models.parameters import Parameters, abstract_parameters, functional
from dit_moe.runs.writer import InMemory, write_run
from dit_moe.surgery.aggregate import aggregated, check, columns, join
from tests.tiny import DIT_MOE, HECTO, MOE_PLUS_PLUS, PROMOE, PYRAMID, UNLIKE, tiny


def of(moe: MoEConfig | tuple[SegmentConfig, ...]) -> Config:
    return tiny(moe)


def live(config: Config, seed: int) -> dict[str, np.ndarray]:
    """Parameters of which none is zero."""
    rng = np.random.default_rng(seed)
    shapes = {path: p.shape for path, p in abstract_parameters(config.model).items()}
    return {path: rng.normal(0, 0.3, shape).astype(np.float32) for path, shape in shapes.items()}


def whole(source: InMemory) -> Parameters:
    """All pieces put together."""
    pieces = {path: [source.read(path, i) for i in source.indices(path)] for path in source.shapes}
    return {
        path: jnp.asarray(np.stack(found) if source.indices(path)[0] else found[0])
        for path, found in pieces.items()
    }


def answer(config: Config, parameters: Parameters) -> np.ndarray:
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    run = jax.jit(lambda parameters, *args: functional(config.model)(parameters)(*args).value)
    return np.asarray(run(parameters, x, jnp.array([0.1, 0.5, 0.9]), jnp.array([3, 7, 10])))


def assert_same_with_itself(config: Config, *, keep_top_k: bool = False) -> Config:
    one = live(config, 0)
    both = aggregated(config, config, keep_top_k)
    twice = whole(join(config.model, both.model, one, one))
    expected = answer(config, one)
    assert expected.std() > 0.1
    np.testing.assert_allclose(answer(both, twice), expected, atol=2e-5 * np.abs(expected).max())
    return both


@pytest.mark.parametrize("name", ROUTERS.names)
def test_with_itself_a_run_is_what_it_was(name):
    router = ROUTERS[name]()
    cheap = ("zero",) * 2 if name == "null_top_k" else ()
    top_k = 1 if router.chooser == "nobody" else 2
    moe = dataclasses.replace(
        DIT_MOE,
        router=router,
        top_k=top_k,
        cheap_experts=cheap,
        unconditional_expert=router.unconditional,
    )
    both = assert_same_with_itself(of(moe))
    assert both.model.moe is not None
    assert (both.model.moe.num_experts, both.model.moe.top_k) == (8, top_k**2)


@pytest.mark.parametrize(
    "moe",
    [
        dataclasses.replace(
            PROMOE, router=dataclasses.replace(PROMOE.router, activation="softmax")
        ),
        dataclasses.replace(
            MOE_PLUS_PLUS, router=MixedTopKRouterConfig(scores="two_layers", weights="non_zero")
        ),
        dataclasses.replace(
            DIT_MOE,
            router=TopKRouterConfig(gate="sigmoid", bias="share", mean_experts=1.5),
            cheap_experts=("zero",) * 2,
        ),
        PYRAMID,
        UNLIKE,
        HECTO,
    ],
    ids=["softmax of cosines", "two layers", "bias with a mean", "pyramid", "unlike", "hecto"],
)
def test_with_itself_in_other_settings(moe):
    both = assert_same_with_itself(of(moe))
    if isinstance(moe, MoEConfig) and getattr(moe.router, "mean_experts", None):
        assert both.model.mixtures[0].router.mean_experts == 3.0  # pyright: ignore


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_one_expert_of_a_token_stays_one(gate):
    """Half the probability, so that experts give twice as much; sigmoids are as they were."""
    moe = dataclasses.replace(DIT_MOE, top_k=1, router=TopKRouterConfig(gate=gate))
    both = assert_same_with_itself(of(moe), keep_top_k=True)
    assert both.model.mixtures[0].top_k == 1
    one = live(of(moe), 0)
    path = "trunk.segments.0.blocks.0.feed_forward.experts.w_out"
    joined = whole(join(of(moe).model, both.model, one, one))[path]
    np.testing.assert_array_equal(joined[:, :4], one[path] * (2 if gate == "softmax" else 1))


def test_two_runs_side_by_side():
    """Every number of both is where it belongs; what they share is their mean."""
    config = of(dataclasses.replace(PROMOE, router=PROMOE.router))
    both = aggregated(config, config, False)
    a, b = live(config, 0), live(config, 1)
    joined = whole(join(config.model, both.model, a, b))
    layer = "trunk.segments.0.blocks.1.feed_forward."
    for name, factor in (("experts.w_in", 1), ("experts.w_out", 0.5), ("experts.b_out", 0.5)):
        path = layer + name
        for e in range(4):
            np.testing.assert_array_equal(joined[path][:, e], factor * a[path][:, e])
            np.testing.assert_array_equal(joined[path][:, 4 + e], factor * b[path][:, e])
        # The unconditional expert, which both have in common, has weight 1.
        mean = (a[path][:, 4] + b[path][:, 4]) / 2
        np.testing.assert_allclose(joined[path][:, 8], mean, rtol=1e-6)
    prototypes = np.concatenate([p[f"{layer}router.prototypes"] for p in (a, b)], axis=1)
    np.testing.assert_array_equal(joined[f"{layer}router.prototypes"], prototypes)
    for path in ("label.table", f"{layer}shared.experts.w_in", "patch_in.kernel"):
        if path in a:
            np.testing.assert_allclose(joined[path], (a[path] + b[path]) / 2, rtol=1e-6)


def test_columns_of_cheap_experts_come_after_the_routed_ones_of_both():
    moe = dataclasses.replace(MOE_PLUS_PLUS, num_experts=3, cheap_experts=("zero", "copy"))
    assert columns(moe, 0).tolist() == [0, 1, 2, 6, 7]
    assert columns(moe, 1).tolist() == [3, 4, 5, 8, 9]
    config = of(moe)
    both = aggregated(config, config, False)
    a, b = live(config, 0), live(config, 1)
    joined = whole(join(config.model, both.model, a, b))
    path = "trunk.segments.0.blocks.0.feed_forward.router.residual"
    # From the logits of one run to those of the same alone.
    expected = np.zeros((2, 10, 10), np.float32)
    for which, run in enumerate((a, b)):
        for i, row in enumerate(columns(moe, which)):
            for j, column in enumerate(columns(moe, which)):
                expected[:, row, column] = run[path][:, i, j]
    np.testing.assert_array_equal(joined[path], expected)


def test_gates_of_which_no_factor_makes_the_identity_are_refused():
    """Two of four become the copies of one of two; a bias beside halved scores chooses others."""
    for moe, keep, told in (
        (DIT_MOE, True, "allowed: without --keep_top_k"),
        (
            dataclasses.replace(DIT_MOE, router=SigmoidTopKRouterConfig(), top_k=1),
            False,
            "allowed: with --keep_top_k",
        ),
        (dataclasses.replace(DIT_MOE, router=TopKRouterConfig(bias="sign")), False, "'top_k'"),
    ):
        config = of(moe)
        both, one = aggregated(config, config, keep), live(config, 0)
        with pytest.raises(ConfigError, match="would not be what it was") as error:
            join(config.model, both.model, one, one)
        assert told in str(error.value)


def test_cheap_experts_whose_output_cannot_be_multiplied_are_refused():
    router = TopKRouterConfig(gate="sigmoid")
    config = of(dataclasses.replace(DIT_MOE, router=router, cheap_experts=("zero", "copy")))
    both, one = aggregated(config, config, False), live(config, 0)
    with pytest.raises(ConfigError, match=r"cheap_experts has copy, .* multiplied by 0\.5"):
        join(config.model, both.model, one, one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: of(dataclasses.replace(DIT_MOE, num_experts=8)), "in model.moe.num_experts;"),
        (
            lambda c: of(dataclasses.replace(DIT_MOE, router=SigmoidTopKRouterConfig())),
            "in model.moe.router.name, ",
        ),
        (
            lambda c: dataclasses.replace(c, objective=RectifiedFlowConfig(time_scale=7)),
            "in objective.time_scale;",
        ),
    ],
)
def test_runs_that_do_not_fit_are_refused(change, message):
    config = of(DIT_MOE)
    with pytest.raises(ConfigError) as error:
        check(config, change(config))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_dense_runs_have_no_experts():
    with pytest.raises(ConfigError, match=r"model\.moe is none in the first run"):
        check(tiny(None), tiny(None))


def test_command(tmp_path: Path, capsys):
    config = of(DIT_MOE)
    for seed, name in enumerate(("a", "b")):
        values = live(config, seed)
        shapes = {path: value.shape for path, value in values.items()}
        write_run(tmp_path / name, config, None, InMemory(shapes, lambda p, i, v=values: v[p][i]))
    one, other = str(tmp_path / "a"), str(tmp_path / "b")
    assert command.main(["--aggregate", one, one, f"--output={tmp_path / 'aa'}"]) == 0
    assert "tiny-with-tiny" in capsys.readouterr().out
    images = jnp.ones((1, 8, 8, 1)), jnp.array([0.3]), jnp.array([2])
    before, after = (dit_moe.load(tmp_path / n)(*images).value for n in ("a", "aa"))
    np.testing.assert_allclose(after, before, atol=1e-4)
    flags = ["--aggregate", one, other, f"--output={tmp_path / 'ab'}"]
    assert command.main([*flags, "--keep_top_k"]) == 2
    assert "allowed: without --keep_top_k" in capsys.readouterr().err
    assert not (tmp_path / "ab").exists()
    with pytest.raises(SystemExit):
        command.main([f"--workdir={one}", f"--output={tmp_path / 'c'}", "--keep_top_k"])
    assert "--keep_top_k is given without --aggregate" in capsys.readouterr().err
