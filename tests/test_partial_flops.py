"""Operations of evaluations of which a part is computed."""

import dataclasses

import numpy as np
import pytest

from dit_moe.config import SegmentConfig
from dit_moe.plan.flops import image_flops
from dit_moe.plan.partial_flops import partial_flops
from tests.tiny import (
    DIT_MOE,
    HECTO,
    MOE_PLUS_PLUS,
    PREGATED,
    PROMOE,
    PYRAMID,
    RACE,
    SOFT_MOE,
    UNLIKE,
    pregated,
    tiny,
)

MIXTURES = (None, DIT_MOE, PROMOE, PYRAMID, UNLIKE, HECTO, SOFT_MOE, MOE_PLUS_PLUS, RACE)
PREGATED_IN_PART = dataclasses.replace(
    pregated(PREGATED).model, moe=None, segments=(SegmentConfig(1), SegmentConfig(1, PREGATED))
)
MODELS = [*(tiny(moe).model for moe in MIXTURES), pregated(PREGATED).model, PREGATED_IN_PART]


@pytest.mark.parametrize("model", MODELS)
def test_all_units_are_the_network(model):
    computed = np.ones((2, model.units), bool)
    found = partial_flops(model, computed, gates=True)
    np.testing.assert_allclose(found, image_flops(model).total)


@pytest.mark.parametrize("model", MODELS)
def test_units_that_are_left_out_leave_the_ends_and_gates(model):
    computed = np.zeros((1, model.units), bool)
    (ends,) = partial_flops(model, computed, gates=False)
    flops = image_flops(model)
    output_modulation = 2 * model.width * 2 * model.width
    assert ends == flops.embedding + flops.pregate + flops.output + output_modulation
    (gated,) = partial_flops(model, computed, gates=True)
    assert gated - ends == flops.modulation - output_modulation
