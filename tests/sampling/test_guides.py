"""The networks that guide, from requests to samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import (
    Config,
    ConfigError,
    CosineRouterConfig,
    DDPMConfig,
    MixedTopKRouterConfig,
    ModelConfig,
    MoEConfig,
    NoisyTopKRouterConfig,
    NullTopKRouterConfig,
    PrototypeRouterConfig,
    SigmoidTopKRouterConfig,
    TopKRouterConfig,
)
from dit_moe.diffusion.integrate import build_objective
from dit_moe.diffusion.solvers import step_noise
from dit_moe.models.parameters import functional, init_parameters
from dit_moe.moe.routers import build_router
from dit_moe.moe.routing import Conditioning
from dit_moe.plan.flops import image_flops
from dit_moe.sampling import sampler as sampling
from dit_moe.sampling.evaluations import function_evaluations
from dit_moe.sampling.guides import check_guide, weakly_routed
from dit_moe.sampling.request import build_request
from tests.tiny import DIFFMOE, DIT_MOE, EC_DIT, PROMOE, tiny

KEY_N, Y_N = jax.random.split(jax.random.key(2), 3), jnp.arange(3, dtype=jnp.int32)


def random_parameters(config: Config, seed: int = 0):
    """Nothing is zero, so that everything matters."""
    rng = np.random.default_rng(seed)
    parameters = jax.jit(lambda key: init_parameters(config.model, key))(jax.random.key(seed))
    return {
        path: value + 0.05 * rng.normal(size=value.shape).astype(np.float32)
        for path, value in parameters.items()
    }


def draw(config, parameters, *, weak_routing=None, guide=None, steps=2, guidance=None):
    integration = {"solver": "euler", "steps": steps}
    request = build_request(config, num_samples=3, integration=integration, guidance=guidance)
    if weak_routing is not None:  # past the checks
        changed = request.guidance.updated(weak_routing=weak_routing)
        request = dataclasses.replace(request, guidance=changed)
    weaker, of_guide = guide or (None, None)
    sampler = sampling.build_sampler(config, request, weaker=weaker)
    return np.asarray(sampler(parameters, KEY_N, Y_N, weaker=of_guide))


@pytest.fixture(scope="module")
def dit_moe():
    config = tiny(DIT_MOE)
    parameters = random_parameters(config)
    return config, parameters, draw(config, parameters)


def test_a_run_guided_by_itself_draws_what_it_draws(dit_moe):
    config, parameters, plain = dit_moe
    itself = draw(
        config, parameters, guide=(config, parameters), guidance={"guide": "auto", "scale": 3.0}
    )
    np.testing.assert_array_equal(itself, plain)


def test_a_guide_of_another_architecture_and_objective(dit_moe):
    """Euler's only step goes to the guided x_0 of the noise."""
    config, parameters, _ = dit_moe
    dense = dataclasses.replace(tiny(None), objective=DDPMConfig())
    other = random_parameters(dense, 1)
    guided = draw(
        config,
        parameters,
        guide=(dense, other),
        steps=1,
        guidance={"guide": "auto", "scale": 1.5},
    )

    @jax.jit
    def cleans(parameters, other):
        noise = step_noise(KEY_N, 0, (8, 8, 1))
        return [
            build_objective(c.objective)
            .denoiser(functional(c.model)(p))(noise, jnp.float32(1), Y_N)
            .clean
            for c, p in ((config, parameters), (dense, other))
        ]

    strong, weak = cleans(parameters, other)
    np.testing.assert_allclose(guided, strong + 0.5 * (strong - weak), rtol=1e-4, atol=1e-3)
    assert np.abs(strong - weak).max() > 0.1


def test_scale_one_is_no_guidance(dit_moe):
    config, parameters, plain = dit_moe
    again = draw(config, parameters, guidance={"guide": "self_contrast", "scale": 1.0})
    np.testing.assert_array_equal(again, plain)


def test_self_contrast_is_guidance_by_the_weakly_routed_run(dit_moe):
    config, parameters, plain = dit_moe
    drawn = draw(config, parameters, guidance={"guide": "self_contrast", "scale": 1.5})
    weak = dataclasses.replace(config, model=weakly_routed(config.model, "least_likely"))
    expected = draw(
        config, parameters, guide=(weak, parameters), guidance={"guide": "auto", "scale": 1.5}
    )
    np.testing.assert_allclose(drawn, expected, atol=1e-6)
    assert np.abs(drawn - plain).max() > 1e-4


def test_self_contrast_of_a_model_with_one_expert_a_token_with_itself():
    config = tiny(PROMOE)
    assert weakly_routed(config.model, "top_1") == config.model
    parameters = random_parameters(config)
    itself = draw(
        config,
        parameters,
        guidance={"guide": "self_contrast", "scale": 3.0},
        weak_routing="top_1",
    )
    np.testing.assert_allclose(itself, draw(config, parameters), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "router",
    [
        TopKRouterConfig(),
        SigmoidTopKRouterConfig(),
        NoisyTopKRouterConfig(),
        CosineRouterConfig(),
        PrototypeRouterConfig(),
    ],
)
def test_the_least_likely_experts_take_the_weights_of_the_likeliest(router):
    moe = MoEConfig(router=router, num_experts=5, top_k=2)
    model = ModelConfig(width=8, depth=1, heads=1, moe=moe)
    x_TxD = jax.random.normal(jax.random.key(0), (6, 8))
    conditioning = Conditioning(is_null=jnp.zeros(6, bool), tokens_per_image=3)
    strong, weak = (
        build_router(m, 8, nnx.Rngs(0))(x_TxD, conditioning)
        for m in (moe, weakly_routed(model, "least_likely").moe)
    )
    order = np.argsort(strong.scores, axis=-1)
    np.testing.assert_array_equal(strong.expert.reshape(6, 2), order[:, :-3:-1])
    np.testing.assert_array_equal(weak.expert.reshape(6, 2), order[:, :2])
    np.testing.assert_array_equal(weak.weight, strong.weight)
    assert weakly_routed(model, "top_1").moe == dataclasses.replace(moe, top_k=1)


TOKEN_ROUTERS = [
    TopKRouterConfig(),
    SigmoidTopKRouterConfig(scale=2.0),
    NoisyTopKRouterConfig(),
    CosineRouterConfig(),
    PrototypeRouterConfig(),
    NullTopKRouterConfig(),
    MixedTopKRouterConfig(weights="non_zero", gating_residual=False),
]


@pytest.mark.parametrize("router", TOKEN_ROUTERS, ids=lambda router: router.name)
def test_one_expert_by_rank_or_by_lot_takes_the_weights_of_all(router):
    """In loops; six images of three tokens, so that lots repeat."""
    moe = MoEConfig(router=router, num_experts=5, top_k=2)
    model = ModelConfig(width=8, depth=1, heads=1, moe=moe)
    x_TxD = jax.random.normal(jax.random.key(0), (18, 8))
    conditioning = Conditioning(is_null=jnp.zeros(18, bool), tokens_per_image=3)

    def route(moe):
        return build_router(moe, 8, nnx.Rngs(0))(x_TxD, conditioning)

    strong = route(moe)
    total_T = strong.weight.reshape(18, 2).sum(axis=1)
    for rank in range(1, 6):
        weak = route(weakly_routed(model, f"rank_{rank}").moe)
        np.testing.assert_array_equal(weak.token, np.arange(18))
        for t in range(18):
            best = sorted(range(5), key=lambda e, t=t: -strong.scores[t, e])
            assert weak.expert[t] == best[rank - 1]
        np.testing.assert_allclose(weak.weight, total_T, rtol=1e-6)
    lots = route(weakly_routed(model, "random").moe)
    by_place = np.asarray(lots.expert).reshape(6, 3)
    np.testing.assert_array_equal(by_place, by_place[:1].repeat(6, axis=0))
    np.testing.assert_allclose(lots.weight, total_T, rtol=1e-6)
    if router.name in ("noisy_top_k", "null_top_k", "mixed_top_k"):
        np.testing.assert_allclose(lots.weight, 1.0, rtol=1e-6)


def test_lots_are_even():
    moe = dataclasses.replace(DIT_MOE, choice="random")
    conditioning = Conditioning(jnp.zeros(4096, bool), tokens_per_image=4096)
    routing = build_router(moe, 8, nnx.Rngs(0))(jnp.ones((4096, 8)), conditioning)
    np.testing.assert_allclose(np.bincount(routing.expert, minlength=4) / 4096, 0.25, atol=0.03)


def test_contrast_of_like_experts_is_none():
    """Whoever computes, the result is the same where all experts are and weights sum alike; and
    with a single expert of weight 1, the best one is the network itself."""
    for moe, routings in (
        (DIT_MOE, ("rank_1", "rank_3", "random")),
        (dataclasses.replace(DIT_MOE, top_k=1), ("rank_1",)),
    ):
        config = tiny(moe)
        parameters = random_parameters(config)
        if moe.top_k > 1:
            for path in [path for path in parameters if ".feed_forward.experts." in path]:
                first = parameters[path][:, :1]
                parameters[path] = jnp.broadcast_to(first, parameters[path].shape)
        plain = draw(config, parameters)
        for routing in routings:
            guidance = {"guide": "self_contrast", "scale": 5.0}
            weak = draw(config, parameters, guidance=guidance, weak_routing=routing)
            np.testing.assert_allclose(weak, plain, rtol=1e-4, atol=1e-4)


def test_contrast_grows_with_the_scale_alone(dit_moe):
    """Affine in scale - 1 where one step is all."""
    config, parameters, _ = dit_moe
    for weak_routing in ("rank_2", "random"):
        guidance = {"guide": "self_contrast", "weak_routing": weak_routing}
        one, two, four = (
            draw(config, parameters, steps=1, guidance={**guidance, "scale": scale})
            for scale in (1.0, 2.0, 4.0)
        )
        np.testing.assert_allclose(four - one, 3 * (two - one), rtol=1e-3, atol=1e-4)
        assert np.abs(two - one).max() > 1e-4


def test_a_weak_pass_of_one_expert_is_cheaper():
    model = tiny(DIT_MOE).model
    strong = image_flops(model)
    for weak_routing, share in (("rank_3", 0.5), ("random", 0.5), ("least_likely", 1.0)):
        weak = image_flops(weakly_routed(model, weak_routing))
        assert weak.experts == share * strong.experts
        assert weak.total - weak.experts == strong.total - strong.experts


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({"integration": {"solver": "heun", "steps": 5}}, 10),
        ({"integration": {"solver": "euler", "steps": 10}, "guidance": {"scale": 2.0}}, 20),
        # Of the times 1, 0.9, ... 0.1 four lie inside.
        ({"guidance": {"scale": 2.0, "interval": (0.35, 0.75)}}, 14),
        ({"guidance": {"scale": 2.0, "guide": "self_contrast"}}, 20),
        ({"integration": {"solver": "dopri5"}}, None),
    ],
)
def test_passes_are_counted(settings, passes, monkeypatch):
    monkeypatch.delattr(jax, "local_devices")  # under JAX_PLATFORMS=cuda there is no CPU
    settings = {"integration": {"solver": "euler", "steps": 10}, **settings}
    request = build_request(tiny(PROMOE), num_samples=1, **settings)
    assert function_evaluations(tiny(PROMOE).model, tiny(PROMOE).objective, request) == passes


@pytest.mark.parametrize(
    ("moe", "settings", "message"),
    [
        (
            DIT_MOE,
            {"guidance": {"guide": "magic"}},
            "guidance.guide is 'magic'; allowed: cfg, auto, self_contrast",
        ),
        (DIT_MOE, {"guidance": {"schedule": "x"}}, "is 'x'; allowed: constant, linear, cosine"),
        (
            DIT_MOE,
            {"guidance": {"interval": (0.5, 0.2)}},
            "guidance.interval is 0.5,0.2; allowed: two",
        ),
        (
            DIT_MOE,
            {"guidance": {"interval": (0.5,)}},
            "guidance.interval is 0.5; allowed: two flow",
        ),
        (DIT_MOE, {"guidance": {"rescale": 1.5}}, "guidance.rescale is 1.5; allowed: 0 to 1"),
        (
            DIT_MOE,
            {"guidance": {"weak_routing": "top_1"}},
            "with guide 'cfg'; allowed: only with guide",
        ),
        (
            PROMOE,
            {"guidance": {"guide": "self_contrast", "weak_routing": "top_1"}},
            "with top_k 1 of 4 experts; allowed: least_likely, random, rank_2 to rank_4",
        ),
        (
            PROMOE,
            {"guidance": {"guide": "self_contrast", "weak_routing": "rank_1"}},
            "guidance.weak_routing is 'rank_1' for a model with top_k 1 of 4 experts; allowed",
        ),
        (
            DIT_MOE,
            {"guidance": {"guide": "self_contrast", "weak_routing": "rank_5"}},
            "top_k 2 of 4 experts; allowed: least_likely, random, top_1, rank_1 to rank_4",
        ),
        (
            DIT_MOE,
            {"guidance": {"guide": "self_contrast", "weak_routing": "rank_0"}},
            "guidance.weak_routing is 'rank_0'; allowed: least_likely, random, top_1, or rank_R",
        ),
        (
            EC_DIT,
            {"guidance": {"guide": "self_contrast"}},
            "the model has router 'expert_choice'; allowed",
        ),
        (
            DIFFMOE,
            {"guidance": {"guide": "self_contrast"}},
            "the model has router 'batch_pool'; allowed",
        ),
        (
            None,
            {"guidance": {"guide": "self_contrast"}},
            "but the model is dense; allowed: a model whose",
        ),
    ],
)
def test_errors(moe, settings, message):
    with pytest.raises(ConfigError) as error:
        build_request(tiny(moe), num_samples=1, **settings)
    assert message in str(error.value)


def learning(label_dropout: float) -> Config:
    config = tiny(DIT_MOE)
    model = dataclasses.replace(config.model, label_dropout=label_dropout)
    return dataclasses.replace(config, model=model)


@pytest.mark.parametrize(
    ("label_dropout", "settings"),
    [
        (0.0, {"guidance": {"scale": 1.5}}),
        (0.0, {"guidance": {"scale": 0.0}}),
        (1.0, {"guidance": {"scale": 1.0}}),
        (1.0, {"guidance": {"scale": 2.0, "guide": "self_contrast"}}),
        (1.0, {"guidance": {"scale": 0.0, "schedule": "linear"}}),
        (1.0, {"guidance": {"scale": 0.0, "interval": (0.2, 1.0)}}),
    ],
)
def test_labels_that_were_never_learnt_are_not_asked_for(label_dropout, settings):
    with pytest.raises(ConfigError, match=r"guidance\.scale is .* with model\.label_dropout [01]"):
        build_request(learning(label_dropout), num_samples=1, **settings)
    build_request(learning(0.1), num_samples=1, **settings)


def test_what_was_learnt_is_enough():
    for scale, settings in (
        (0.0, {"guidance": {"scale": 1.0}}),
        (0.0, {"guidance": {"scale": 2.0, "guide": "self_contrast"}}),
        (1.0, {"guidance": {"scale": 0.0}}),
    ):
        assert build_request(learning(scale), num_samples=1, **settings)


def test_a_guide_for_other_images():
    model = tiny().model
    with pytest.raises(ConfigError, match=r"guide has model\.num_classes 3; allowed: 10"):
        check_guide(model, dataclasses.replace(model, num_classes=3))
