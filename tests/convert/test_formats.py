"""The table of peers."""

import dataclasses

import pytest

from dit_moe.config import ConfigError, MoEConfig, TopKRouterConfig
from dit_moe.convert import FAMILIES
from dit_moe.convert.formats import PEERS, layer_of

SWIGLU = MoEConfig(router=TopKRouterConfig(), expert="swiglu", shared_hidden_ratio=2)


def test_every_family_is_in_it():
    assert tuple(PEERS) == FAMILIES


def test_the_kind_of_experts_tells_whose_layer_it_is():
    assert layer_of(SWIGLU) is PEERS["dit-moe"].layer
    gelu = dataclasses.replace(SWIGLU, expert="gelu", shared_hidden_ratio=0)
    assert layer_of(gelu) is PEERS["tc-dit"].layer


@pytest.mark.parametrize("changes", [{"expert": "silu"}, {"expert": "gelu"}])
def test_a_mixture_that_no_peer_has_is_refused(changes):
    with pytest.raises(ConfigError, match=r"no peer has a mixture .* a shared expert; allowed"):
        layer_of(dataclasses.replace(SWIGLU, **changes))
