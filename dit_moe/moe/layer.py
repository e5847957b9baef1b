"""The mixture-of-experts layer: route, dispatch, add the shared expert."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from dit_moe.config import ConfigError, ExpertGroup, MoEConfig
from dit_moe.moe.assignments import ExpertRanges, arrange_by_image
from dit_moe.moe.dispatch import dispatch, resolve_backend
from dit_moe.moe.exchange import DIRECT, Travel, expert_shards, expert_slices
from dit_moe.moe.expert_parallel import dispatch_to_shards
from dit_moe.moe.experts.bank import ExpertBank
from dit_moe.moe.experts.cheap import CheapExperts
from dit_moe.moe.experts.recurrent import RecurrentExperts
from dit_moe.moe.own_experts import expert_specs, own_experts
from dit_moe.moe.routers import build_router
from dit_moe.moe.routers.by_image import Decided, route
from dit_moe.moe.routing import Conditioning, Routing
from dit_moe.moe.slots import Mixes
from dit_moe.nn.feed_forward import Experts, ExpertWeights, FeedForward
from dit_moe.nn.linear import linear


class MoELayer(nnx.Module):
    """A feed-forward layer of routed experts and, optionally, one shared by all tokens.

    Without a router of its own it does what `Conditioning.decided` says.
    """

    def __init__(
        self,
        config: MoEConfig,
        width: int,
        rngs: nnx.Rngs,
        travel: Travel = DIRECT,
        *,
        routes: bool = True,
    ):
        self.config, self.travel = config, travel
        self.ranges = ranges = ExpertRanges.of(config)
        self.router = build_router(config.as_scored, width, rngs) if routes else Decided()
        # Of whole numbers, which no gradient moves: a model that has it is never trained.
        columns = config.columns
        self.stand_in = None if columns is None else nnx.Param(jnp.zeros(columns), axes=(None,))
        self.experts = Experts(
            config.expert,
            len(ranges.groups[0]),
            width,
            int(config.hidden_ratio * width),
            rngs,
        )
        shared_hidden = int(config.shared_hidden_ratio * width)
        self.shared = (
            FeedForward(config.expert, width, shared_hidden, rngs) if shared_hidden else None
        )
        zeros = jax.nn.initializers.zeros
        mixed = config.shared_mix == "learnt"
        self.mix = linear(width, 2, ("embed", None), rngs, init=zeros) if mixed else None
        self.cheap = CheapExperts(ranges, width, rngs) if ranges.cheap else None
        unlike = [build_group(group, width, rngs) for group in config.unlike]
        self.unlike = nnx.List(unlike) if unlike else None

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> tuple[jax.Array, Routing]:
        """Maps tokens [T, D] to [T, D] in the dtype of x, and tells how they were routed."""
        routing = self.decide(x_TxD, conditioning)
        if routing.mixes is not None:
            y_TxD = _through_slots(x_TxD, routing.mixes, self.experts.bank(), self.travel)
            routing = dataclasses.replace(routing, mixes=None)
        else:
            y_TxD = self._through_groups(x_TxD, routing, conditioning.tokens_per_image)
        if self.cheap is not None:
            y_TxD = y_TxD + self.cheap(x_TxD, routing)
        if self.shared is not None:
            y_TxD = self._mixed(x_TxD, y_TxD, self.shared(x_TxD))
        return y_TxD, routing

    def decide(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        """How tokens [T, D] are routed; no expert computes anything."""
        routing = route(self.config, self.router, x_TxD, conditioning)
        if self.stand_in is not None:
            routing = self.ranges.stood_in(routing, self.stand_in[...])
        return routing

    def _through_groups(self, x_TxD: jax.Array, routing: Routing, per_image: int) -> jax.Array:
        """What the routed experts of all groups give together."""
        y_TxD = self._dispatched(x_TxD, routing, 0, self.experts)
        for group, experts in enumerate(self.unlike or (), start=1):
            if isinstance(experts, RecurrentExperts):
                weight_TxR = self.ranges.group_weights(routing, group)
                y_TxD = y_TxD + experts(x_TxD, weight_TxR, per_image)
            else:
                y_TxD = y_TxD + self._dispatched(x_TxD, routing, group, experts)
        return y_TxD

    def _dispatched(
        self, x_TxD: jax.Array, routing: Routing, group: int, experts: Experts
    ) -> jax.Array:
        share = len(self.ranges.groups[group]) / self.ranges.stack if group else 1.0
        within = self.ranges.within(routing, group)
        return _dispatch_over_mesh(
            x_TxD, within, experts.bank(), self.config.top_k, share, self.travel
        )

    def _mixed(self, x_TxD: jax.Array, routed_TxD: jax.Array, shared_TxD: jax.Array) -> jax.Array:
        """What the routed experts and the shared one give together, in the dtype of x."""
        if self.mix is None:
            return routed_TxD + shared_TxD
        share_Tx2 = jax.nn.softmax(self.mix(x_TxD.astype(jnp.float32)))
        y_TxD = share_Tx2[:, :1] * routed_TxD + share_Tx2[:, 1:] * shared_TxD
        return y_TxD.astype(x_TxD.dtype)


def build_group(group: ExpertGroup, width: int, rngs: nnx.Rngs) -> "Experts | RecurrentExperts":
    """Fresh experts of a group."""
    hidden = int(group.hidden_ratio * width)
    build = RecurrentExperts if group.facts.whole_images else Experts
    return build(group.kind, group.number, width, hidden, rngs)


def _through_slots(
    x_TxD: jax.Array, mixes: Mixes, experts: ExpertBank, travel: Travel
) -> jax.Array:
    """Mixes of an image's tokens in place of tokens: every slot has one expert, with weight 1."""
    slots_RxD = mixes.fill(x_TxD)
    images, _, slots = mixes.into.shape
    own_P = jnp.repeat(
        jnp.arange(experts.num_experts, dtype=jnp.int32), slots // experts.num_experts
    )
    num = images * slots
    routing = Routing(
        token=jnp.arange(num, dtype=jnp.int32),
        expert=jnp.tile(own_P, images),
        weight=jnp.ones(num),
        scores=jnp.zeros((num, 0)),
        losses={},
    )
    return mixes.spread(_dispatch_over_mesh(slots_RxD, routing, experts, 1, travel=travel))


def _dispatch_over_mesh(
    x_TxD: jax.Array,
    routing: Routing,
    experts: ExpertBank,
    top_k: int,
    share: float = 1.0,
    travel: Travel = DIRECT,
) -> jax.Array:
    """Dispatch on the devices of the current mesh, each with its own tokens.

    Experts are where the axis "expert" puts them, slices of them where "tensor" does, and tokens
    travel to them; without these axes every device has all experts. A token has `top_k` experts on
    average, of which this share is among these. `travel` says how they travel.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return dispatch(x_TxD, routing, experts)
    plain = isinstance(experts, ExpertWeights)
    for axis, parts in (("expert", expert_shards()), ("tensor", expert_slices())):
        if not plain and parts > 1:
            raise ConfigError(
                f"config.mesh.{axis} is {parts} with packed experts, which lie whole on every "
                "device; allowed: 1"
            )
    num_experts = experts.num_experts
    routing = arrange_by_image(routing, num_experts)
    routing = dataclasses.replace(
        routing, losses={}, metrics={}, next_state={}, hand_on={}, hidden=None
    )
    # Without travel there is nothing that rounds could overlap.
    apart = expert_shards() * expert_slices() > 1
    travel = travel if apart else DIRECT
    # Where tokens have slots for more experts than they use, rounds hold the memory of those used.
    in_rounds = apart or len(routing.token) > top_k * len(x_TxD)

    def local(x_TxD: jax.Array, routing: Routing, experts: ExpertBank) -> jax.Array:
        first = jax.lax.axis_index(mesh.axis_names) * x_TxD.shape[0]
        routing = dataclasses.replace(routing, token=routing.token - first)
        if not in_rounds:
            return dispatch(x_TxD, routing, experts)
        if isinstance(experts, ExpertWeights):
            experts = own_experts(experts, num_experts)
        usual = min(math.ceil(share * top_k * len(x_TxD)), len(routing.token))
        return dispatch_to_shards(x_TxD, routing, experts, num_experts, usual, travel=travel)

    tokens, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    return jax.shard_map(
        local,
        in_specs=(tokens, tokens, expert_specs(experts) if plain and in_rounds else whole),
        out_specs=tokens,
        # tokamax's kernels do not tell over which axes their results vary.
        check_vma=resolve_backend("auto") != "tokamax",
    )(x_TxD, routing, experts)
