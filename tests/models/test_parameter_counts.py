"""Parameters counted without memory for them."""

import dataclasses

import jax
import pytest

from dit_moe.models.parameter_counts import parameter_counts, sparsity
from dit_moe.models.parameters import init_parameters
from tests.tiny import DIT_MOE, EC_DIT, MOE_PLUS_PLUS, PROMOE, tiny


@pytest.mark.parametrize("moe", [None, DIT_MOE, PROMOE, EC_DIT, MOE_PLUS_PLUS])
def test_all_parameters_are_those_of_the_state(moe):
    model = tiny(moe).model
    leaves = jax.eval_shape(lambda: init_parameters(model, jax.random.key(0))).values()
    assert parameter_counts(model).total == sum(leaf.size for leaf in leaves)


def test_active_parameters_are_those_of_a_model_with_the_chosen_experts_alone():
    """But for the router's columns: 4 of 16 inputs in each of 2 layers."""
    few = dataclasses.replace(DIT_MOE, num_experts=2)
    whole, active = (parameter_counts(tiny(moe).model) for moe in (DIT_MOE, few))
    assert whole.active == active.total + 2 * 2 * 16
    assert active.active == active.total
    assert sparsity(tiny(few).model) == 0  # top_k is num_experts
    assert sparsity(tiny(DIT_MOE).model) == 0.5
    assert sparsity(tiny(None).model) == 0
    # The routed experts, one of whose 5 computes a token, in one block of two; the shared is whole.
    one = parameter_counts(tiny(PROMOE).model)
    expert = 2 * 16 * 16 + 16 + 16  # up and down, with biases
    assert one.total - one.active == pytest.approx(4 * expert)
