"""What is known of the next layer's experts before its router decides."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.analysis.foresight import Foresight, predictors, table
from dit_moe.models.parameters import functional, init_parameters
from tests.tiny import DIT_MOE, PROMOE, PYRAMID, tiny

X, T, Y = (
    jax.random.normal(jax.random.key(2), (3, 8, 8, 1)),
    jnp.full(3, 0.4),
    jnp.array([1, 10, 3]),
)


def looked_at(config, parameters, calls=1):
    @jax.jit
    def run(parameters):
        foresight = Foresight(config.model, calls)
        network = foresight.bind(parameters)
        values = [network(X + call, T, Y).value for call in range(calls)]
        plain = functional(config.model)(parameters)(X, T, Y).value
        return values[0], plain, foresight.tokens()

    return jax.tree.map(np.asarray, run(parameters))


def parameters_of(config, *, gates):
    """All random; the gates, of which a block's tokens get what it adds, 0 if not wanted."""
    keys = iter(jax.random.split(jax.random.key(1), 999))
    found = {
        path: value + 0.3 * jax.random.normal(next(keys), value.shape)
        for path, value in init_parameters(config.model, jax.random.key(0)).items()
    }
    width = config.model.width
    for path in found if not gates else ():
        if ".blocks." in path and ".modulation." in path:
            for gate in (2, 5):
                found[path] = found[path].at[..., gate * width : (gate + 1) * width].set(0)
    return found


@pytest.mark.parametrize("moe", [DIT_MOE, PROMOE, PYRAMID], ids=["dit_moe", "promoe", "pyramid"])
def test_what_is_foreseen_is_what_is_decided_where_tokens_do_not_change(moe):
    """Each layer's own modulation and router then see the same tokens, a unit before."""
    config = tiny(moe)
    if not isinstance(moe, tuple):
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, depth=6))
    _, _, (used, foreseen) = looked_at(config, parameters_of(config, gates=False))
    first = range(2) if moe is PYRAMID else range(1)  # of each segment
    assert used.sum() > 0
    for layer in range(used.shape[1]):
        if layer in first:
            assert not foreseen[:, layer].any()
        else:
            np.testing.assert_array_equal(foreseen[:, layer], used[:, layer])
    assert len(np.unique(used[0], axis=0)) == used.shape[1]  # layers differ


def test_looking_changes_nothing_and_tokens_that_change_are_foreseen_in_part():
    config = tiny(PROMOE)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, depth=8))
    parameters = parameters_of(config, gates=True)
    value, plain, tokens = looked_at(config, parameters, calls=2)
    np.testing.assert_allclose(value, plain, rtol=1e-5, atol=1e-5)
    used, foreseen = tokens
    assert used.shape == (2, 4, 5)
    assert (used.sum(-1) == 3 * 16).all()  # each token has one
    assert (used[..., 4] == 16).all()  # the image without a class
    assert (foreseen[:, 1:] != used[:, 1:]).any()


def test_what_the_predictors_are_worth():
    tokens = np.zeros((2, 2, 2, 3), np.int32)
    tokens[0, 0] = [[4, 0, 0], [1, 3, 0]]
    tokens[0, 1] = [[2, 2, 0], [1, 3, 0]]
    tokens[1, 0] = [[0, 0, 0], [1, 0, 3]]
    tokens[1, 1] = [[0, 0, 0], [0, 4, 0]]
    told = predictors(tokens)
    assert told["gate"].missed.tolist() == [[1, 1], [2, 1]]
    assert told["gate"].in_vain.tolist() == [[0, 1], [0, 0]]
    assert told["before"].missed.tolist() == [[1, 2], [1, 0]]
    assert told["both"].missed.tolist() == [[1, 1], [1, 0]]
    assert told["both"].recall() == pytest.approx(4 / 7)
    assert told["before"].recall(axis=0).tolist() == [pytest.approx(1 / 3), pytest.approx(1 / 2)]
    text = table(told, 2_000_000)
    assert "| gate | 28.6% | 5 of 7 | 10 | 2 |" in text
    assert "| 1 | 50.0%, 2 | 50.0%, 2 | 75.0%, 1 |" in text
