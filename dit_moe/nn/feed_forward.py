"""Feed-forward networks: one that every token passes, or the parameters of many of a kind."""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config.experts import EXPERTS, ExpertKind
from dit_moe.nn.linear import affine, product
from dit_moe.nn.packed_forms import PackedForm, PackedModule

_XAVIER = jax.nn.initializers.xavier_uniform(in_axis=-2, out_axis=-1, batch_axis=(0,))


# Differentiation keeps the input alone. What it would keep of the steps to the result is several
# times as much, and differs between versions of JAX. Inside of loops XLA cannot merge the two.
@functools.partial(jax.checkpoint, static_argnums=1, prevent_cse=False)
def expert_activation(h: jax.Array, kind: ExpertKind) -> jax.Array:
    """The non-linearity between the two layers: [..., G] to [..., F], same dtype."""
    return kind.activation(h)


@flax.struct.dataclass
class ExpertWeights:
    """The weights of E feed-forward networks of one kind as they are: the plain bank of experts.

    Width D, hidden width F, and G = F times the kind's `in_matrices`.
    """

    w_in: jax.Array
    """[E, D, G] float32: the matrices of the first layer side by side."""
    w_out: jax.Array
    """[E, F, D] float32."""
    b_in: jax.Array | None = None
    """[E, G] float32."""
    b_out: jax.Array | None = None
    """[E, D] float32."""
    activation: str = flax.struct.field(pytree_node=False, default="swiglu")
    """Name of the kind; see `config.EXPERTS`."""

    @property
    def kind(self) -> ExpertKind:
        """The facts of the kind."""
        return EXPERTS[self.activation]

    @property
    def num_experts(self) -> int:
        """E."""
        return self.w_in.shape[0]

    def expert(self, index: jax.Array | int, dtype: jnp.dtype) -> "ExpertWeights":
        """The weights of one expert, without the leading axis."""
        return jax.tree.map(lambda w: w[index].astype(dtype), self)

    def stack(self, dtype: jnp.dtype) -> "ExpertWeights":
        """The matrices of all experts in a dtype; biases as they are."""
        return dataclasses.replace(
            self, w_in=self.w_in.astype(dtype), w_out=self.w_out.astype(dtype)
        )


@flax.struct.dataclass
class PackedExperts:
    """The bank of experts of whose matrices one or both are packed; it cannot be trained.

    A back end that asks for one expert at a time never has more of them whole.
    """

    w_in: jax.Array | PackedForm
    """[E, D, G] float32 or packed."""
    w_out: jax.Array | PackedForm
    """[E, F, D] float32 or packed."""
    b_in: jax.Array | None = None
    b_out: jax.Array | None = None
    activation: str = flax.struct.field(pytree_node=False, default="swiglu")

    @property
    def kind(self) -> ExpertKind:
        """The facts of the kind."""
        return EXPERTS[self.activation]

    @property
    def num_experts(self) -> int:
        """E."""
        return self.w_in.shape[0]

    def expert(self, index: jax.Array | int, dtype: jnp.dtype) -> ExpertWeights:
        """The weights of one expert, its matrices whole."""

        def own(w: jax.Array | PackedForm) -> jax.Array:
            return w[index] if isinstance(w, jax.Array) else w.expert(index)

        b_in, b_out = (None if b is None else b[index] for b in (self.b_in, self.b_out))
        found = ExpertWeights(own(self.w_in), own(self.w_out), b_in, b_out, self.activation)
        return jax.tree.map(lambda w: w.astype(dtype), found)

    def stack(self, dtype: jnp.dtype) -> ExpertWeights:
        """The weights of all experts, their matrices whole and in a dtype; biases as they are."""

        def whole(w: jax.Array | PackedForm) -> jax.Array:
            return w if isinstance(w, jax.Array) else w.weights()

        found = ExpertWeights(
            whole(self.w_in), whole(self.w_out), self.b_in, self.b_out, self.activation
        )
        return found.stack(dtype)


class Experts(nnx.Module):
    """The parameters of E feed-forward networks of one kind."""

    def __init__(self, kind: str, num_experts: int, width: int, hidden: int, rngs: nnx.Rngs):
        self.kind, facts = kind, EXPERTS[kind]
        # Each matrix is initialised apart: its fan-out is `hidden`.
        w_in = [
            _XAVIER(rngs.params(), (num_experts, width, hidden)) for _ in range(facts.in_matrices)
        ]
        w_out_ExFxD = _XAVIER(rngs.params(), (num_experts, hidden, width))
        self.w_in = nnx.Param(jnp.concatenate(w_in, axis=-1), axes=("expert", "embed", "mlp"))
        self.w_out = nnx.Param(w_out_ExFxD, axes=("expert", "mlp", "embed"))
        if facts.biases:
            b_in_ExG = jnp.zeros((num_experts, facts.in_matrices * hidden))
            self.b_in = nnx.Param(b_in_ExG, axes=("expert", "mlp"))
            self.b_out = nnx.Param(jnp.zeros((num_experts, width)), axes=("expert", "embed"))

    def bank(self) -> ExpertWeights | PackedExperts:
        """The parameters in the form that dispatch takes."""
        biases = EXPERTS[self.kind].biases
        b_in, b_out = (self.b_in[...], self.b_out[...]) if biases else (None, None)
        if isinstance(self.w_in, PackedModule) or isinstance(self.w_out, PackedModule):
            w_in, w_out = (
                w.packed if isinstance(w, PackedModule) else w[...] for w in (self.w_in, self.w_out)
            )
            return PackedExperts(w_in, w_out, b_in, b_out, self.kind)
        return ExpertWeights(self.w_in[...], self.w_out[...], b_in, b_out, self.kind)


class FeedForward(nnx.Module):
    """One feed-forward network that every token passes: a dense block's, or a shared expert."""

    def __init__(self, kind: str, width: int, hidden: int, rngs: nnx.Rngs):
        self.experts = Experts(kind, 1, width, hidden, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., D] in the dtype of x."""
        own = self.experts.bank().expert(0, x.dtype)
        return dense_layer(_hidden(x, own), own.w_out, own.b_out)

    def hidden(self, x: jax.Array) -> jax.Array:
        """What its second layer sees: [..., D] to [..., F] in the dtype of x."""
        return _hidden(x, self.experts.bank().expert(0, x.dtype))


def _hidden(x: jax.Array, own: ExpertWeights) -> jax.Array:
    return expert_activation(dense_layer(x, own.w_in, own.b_in), own.kind)


def dense_layer(x: jax.Array, w_DxG: jax.Array, b_G: jax.Array | None) -> jax.Array:
    """One layer of a network without its activation: [..., D] to [..., G], in the dtype of all."""
    return product(x, w_DxG) if b_G is None else affine(x, w_DxG, b_G)
