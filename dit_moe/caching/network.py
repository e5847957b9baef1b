"""A network of which only a part is computed at most evaluations, and what it keeps meanwhile."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dit_moe.caching.schedule import Schedule
from dit_moe.models.block import Given
from dit_moe.models.dit import DiT
from dit_moe.models.prediction import Prediction
from dit_moe.models.trunk import Trunk


class Method(Protocol):
    """What decides which units are computed, and what stands in for the others."""

    @property
    def schedule(self) -> Schedule | None:
        """What is computed; None: it depends on the images."""
        ...

    @property
    def rows_axis(self) -> int:
        """The axis of every array that is kept along which the batch lies, or its tokens."""
        ...

    @property
    def gates(self) -> bool:
        """Whether the gates of units that are not computed are."""
        ...

    def like(self, trunk: Trunk, x_NxSxD: jax.Array, given: Given) -> Any:
        """A tree of arrays like those that are kept between evaluations; only traced."""
        ...

    def __call__(
        self, trunk: Trunk, x_NxSxD: jax.Array, given: Given, kept: Any, number: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Stands in the place of the trunk.

        Args:
          trunk: of the network.
          x_NxSxD: [N, S, D] tokens before its first unit.
          given: what every block may know.
          kept: what was kept for these rows; zeros at first.
          number: of the evaluation, from 0 on.

        Returns:
          The tokens after the last unit, and what is kept for the next evaluation.
        """
        ...


class CachedNetwork:
    """A network whose trunk runs as a method says, for one batch drawn by one solver.

    It is made inside of the jitted sampler, before the solver's loop. What is kept lies in
    references (`jax.new_ref`), which JAX makes part of what loops carry: solvers, guidance and
    objectives know nothing of it.

    Args:
      model: the network.
      method: which units are computed.
      rows: the most images that one evaluation has, twice those of the batch where it has them
        with and without their class. Where an evaluation has fewer, they are the first.
      shape: (H, W, C) of an image.
    """

    def __init__(self, model: DiT, method: Method, rows: int, shape: tuple[int, ...]):
        self._model, self._method, self._rows = model, method, rows

        def like() -> Any:
            x, t_N = jnp.zeros((rows, *shape)), jnp.zeros(rows)
            tokens, given, _ = model.enter(x, t_N, jnp.zeros(rows, jnp.int32))
            return method.like(model.trunk, tokens, given)

        self._refs = jax.tree.map(self._empty, jax.eval_shape(like))
        self._number = jax.new_ref(jnp.int32(0))

    def __call__(self, x: jax.Array, t_N: jax.Array, y_N: jax.Array) -> Prediction:
        """The prediction of [N, H, W, C] images at times [N] with labels [N]; it tells no
        routing."""
        number = self._number[...]
        self._number[...] = number + 1
        x_NxSxD, given, grid = self._model.enter(x, t_N, y_N)
        before = jax.tree.map(lambda ref: ref[self._rows_of(ref, len(y_N))], self._refs)
        x_NxSxD, kept = self._method(self._model.trunk, x_NxSxD, given, before, number)
        jax.tree.map(self._keep, self._refs, kept)
        return Prediction(self._model.leave(x_NxSxD, given, grid), routing=(), losses={})

    @property
    def kept(self) -> Any:
        """What is kept now."""
        return jax.tree.map(lambda ref: ref[...], self._refs)

    def _rows_of(self, array: Any, number: int) -> tuple[slice, ...]:
        """The index of what belongs to so many rows; all of a scalar."""
        if not array.ndim:
            return ()
        axis = self._method.rows_axis
        return (slice(None),) * axis + (slice(array.shape[axis] * number // self._rows),)

    def _keep(self, ref: Any, kept: jax.Array) -> None:
        ref[tuple(slice(size) for size in kept.shape)] = kept

    def _empty(self, like: jax.ShapeDtypeStruct) -> Any:
        zeros = jnp.zeros(like.shape, like.dtype)
        mesh = jax.sharding.get_abstract_mesh()
        if like.ndim and not mesh.empty:
            spec = PartitionSpec(*[None] * self._method.rows_axis, mesh.axis_names)
            zeros = jax.lax.with_sharding_constraint(zeros, spec)
        return jax.new_ref(zeros)
