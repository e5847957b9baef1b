"""Mutual information is held to scikit-learn's, and to routers whose dependence is known."""

import numpy as np
import pytest
import scipy.stats
from jax import numpy as jnp
from sklearn.metrics import mutual_info_score

from dit_moe.analysis.counts import Counts
from dit_moe.analysis.decisions import decisions
from dit_moe.analysis.information import entropy, mutual_information
from dit_moe.analysis.record import Inputs, Layer, TrueExperts
from dit_moe.analysis.summary import summarize
from dit_moe.analysis.text import true_experts
from dit_moe.config import ConfigError, ModelConfig, MoEConfig, PrototypeRouterConfig
from dit_moe.moe.routing import Routing

IMAGES, TOKENS, CLASSES, EXPERTS = 200, 16, 4, 4
BIN_OF_TIME = np.array([0, 1, 2, 3, 4, 4])


def record(expert_LxTxK, weight_LxTxK=None, experts=EXPERTS) -> Routing:
    """A stacked record in which every token has K slots."""
    layers, tokens, k = np.shape(expert_LxTxK)
    weight = np.ones((layers, tokens, k)) if weight_LxTxK is None else np.asarray(weight_LxTxK)
    return Routing(
        token=jnp.tile(jnp.repeat(jnp.arange(tokens), k), (layers, 1)),
        expert=jnp.asarray(expert_LxTxK, jnp.int32).reshape(layers, -1),
        weight=jnp.asarray(weight, jnp.float32).reshape(layers, -1),
        scores=jnp.zeros((layers, tokens, experts)),
        losses={},
    )


def network(moe: MoEConfig, layers: int) -> ModelConfig:
    return ModelConfig(width=16, depth=layers, heads=2, moe=moe)


def test_mutual_information_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 7, 500)
    y = (x + rng.integers(0, 3, 500)) % 5
    table = np.zeros((7, 5), int)
    np.add.at(table, (x, y), 1)
    assert mutual_information(table) == pytest.approx(mutual_info_score(x, y) / np.log(2))
    by_scipy = scipy.stats.entropy(table, base=2, axis=-1)
    np.testing.assert_allclose(entropy(table), by_scipy, rtol=1e-12)
    assert entropy(np.zeros(3)) == 0


def test_reading_a_record():
    """Unused slots, slots past all experts and a token without any expert."""
    expert = [[[0, 2], [3, 3], [1, 9], [0, 1]]]
    weight = [[[0.2, -0.1], [-0.5, 0.0], [0.0, 0.0], [0.3, 0.4]]]
    seen = decisions([record(expert, weight)], EXPERTS, tokens_per_image=2)
    expected = [[[1, 0, 1, 0], [0, 0, 0, 1]], [[0, 0, 0, 0], [1, 1, 0, 0]]]
    np.testing.assert_array_equal(seen.chosen[0], np.array(expected, bool))
    np.testing.assert_array_equal(seen.first[0], [[0, 3], [EXPERTS, 1]])


@pytest.fixture(scope="module")
def layers() -> dict[str, Layer]:
    """Layers that choose by one thing each, and one by nothing."""
    rng = np.random.default_rng(1)
    image, time, position = np.meshgrid(
        np.arange(IMAGES), np.arange(len(BIN_OF_TIME)), np.arange(TOKENS), indexing="ij"
    )
    time_bin = BIN_OF_TIME[time]
    content = rng.integers(0, EXPERTS, IMAGES)
    expert = {
        "position": position // 4,
        "time": time_bin % EXPERTS,
        "label": image % CLASSES,
        "nothing": rng.integers(0, EXPERTS, image.shape),
        # One expert for all of an image, whatever its class.
        "content": content[image],
    }
    label_N = np.arange(IMAGES) % CLASSES
    shape = (len(expert), BIN_OF_TIME.max() + 1, 1, TOKENS, EXPERTS, 0)
    counts = Counts(label_N, range(CLASSES), BIN_OF_TIME, shape)
    image_N, time_N = image[..., 0].ravel(), time[..., 0].ravel()
    stacked = np.stack([e.reshape(len(image_N), TOKENS) for e in expert.values()])
    for part in np.array_split(rng.permutation(len(image_N)), 3):
        routing = record(stacked[:, part].reshape(len(expert), -1, 1))
        counts.add(decisions([routing], EXPERTS, TOKENS), image_N[part], time_N[part])
    moe = MoEConfig(num_experts=EXPERTS, top_k=1)
    inputs = summarize(counts, network(moe, len(expert)), seed=0)
    found = dict(zip(expert, inputs.layers, strict=True))
    for name, factor in (("position", position), ("time", time_bin), ("label", label_N[image])):
        for layer, chosen in expert.items():
            by_sklearn = mutual_info_score(factor.ravel(), chosen.ravel()) / np.log(2)
            bits = getattr(found[layer], name).bits
            assert bits == pytest.approx(by_sklearn, abs=1e-9), (layer, name)
    return found


@pytest.mark.parametrize("cause", ["position", "time", "label"])
def test_a_dependence_is_found_where_it_is(layers, cause):
    for factor in ("position", "time", "label"):
        information = getattr(layers[cause], factor)
        if factor == cause:
            assert information.share == pytest.approx(1)
            assert information.p_value == 0.01
        else:
            assert abs(information.share) < 1e-6
            assert information.p_value > 0.5


@pytest.mark.parametrize("layer", ["nothing", "content"])
def test_no_dependence_is_found_where_there_is_none(layers, layer):
    """Not of the class either where all tokens of an image go together, which by the number of
    tokens alone could not be chance."""
    for factor in ("position", "time", "label"):
        information = getattr(layers[layer], factor)
        assert abs(information.share) < 0.02, factor
        assert information.p_value > 0.05, factor
    assert layers["content"].label.chance_bits > 0.02
    # The same at all times of an image, though more of them are in one bin.
    assert layers["content"].time.chance_bits == pytest.approx(0, abs=1e-9)


def test_what_a_layer_counts():
    """Load, balance, null tokens, co-activation and paths of a case that fits on one hand."""
    counts = Counts(np.array([3, 8]), (3, 8), np.arange(2), (2, 2, 1, 2, 3, 1))
    # Two images with two tokens at two times; the last input is image 0 with the null label.
    layer0 = [[0, 1], [0, 1], [0, 0], [0, 0], [2, 2]]
    layer1 = [[1, 1], [1, 1], [0, 1], [0, 1], [2, 2]]
    expert = np.array([layer0, layer1]).reshape(2, 10, 1)
    routing = record(expert, experts=2)
    mean = np.arange(10.0).reshape(2, 5, 1)
    routing = routing.replace(metrics={"mean_token": jnp.asarray(mean)})
    image, time = np.array([0, 0, 1, 1, -1]), np.array([0, 1, 0, 1, 1])
    counts.add(decisions([routing], 3, 2), image, time)
    moe = MoEConfig(PrototypeRouterConfig(), num_experts=2, top_k=1, unconditional_expert=True)
    inputs = summarize(counts, network(moe, 2), seed=0)
    first, second = inputs.layers
    assert first.load == (0.75, 0.25, 0)
    assert second.load == (0.25, 0.75, 0)
    assert first.balance == pytest.approx(scipy.stats.entropy([0.75, 0.25], base=2))
    assert first.effective_experts == pytest.approx(2**first.entropy_bits)
    assert first.busiest == 0.75
    assert first.experts_per_token == 1
    assert first.unconditional == 0.2
    assert inputs.null_tokens == 0.2
    assert inputs.tokens == 8
    np.testing.assert_array_equal(counts.coactivation_LxExE[0, :2, :2], [[2, 4], [0, 2]])
    a, b = np.array([layer0, layer1])[:, :4].reshape(2, -1)
    assert inputs.coactivation_bits[0] == pytest.approx(mutual_info_score(a, b) / np.log(2))
    paths = inputs.paths
    assert (paths.tokens, paths.distinct, paths.seen_once) == (8, 3, 0)
    assert paths.entropy_bits == pytest.approx(scipy.stats.entropy([4, 2, 2], base=2))
    assert paths.independent_bits == pytest.approx(2 * first.balance)
    np.testing.assert_allclose(counts.mean_tokens()[..., 0], [[0.5, 2.5], [5.5, 7.5]])


def test_true_experts_leave_cheap_ones_out():
    """Two images of two tokens with two experts each, at two times of three; expert 2 is cheap."""
    counts = Counts(np.array([3, 8]), (3, 8), np.arange(2), (1, 3, 1, 2, 3, 0))
    early, late = [[0, 1], [0, 2]], [[2, 1], [2, 9]]  # 9: no expert
    null = [[1, 0], [2, 9]]
    expert = np.array([early, late, early, late, null]).reshape(1, 10, 2)
    image, time = np.array([0, 0, 1, 1, -1]), np.array([0, 1, 0, 1, 1])
    counts.add(decisions([record(expert, experts=3)], 3, 2), image, time)
    moe = MoEConfig(num_experts=2, top_k=2, cheap_experts=("zero",))
    inputs = summarize(counts, network(moe, 1), seed=0)
    (layer,) = inputs.layers
    assert layer.experts_per_token == 7 / 4
    assert layer.true_experts == TrueExperts((1.5, 0.5, None), (1.5, 0.5), 1.0)
    text = text_of(inputs)
    assert "| block | 0.00 | 0.33 | 0.67 | null label |\n|---|---|---|---|---|\n" in text
    assert f"| {layer.block} | 1.50 | 0.50 | - | 1.00 |" in text
    # Nothing is told of a layer without cheap experts.
    plain = summarize(counts, network(MoEConfig(num_experts=3), 1), seed=0)
    assert plain.layers[0].true_experts is None
    assert "cheap" not in text_of(plain)


def text_of(inputs: Inputs) -> str:
    return "\n".join(true_experts(inputs))


def test_tokens_that_are_not_finite_are_refused():
    counts = Counts(np.array([0]), (0,), np.arange(1), (1, 1, 1, 1, 2, 1))
    routing = record([[[0]]]).replace(metrics={"mean_token": jnp.full((1, 1, 1), jnp.nan)})
    with pytest.raises(ConfigError, match="tokens are not finite"):
        counts.add(decisions([routing], 2, 1), np.array([0]), np.array([0]))


def test_a_time_at_which_no_expert_is_chosen():
    """Its load is not concentrated: there is none."""
    counts = Counts(np.array([0]), (0,), np.arange(2), (1, 2, 1, 1, 2, 0))
    counts.add(decisions([record([[[0], [9]]])], 2, 1), np.array([0, 0]), np.array([0, 1]))
    moe = MoEConfig(num_experts=2, top_k=1)
    (layer,) = summarize(counts, network(moe, 1), seed=0).layers
    assert layer.concentration_by_time == (1, None)
    assert layer.experts_per_token == 0.5
