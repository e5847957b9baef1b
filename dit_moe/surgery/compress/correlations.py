"""What GPTQ asks of data: how the inputs of each matrix go together, block by block.

A block is looked at when those before it are rounded already, as they will be when it runs.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from dit_moe.config import ConfigError, ModelConfig, MoEConfig
from dit_moe.models.block import Block, Given
from dit_moe.models.parameters import Parameters, Place, functional
from dit_moe.models.trunk import fitting
from dit_moe.moe.assignments import ExpertRanges
from dit_moe.moe.layer import MoELayer
from dit_moe.moe.routing import Conditioning, Routing
from dit_moe.nn.embeddings import rotary_angles
from dit_moe.nn.feed_forward import Experts, FeedForward, expert_activation
from dit_moe.nn.flat import bind
from dit_moe.nn.linear import Linear
from dit_moe.surgery.compress.calibration import Inputs


class Seen(NamedTuple):
    """The inputs of a matrix [D, G], or of each of E experts'."""

    own: jax.Array
    """[D, D] or [E, D, D] float32: the sum of x x^T over its tokens."""
    everywhere: jax.Array
    """The same over all tokens that the layer was given, whichever expert had them."""
    tokens: jax.Array
    """[] or [E] float32."""
    all_tokens: jax.Array
    """[] float32."""

    def blended(self) -> jax.Array:
        """`own`, with as many tokens of the layer's average as the matrix has inputs: of an expert
        with many tokens of its own next to nothing, of one with none all."""
        inputs = self.own.shape[-1]
        return self.own + inputs * self.everywhere / jnp.maximum(self.all_tokens, 1)


def check_seen(network: ModelConfig, what: str, allowed: str) -> None:
    """Checks that the tokens of each expert can be seen.

    Args:
      network: whose experts they are.
      what: for the message, the setting that asks for it, such as "method is 'gptq'".
      allowed: what else it may be.

    Raises:
      ConfigError: they cannot.
    """
    for moe in dict.fromkeys(network.mixtures):
        if moe.router.chooser == "nobody" or moe.choose_by == "image":
            by = f"router is {moe.router.name!r}, choose_by {moe.choose_by!r}"
            raise ConfigError(
                f"{what}, but the model's moe.{by}, where experts have no tokens of their own; "
                f"allowed: {allowed}"
            )


class Walk:
    """Inputs on their way through a network, block by block.

    Args:
      network: whose blocks they pass.
      parameters: by dotted path, of which only those before the first block are used.
      shown: what the network is shown.
    """

    def __init__(
        self, network: ModelConfig, parameters: Mapping[str, np.ndarray], shown: Iterable[Inputs]
    ):
        self._network = network

        @jax.jit
        def enter(parameters: Parameters, x: jax.Array, t_N: jax.Array, y_N: jax.Array):
            x_NxSxD, given, _ = functional(network)(parameters).enter(x, t_N, y_N)
            return x_NxSxD, given.condition, given.is_null

        whole = jax.device_put(dict(parameters))
        self._rows = [(*enter(whole, each.x, each.t, each.y), {}) for each in shown]

    def look(
        self, place: Place, parameters: Mapping[str, jax.Array], names: Iterable[str]
    ) -> dict[str, Seen]:
        """What the next block's matrices are given.

        Args:
          place: of the block.
          parameters: of the block, by the path within it.
          names: of the matrices, such as "attention.qkv.kernel".
        """
        total: dict[str, Seen] = {}
        for x, condition, is_null, previous in self._rows:
            previous = self._fitting(place, previous, x)
            run = _look(self._network, place.moe, tuple(sorted(names)))
            found = run(dict(parameters), x, condition, is_null, previous)
            total = jax.tree.map(jnp.add, total, found) if total else found
        return total

    def cosine(self, place: Place, parameters: Mapping[str, jax.Array]) -> float:
        """The mean cosine of tokens before and after the next block's feed-forward is added, under
        its gate; arguments as of `advance`."""
        total, number = 0.0, 0
        for x, condition, is_null, previous in self._rows:
            run = _cosine(self._network, place.moe)
            fitted = self._fitting(place, previous, x)
            total += len(x) * float(run(dict(parameters), x, condition, is_null, fitted))
            number += len(x)
        return total / number

    def advance(self, place: Place, parameters: Mapping[str, jax.Array]) -> None:
        """Sends the inputs through the next block, with these parameters."""
        for number, (x, condition, is_null, previous) in enumerate(self._rows):
            previous = self._fitting(place, previous, x)
            run = _run(self._network, place.moe)
            x, previous = run(dict(parameters), x, condition, is_null, previous)
            self._rows[number] = x, condition, is_null, previous

    def _fitting(self, place: Place, previous: dict, x_NxSxD: jax.Array) -> dict:
        segment = self._network.trunk[int(place.prefix.split(".")[2])]
        return fitting(previous, segment, x_NxSxD.shape[0] * x_NxSxD.shape[1])


@functools.lru_cache(maxsize=8)
def _look(network: ModelConfig, moe: MoEConfig | None, names: tuple[str, ...]) -> Callable:
    """Jitted: what the named matrices of a block are given."""

    @jax.jit
    def look(parameters, x, condition, is_null, previous) -> dict[str, Seen]:
        seen: dict[str, Seen] = {}
        block = _block(network, moe, parameters)
        _watch(block, names, seen)
        block(x, _given(network, condition, is_null, previous))
        return {name: seen[name] for name in names if name in seen}

    return look


@functools.lru_cache(maxsize=8)
def _run(network: ModelConfig, moe: MoEConfig | None) -> Callable:
    """Jitted: what a block makes of its tokens, and hands on."""

    @jax.jit
    def run(parameters, x, condition, is_null, previous) -> tuple[jax.Array, dict]:
        block = _block(network, moe, parameters)
        x, routing = block(x, _given(network, condition, is_null, previous))
        return x, previous if routing is None else routing.hand_on

    return run


@functools.lru_cache(maxsize=8)
def _cosine(network: ModelConfig, moe: MoEConfig | None) -> Callable:
    """Jitted: the mean cosine of a block's tokens before and after its feed-forward."""

    @jax.jit
    def run(parameters, x, condition, is_null, previous) -> jax.Array:
        block, given = (
            _block(network, moe, parameters),
            _given(network, condition, is_null, previous),
        )
        after, _, outputs = block.with_outputs(x, given)
        fed = jnp.zeros_like(outputs.feed_forward)
        before = block.with_known(x, given, dataclasses.replace(outputs, feed_forward=fed))
        product = jnp.sum(before * after, axis=-1)
        norms = jnp.linalg.norm(before, axis=-1) * jnp.linalg.norm(after, axis=-1)
        return (product / jnp.maximum(norms, 1e-30)).mean()

    return run


def _given(network: ModelConfig, condition: jax.Array, is_null: jax.Array, previous: dict) -> Given:
    head, angles = network.width // network.heads, None
    if network.position == "rope":
        angles = rotary_angles(network.grid, head, network.grid)
    return Given(condition, is_null, angles, previous=previous)


def _block(network: ModelConfig, moe: MoEConfig | None, parameters: dict) -> Block:
    abstract = nnx.eval_shape(lambda: Block(network, moe, nnx.Rngs(0)))
    return bind(abstract, parameters)


class _Watched(nnx.Module):
    """A layer that tells what it is called with, and what it gives."""

    def __init__(self, layer: Callable, tell: Callable):
        self.layer, self.tell = layer, tell

    def __call__(self, *arguments):
        found = self.layer(*arguments)
        self.tell(*arguments, found)
        return found


def _watch(block: Block, names: tuple[str, ...], seen: dict[str, Seen]) -> None:
    """Makes a block tell of these matrices when it is called."""
    for path, module in list(nnx.iter_modules(block)):
        name = ".".join(map(str, path))
        if isinstance(module, Linear) and f"{name}.kernel" in names:
            tell = functools.partial(_of_linear, f"{name}.kernel", seen)
        elif isinstance(module, FeedForward):
            tell = functools.partial(_of_feed_forward, f"{name}.experts.", module, seen)
        else:
            continue
        *parents, last = path
        parent = functools.reduce(getattr, map(str, parents), block)
        setattr(parent, str(last), _Watched(module, tell))
    layer = block.feed_forward
    if isinstance(layer, MoELayer):
        tell = functools.partial(_of_mixture, layer, seen)
        layer.router = _Watched(layer.router, tell)  # pyright: ignore[reportAttributeAccessIssue]


def _of_linear(name: str, seen: dict[str, Seen], x: jax.Array, _: jax.Array) -> None:
    seen[name] = _of_all(x)


def _of_feed_forward(
    prefix: str, layer: FeedForward, seen: dict[str, Seen], x: jax.Array, _: jax.Array
) -> None:
    hidden = _hidden(x, layer.experts.bank().expert(0, x.dtype))
    for name, rows in (("w_in", x), ("w_out", hidden)):
        own, _, tokens, _ = _of_all(rows)
        seen[prefix + name] = Seen(own[None], own, tokens[None], tokens)  # a stack of one


def _of_mixture(
    layer: MoELayer,
    seen: dict[str, Seen],
    x_TxD: jax.Array,
    _: Conditioning,
    routing: Routing,
) -> None:
    """What the experts of every group that computes tokens one by one are given."""
    ranges = ExpertRanges.of(layer.config)
    names = ["experts", *(f"unlike.{i}" for i in range(len(layer.config.unlike)))]
    for group, (name, experts) in enumerate(
        zip(names, (layer.experts, *(layer.unlike or ())), strict=True)
    ):
        if isinstance(experts, Experts):
            found = _of_experts(x_TxD, ranges.within(routing, group), experts)
            for matrix, one in zip(("w_in", "w_out"), found, strict=True):
                seen[f"feed_forward.{name}.{matrix}"] = one


def _of_experts(x_TxD: jax.Array, routing: Routing, experts: Experts) -> tuple[Seen, Seen]:
    bank, tokens = experts.bank(), jnp.float32(len(x_TxD))
    own_TxE = jnp.zeros((len(x_TxD), bank.num_experts))
    used_A = (routing.weight != 0).astype(jnp.float32)
    own_TxE = own_TxE.at[routing.token, routing.expert].add(used_A, mode="drop")

    def of_one(index: jax.Array) -> tuple[jax.Array, ...]:
        hidden = _hidden(x_TxD, bank.expert(index, x_TxD.dtype))
        own_Tx1 = own_TxE[:, index, None]
        return _gram(x_TxD, own_Tx1), _gram(hidden, own_Tx1), _gram(hidden)

    of_in, of_out, everywhere = lax.map(of_one, jnp.arange(bank.num_experts))
    tokens_E = own_TxE.sum(axis=0)
    return (
        Seen(of_in, _gram(x_TxD), tokens_E, tokens),
        Seen(of_out, everywhere, tokens_E, tokens),
    )


def _of_all(x: jax.Array) -> Seen:
    """Of a matrix that every row passes."""
    rows = x.reshape(-1, x.shape[-1])
    gram, number = _gram(rows), jnp.float32(len(rows))
    return Seen(gram, gram, number, number)


def _hidden(x: jax.Array, own) -> jax.Array:
    h = x @ own.w_in
    h = h if own.b_in is None else h + own.b_in
    return expert_activation(h.astype(x.dtype), own.kind)


def _gram(x: jax.Array, weight_Tx1: jax.Array | float = 1.0) -> jax.Array:
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    return jnp.matmul((rows * weight_Tx1).T, rows, precision=lax.Precision.HIGHEST)
