"""The table of peers."""

from dit_moe.config import ConfigError, MoEConfig
from dit_moe.convert import Family
from dit_moe.convert.dit import DiT
from dit_moe.convert.dit_moe_format import DiTMoE
from dit_moe.convert.ds_moe import DSMoE
from dit_moe.convert.peer import Layer, Peer
from dit_moe.convert.promoe import DIFFMOE, EC_DIT, PROMOE, PROMOE_EC, TC_DIT
from dit_moe.convert.sit import SiT

PEERS: dict[Family, Peer] = {
    "dit": DiT(),
    "sit": SiT(),
    "dit-moe": DiTMoE(),
    "promoe": PROMOE,
    "promoe-ec": PROMOE_EC,
    "tc-dit": TC_DIT,
    "ec-dit": EC_DIT,
    "diffmoe": DIFFMOE,
    "ds-moe": DSMoE(),
}


def layer_of(moe: MoEConfig) -> Layer:
    """The layer that some peer has for a mixture.

    Raises:
      ConfigError: none has such a mixture.
    """
    for peer in PEERS.values():
        layer = peer.layer
        if layer is None or moe.router.name not in layer.routers or moe.expert != layer.expert:
            continue
        if layer.shared is None and moe.shared_hidden_ratio:
            break
        return layer
    shared = "a shared expert" if moe.shared_hidden_ratio else "no shared expert"
    raise ConfigError(
        f"no peer has a mixture of router {moe.router.name!r} and experts {moe.expert!r} with "
        f"{shared}; allowed: those of {', '.join(PEERS)}"
    )
