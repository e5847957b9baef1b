"""Which layers stay in memory, and a ring through which the others come, ahead of their use.

A step of a sparse diffusion transformer uses every expert of every layer, in order: a cache of what
was used last would never have what comes next. What is pinned is saved at every step, and for the
others there is always time to read ahead, also from the end of a step into the next.
"""

import bisect
import itertools
import math
import threading
import time
from collections.abc import Sequence

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.streaming.layout import Store
from dit_moe.streaming.reader import Reader, buffer

Block = tuple[int, int]
"""A layer, by its number in the store, and an expert of it."""

LEAST_LAYERS = 2
"""Layers that a ring holds: one that is used, one that is read."""


def least_bytes(store: Store) -> int:
    """The least budget that a ring works in."""
    sizes = sorted(layer.bytes for layer in store.layers)
    return min(sum(sizes), LEAST_LAYERS * sizes[-1])


def all_blocks(store: Store) -> list[Block]:
    """Those of all layers, in the order of the network."""
    return [
        (number, expert)
        for number, layer in enumerate(store.layers)
        for expert in range(layer.experts)
    ]


def pinned_layers(sizes: Sequence[int], budget: int) -> list[bool]:
    """Which layers stay in memory within a budget: all, or those that leave a ring its layers,
    spread evenly over the depth, so that everywhere something is computed while others are read.

    Args:
      sizes: bytes of the layers.
      budget: bytes for experts.
    """
    total = sum(sizes)
    if budget >= total:
        return [True] * len(sizes)
    room = max(budget - LEAST_LAYERS * max(sizes), 0)
    pinned, share, left = [], 0, room
    for size in sizes:
        share += size * room  # in units of 1 / total bytes, without rounding
        take = share >= size * total and size <= left
        share -= size * total * take
        left -= size * take
        pinned.append(take)
    return pinned


class Ring:
    """Experts in a budget of memory: some pinned, the others read ahead by a thread.

    `block` gives them in any order; in the order that it was told it waits least.

    Args:
      reader: of the store.
      store: what is read.
      budget: bytes for experts, at least `least_bytes`.
      order: what will be asked for, from the first to the last and again from the first; None: all
        experts of all layers, as an evaluation of the network asks. What is not in it is not kept,
        but read when it is asked for.
      ahead: read ahead; without, every expert is read when it is asked for.

    Raises:
      ConfigError, OSError: what is pinned cannot be read.
    """

    def __init__(
        self,
        reader: Reader,
        store: Store,
        budget: int,
        *,
        order: Sequence[Block] | None = None,
        ahead: bool = True,
    ):
        if budget < least_bytes(store):
            raise ValueError(f"a budget of {budget} bytes is less than {least_bytes(store)}")
        self._reader, self._store = reader, store
        self.stall_seconds = 0.0
        self.failure: Exception | None = None
        """What ended the reading."""
        order = all_blocks(store) if order is None else order
        needed = sorted(set(order))
        sizes = [0] * len(store.layers)
        for layer, _ in needed:
            sizes[layer] += store.layers[layer].block
        pinned = pinned_layers(sizes, budget)
        self.pinned = sum(pinned)
        """How many layers."""
        self._pinned = {
            block: self._read(block, buffer(store.layers[block[0]].block))
            for block in needed
            if pinned[block[0]]
        }
        self._order = [block for block in order if not pinned[block[0]]]
        self.streamed_bytes = sum(store.layers[layer].block for layer, _ in self._order)
        """Of what is not pinned: what one turn of the order reads."""
        self._places: dict[Block, list[int]] = {}
        for place, block in enumerate(self._order):
            self._places.setdefault(block, []).append(place)
        self.held_bytes = sum(len(part) for part in self._pinned.values())
        """Of all buffers."""
        self._largest = max(layer.block for layer in store.layers)
        self._slots = (budget - self.held_bytes) // self._largest if self._order and ahead else 0
        # No more than there are blocks: what is read twice is one block in two slots.
        self._slots = min(self._slots, len(self._places))
        self._free = [buffer(self._largest) for _ in range(self._slots)]
        self.held_bytes += self._slots * self._largest
        self._head = 0  # the next to be asked for: positions go on over the ends of turns
        self._loaded: dict[int, np.ndarray] = {}
        self._awaited: set[int] = set()
        self._used: dict[object, np.ndarray] = {}
        self._scratch: dict[object, np.ndarray] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._read_ahead, daemon=True)
        if self._slots:
            self._thread.start()

    @property
    def bytes_read(self) -> int:
        """Of the store, since it was opened."""
        return self._reader.bytes_read

    def forget(self) -> None:
        """See `Reader.forget`."""
        self._reader.forget()

    def close(self) -> None:
        """Ends the reading; what was given stays as it is."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._reader.close()

    def block(self, layer: int, expert: int, user: object) -> np.ndarray:
        """An expert's block: uint8 [bytes], which stays as it is until the same user asks again.

        Args:
          layer: its number in the store.
          expert: in its layer.
          user: who asks; each one thing after another.

        Raises:
          ConfigError: the store is cut or changed.
          OSError: it cannot be read.
        """
        wanted = layer, expert
        if wanted in self._pinned:
            return self._pinned[wanted]
        with self._changed:
            self._release(user)
            position = self._next(wanted)
            # Where all slots are in use, or it comes later than what is read ahead, it is not
            # worth waiting for.
            if position < self._head + self._slots and len(self._used) < self._slots:
                return self._wait(int(position), user)
            scratch = self._scratch.get(user)
        if scratch is None:
            scratch = buffer(self._largest)
            with self._changed:
                self._scratch[user] = scratch
                self.held_bytes += len(scratch)
        return self._read(wanted, scratch)

    def _next(self, wanted: Block) -> float:
        """The next position of a block; it has none where the order has no such block."""
        places = self._places.get(wanted)
        if places is None:
            return math.inf
        turn, head = divmod(self._head, len(self._order))
        index = bisect.bisect_left(places, head)
        later, index = divmod(index, len(places))
        return (turn + later) * len(self._order) + places[index]

    def _release(self, user: object) -> None:
        slot = self._used.pop(user, None)
        if slot is not None:
            self._free.append(slot)
            self._changed.notify_all()

    def _wait(self, position: int, user: object) -> np.ndarray:
        """Gives up what comes before, and waits for the block at a position."""
        for passed in range(self._head, position):
            if passed in self._loaded:
                self._free.append(self._loaded.pop(passed))
        self._head = position + 1
        self._awaited.add(position)
        self._changed.notify_all()
        began = time.perf_counter()
        self._changed.wait_for(lambda: position in self._loaded or self.failure or self._closed)
        self.stall_seconds += time.perf_counter() - began
        self._awaited.discard(position)
        if position not in self._loaded:
            raise self.failure or ConfigError("the store was closed while it was drawn from")
        slot = self._used[user] = self._loaded.pop(position)
        return slot

    def _read_ahead(self) -> None:
        """What the thread does."""
        for position in itertools.count():
            with self._changed:
                self._changed.wait_for(lambda: self._free or self._closed)
                if self._closed:
                    return
                if not self._wants(position):
                    continue
                slot = self._free.pop()
            try:
                self._read(self._order[position % len(self._order)], slot)
            except Exception:  # told by `failure` to those who wait
                with self._changed:
                    self._changed.notify_all()
                return
            with self._changed:
                if self._wants(position):
                    self._loaded[position] = slot
                else:
                    self._free.append(slot)
                self._changed.notify_all()

    def _wants(self, position: int) -> bool:
        return position >= self._head or position in self._awaited

    def _read(self, block: Block, into: np.ndarray) -> np.ndarray:
        try:
            self._reader.read(*block, into)
        except Exception as error:
            self.failure = error
            raise
        return into
