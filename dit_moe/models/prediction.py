"""What the network returns."""

import flax.struct
import jax

from dit_moe.moe.routing import Routing


@flax.struct.dataclass
class Prediction:
    """The network's output with everything that its layers decided."""

    value: jax.Array
    """[N, H, W, C'] float32; C' is twice the input's channels with `learn_sigma`."""
    routing: tuple[Routing, ...]
    """A record for each segment of the trunk that has MoE layers, stacked on a leading axis of
    these; none for a dense network."""
    losses: dict[str, jax.Array]
    """Auxiliary losses by name, summed over layers, already scaled: add them to the loss."""
