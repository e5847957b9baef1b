"""Depth as segments: mixtures that differ by depth, and what routers hand on."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pydantic.dataclasses import dataclass

from dit_moe.config import ConfigError, ModelConfig, MoEConfig, SegmentConfig
from dit_moe.config.files import from_dict, override, to_dict
from dit_moe.config.routers import LinearScores
from dit_moe.models.block import Given
from dit_moe.models.dit import DiT
from dit_moe.models.parameters import get_parameters, places
from dit_moe.models.trunk import Trunk
from dit_moe.moe.routers import register_router
from dit_moe.moe.routers.scores import init_kernel, linear_scores
from dit_moe.moe.routing import Conditioning, Routing
from dit_moe.nn.flat import bind
from tests.tiny import DIT_MOE, tiny

PYRAMID = (
    SegmentConfig(2, dataclasses.replace(DIT_MOE, num_experts=2)),
    SegmentConfig(1),
    SegmentConfig(2, dataclasses.replace(DIT_MOE, num_experts=6, expert="gelu", every=2)),
)


def of_segments(segments: tuple[SegmentConfig, ...]) -> ModelConfig:
    depth = sum(segment.depth for segment in segments)
    return dataclasses.replace(tiny(None).model, depth=depth, segments=segments)


def test_one_segment_is_the_uniform_model_to_the_bit():
    uniform = tiny(DIT_MOE).model
    same = dataclasses.replace(uniform, moe=None, segments=(SegmentConfig(2, DIT_MOE),))
    one, other = (get_parameters(DiT(model, nnx.Rngs(0))) for model in (uniform, same))
    assert one.keys() == other.keys()
    for path, parameter in one.items():
        np.testing.assert_array_equal(parameter, other[path])


def test_cutting_a_segment_in_two_changes_nothing():
    whole = of_segments((SegmentConfig(4, DIT_MOE),))
    halves = of_segments((SegmentConfig(1, DIT_MOE), SegmentConfig(3, DIT_MOE)))
    model, other = (DiT(config, nnx.Rngs(i)) for i, config in enumerate((whole, halves)))

    def live(x: jax.Array) -> jax.Array:
        return x + 0.1 * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

    nnx.update(model, jax.tree.map(live, nnx.state(model)))
    source = get_parameters(model)
    moved = {path: source[path] for path in get_parameters(other) if path in source}
    for path in get_parameters(other):
        if path.startswith("trunk.segments.0."):
            moved[path] = source[path][:1]
        elif path.startswith("trunk.segments.1."):
            moved[path] = source[path.replace("segments.1", "segments.0")][1:]
    other = bind(other, moved)
    inputs = jnp.ones((2, 8, 8, 1)), jnp.array([0.1, 0.7]), jnp.array([3, 10])
    one, two = model(*inputs), other(*inputs)
    np.testing.assert_allclose(one.value, two.value, atol=1e-5)
    np.testing.assert_allclose(one.losses["balance"], two.losses["balance"], rtol=1e-5)
    assert [len(r.weight) for r in two.routing] == [1, 3]


def test_a_pyramid_has_every_block_in_its_place():
    model = of_segments(PYRAMID)
    prediction = DiT(model, nnx.Rngs(0))(jnp.ones((2, 8, 8, 1)), jnp.zeros(2), jnp.array([3, 10]))
    assert [r.scores.shape[-1] for r in prediction.routing] == [2, 6]
    assert [r.scores.shape[0] for r in prediction.routing] == [2, 1]
    assert [moe.num_experts for moe in model.mixtures] == [2, 2, 6]
    found = [(place.prefix[15:], place.unit, place.moe is not None) for place in places(model)]
    assert found == [
        ("0.blocks.0.", 0, True),
        ("0.blocks.0.", 1, True),
        ("1.blocks.0.", 0, False),
        ("2.blocks.0.", 0, False),
        ("2.blocks.1.", 0, True),
    ]


def test_configs_of_segments_round_trip_and_say_what_is_wrong():
    config = dataclasses.replace(tiny(None), model=of_segments(PYRAMID))
    assert from_dict(to_dict(config)) == config
    with pytest.raises(ConfigError, match=r"config\.model\.segments have 5 blocks together"):
        override(config, ["--config.model.depth=6"])
    values = to_dict(config)
    values["model"]["moe"] = to_dict(tiny(DIT_MOE))["model"]["moe"]
    with pytest.raises(ConfigError, match=r"config\.model\.moe is a mixture with segments"):
        from_dict(values)


@dataclass(frozen=True)
class LookingBackConfig(LinearScores):
    """Adds the scores of the layer before to its own (the residual of MoE++'s gates)."""

    name: Literal["looking_back"] = "looking_back"
    chooser: ClassVar = "token"
    free: ClassVar[tuple[str, ...]] = ()
    fresh_scale: ClassVar[float] = 1.0

    def weight_sum(self, moe: MoEConfig) -> float:
        return 1.0

    def hands_on(self, moe: MoEConfig) -> dict[str, tuple[int, ...]]:
        return {"scores": (moe.num_experts,)}


@register_router(LookingBackConfig)
class LookingBack(nnx.Module):
    def __init__(self, config: MoEConfig, settings: LookingBackConfig, width: int, rngs: nnx.Rngs):
        self.kernel = init_kernel(config.num_experts, width, rngs)

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        own_TxE = jax.nn.softmax(linear_scores(x_TxD.astype(jnp.float32), self.kernel[...]))
        scores_TxE = own_TxE + conditioning.previous["scores"]
        return Routing(
            token=jnp.arange(len(x_TxD)),
            expert=jnp.argmax(scores_TxE, axis=-1),
            weight=jnp.ones(len(x_TxD)),
            scores=scores_TxE,
            losses={},
            hand_on={"scores": scores_TxE},
        )


def test_routers_see_what_the_layer_before_hands_on():
    back = dataclasses.replace(DIT_MOE, router=LookingBackConfig(), top_k=1)
    # Dense blocks pass it on; a segment of other shapes begins with zeros.
    model = of_segments(
        (
            SegmentConfig(2, back),
            SegmentConfig(1),
            SegmentConfig(1, back),
            SegmentConfig(1, dataclasses.replace(back, num_experts=3)),
        )
    )
    trunk = Trunk(model, nnx.Rngs(0))
    x_NxSxD = jax.random.normal(jax.random.key(0), (2, 4, 16))
    given = Given(jnp.zeros((2, 16)), jnp.zeros(2, bool))
    _, (first, second, third) = trunk(x_NxSxD, given)
    # At initialisation every softmax sums to 1, and the gates of adaLN-zero are shut.
    np.testing.assert_allclose(first.scores.sum(-1), [[1] * 8, [2] * 8], rtol=1e-5)
    np.testing.assert_allclose(second.scores.sum(-1), [[3] * 8], rtol=1e-5)
    np.testing.assert_allclose(third.scores.sum(-1), [[1] * 8], rtol=1e-5)


def test_gradients_flow_through_what_is_handed_on():
    back = dataclasses.replace(DIT_MOE, router=LookingBackConfig(), top_k=1)
    trunk = Trunk(of_segments((SegmentConfig(2, back),)), nnx.Rngs(0))
    x_NxSxD = jax.random.normal(jax.random.key(0), (1, 4, 16))
    given = Given(jnp.zeros((1, 16)), jnp.zeros(1, bool))

    def last_scores(trunk: Trunk) -> jax.Array:
        return trunk(x_NxSxD, given)[1][0].scores[-1, :, 0].sum()

    kernel = nnx.grad(last_scores)(trunk).segments[0].blocks[0].feed_forward.router.kernel
    assert jnp.abs(kernel[...][0]).max() > 0
