"""Programs whose experts come from a store, run within a budget of memory."""

from collections.abc import Sequence
from typing import Any

import jax

from dit_moe.devices import hosts
from dit_moe.streaming.opening import OpenStore, experts_budget
from dit_moe.streaming.ring import Block, Ring


class StreamingProgram:
    """A jitted function of a network that the store's source feeds.

    What memory is left for experts is known when it is compiled, at the first call, to whose shapes
    all others must keep.

    Args:
      function: as `jax.jit` made it.
      opened: the store.
      memory: bytes that the process may hold; None: what all experts need.
      order: of a call, or of each of the network's passes, which are alike; see `Ring`.
      each: which of the two, in words.
    """

    def __init__(
        self,
        function: Any,
        opened: OpenStore,
        memory: int | None,
        order: Sequence[Block],
        each: str,
    ):
        self._function, self._opened, self._memory = function, opened, memory
        self._order, self._each = order, each
        self._compiled: Any = None
        self.ring: Ring | None = None
        """What holds the experts, since the first call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs it, to the end.

        Raises:
          ConfigError: the memory does not suffice; or the store is cut, changed or damaged.
          OSError: it cannot be read.
        """
        if self._compiled is None:
            # The function itself would compile once more.
            self._compiled = self._function.lower(*args, **kwargs).compile()
            self._fill(self._compiled)
        assert self.ring is not None
        try:
            return jax.block_until_ready(self._compiled(*args, **kwargs))
        except jax.errors.JaxRuntimeError:
            if self.ring.failure is None:
                raise
            raise self.ring.failure from None

    def _fill(self, compiled: Any) -> None:
        analysis = compiled.memory_analysis()
        program = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
        store = self._opened.store
        budget = experts_budget(self._memory, store, program)
        self.ring = ring = self._opened.fill(budget, order=self._order)
        if ring.streamed_bytes:
            hosts.say(
                f"{ring.pinned} of {len(store.layers)} layers of experts stay in memory; each "
                f"{self._each} reads {ring.streamed_bytes / 1e9:.3g} GB of {self._opened.folder}."
            )

    def close(self) -> None:
        """Ends the reading."""
        if self.ring is not None:
            self.ring.close()
