"""What the network returns."""

import flax.struct
import jax

from dit_moe.moe.routing import Routing


@flax.struct.dataclass
class Guesses:
    """What layers by themselves say that the network should predict."""

    value: jax.Array
    """[L, N, H, W, C] float32, of the layers that guess, in their order; C as the input has."""
    coefs: tuple[float, ...] = flax.struct.field(pytree_node=False)
    """Factors of the layers' squared errors in the loss: L."""


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
    decided: Routing | None = None
    """What the router before the trunk decided for all MoE layers, whose records are then the same
    but for losses and next state (`ModelConfig.pregate`)."""
    guesses: Guesses | None = None
    """In a training step of a network whose layers guess: the objective, which alone knows what
    they should have said, adds their loss."""

    @property
    def deciders(self) -> tuple[Routing, ...]:
        """The records with losses and next state: one for each prefix of
        `parameters.router_prefixes`."""
        return self.routing if self.decided is None else (self.decided,)
