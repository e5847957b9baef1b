"""What a ring reads, when, and how much of it is held."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dit_moe.config import ConfigError
from dit_moe.streaming.layout import FORMAT, Layer, Leaf, Store
from dit_moe.streaming.making import _with_checksums
from dit_moe.streaming.reader import Reader
from dit_moe.streaming.ring import Ring, all_blocks, least_bytes, pinned_layers

LAYERS, EXPERTS = 6, 3
LEAVES = (Leaf("w_in", "float32", (20, 64)), Leaf("w_out", "uint8", (100,)))


@pytest.fixture
def store(tmp_path) -> tuple[Path, Store]:
    """Random bytes, and what tells of them."""
    layers = tuple(Layer("experts", unit, EXPERTS, LEAVES) for unit in range(LAYERS))
    store = Store(FORMAT, 0, "float32", "", layers)
    path = tmp_path / "experts.bin"
    path.write_bytes(np.random.default_rng(0).bytes(store.bytes))
    return path, Store(FORMAT, 0, "float32", "", tuple(_with_checksums(path, store)))


def expected(path: Path, store: Store, layer: int, expert: int) -> bytes:
    block = store.layers[layer].block
    start = store.starts[layer] + expert * block
    return path.read_bytes()[start : start + block]


def test_layers_are_pinned_evenly():
    assert pinned_layers([10] * 6, 60) == [True] * 6
    assert sum(pinned_layers([10] * 6, 59)) == 3
    assert pinned_layers([10] * 6, 50) == [False, True, False, True, False, True]
    assert pinned_layers([10] * 6, 20) == [False] * 6
    assert pinned_layers([10] * 6, 31) == [False] * 5 + [True]
    for budget in range(20, 200):
        sizes = [10, 30, 10, 20, 10, 30]
        pinned = pinned_layers(sizes, budget)
        held = sum(size for size, stays in zip(sizes, pinned, strict=True) if stays)
        assert held == sum(sizes) or held <= max(budget - 60, 0)


@pytest.mark.parametrize("layers", [2, 2.5, 3, 5, 6])
@pytest.mark.parametrize("ahead", [True, False])
def test_bytes_of_a_pass_are_those_of_the_layers_that_are_not_pinned(store, layers, ahead):
    path, store = store
    size = store.layers[0].bytes
    with Reader(path, store) as reader:
        ring = Ring(reader, store, int(layers * size), ahead=ahead)
        assert ring.pinned == (LAYERS if layers >= LAYERS else max(int(layers) - 2, 0))
        assert ring.streamed_bytes == (LAYERS - ring.pinned) * size
        assert ring.held_bytes <= layers * size
        for _ in range(2):
            passes(ring, path, store, 1)
            settle(ring)
            before, system = reader.bytes_read, read_by_system()
            passes(ring, path, store, 3, check=False)
            settle(ring)
            assert reader.bytes_read - before == 3 * ring.streamed_bytes
            assert read_by_system() - system - (reader.bytes_read - before) < 4096
        assert ring.held_bytes <= layers * size + (store.layers[0].block if not ahead else 0)
        ring.close()


def passes(ring: Ring, path: Path, store: Store, count: int, *, check: bool = True) -> None:
    for _ in range(count):
        for layer in range(LAYERS):
            for expert in range(EXPERTS):
                found = ring.block(layer, expert, "me")
                if check:
                    assert found.tobytes() == expected(path, store, layer, expert)


def settle(ring: Ring) -> None:
    """Waits until all slots are full, but for what the last user holds."""
    while len(ring._loaded) + len(ring._used) < ring._slots:
        time.sleep(0.001)


def read_by_system() -> int:
    """Bytes that this process has read by any call, from disks and caches."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(lines[0].removeprefix("rchar: "))


def test_an_order_in_which_layers_are_left_out(store):
    """Each turn reads what is in it and is not pinned, with or without what is left out of all."""
    path, store = store
    size = store.layers[0].bytes
    short = [(layer, expert) for layer in (0, 1, 3) for expert in range(EXPERTS)]
    order = [*all_blocks(store)[:-1], *short, *short]
    last = (LAYERS - 1, EXPERTS - 1)
    with Reader(path, store) as reader:
        for budget, pinned in ((2 * size, 0), (4 * size, 2), (11 * size // 2, 3)):
            ring = Ring(reader, store, budget, order=order)
            assert ring.pinned == pinned
            assert last not in ring._pinned
            turn = sum(store.layers[0].block for block in order if block not in ring._pinned)
            assert ring.streamed_bytes == turn
            for turns in (1, 2, 3):
                settle(ring)
                before = reader.bytes_read
                for block in order * turns:
                    assert ring.block(*block, "me").tobytes() == expected(path, store, *block)
                settle(ring)
                if turns > 1:  # after the first, one slot is in use
                    assert reader.bytes_read - before == turns * turn
            before = reader.bytes_read
            assert ring.block(*last, "me").tobytes() == expected(path, store, *last)
            assert reader.bytes_read - before >= store.layers[0].block
            for block in (*short, *reversed(short)):
                assert ring.block(*block, "me").tobytes() == expected(path, store, *block)
            ring.close()
            reader = Reader(path, store)
        whole = Ring(reader, store, store.bytes, order=short)
        assert whole.held_bytes == len(short) * store.layers[0].block
        whole.close()


def test_any_order_and_two_users_get_what_they_ask_for(store):
    """Each keeps what it was given while the other asks on."""
    path, store = store
    with Reader(path, store) as reader:
        ring = Ring(reader, store, least_bytes(store))
        random = np.random.default_rng(1)
        held: dict[int, tuple[np.ndarray, bytes]] = {}
        for layer, expert, user in random.integers(0, (LAYERS, EXPERTS, 8), (400, 3)):
            held.pop(user, None)
            found = ring.block(int(layer), int(expert), user)
            held[user] = found, expected(path, store, layer, expert)
            assert all(found.tobytes() == told for found, told in held.values())
        ring.close()


def test_users_at_once(store):
    path, store = store
    wrong: list[object] = []
    with Reader(path, store) as reader:
        ring = Ring(reader, store, least_bytes(store))

        def use(user: int) -> None:
            for number in range(20 * LAYERS * EXPERTS):
                layer, expert = divmod(number % (LAYERS * EXPERTS), EXPERTS)
                found = ring.block(layer, expert, user)
                if found.tobytes() != expected(path, store, layer, expert):
                    wrong.append((user, layer, expert))

        threads = [threading.Thread(target=use, args=(user,)) for user in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ring.close()
    assert not wrong


def test_what_comes_next_is_there_also_over_the_end_of_a_pass(store):
    path, store = store
    with Reader(path, store) as reader:
        ring = Ring(reader, store, least_bytes(store))
        passes(ring, path, store, 1)
        settle(ring)
        stalled, before = ring.stall_seconds, reader.bytes_read
        # All but one of the slots: the last block of the pass before is in use.
        for number in range(2 * EXPERTS - 1):
            ring.block(*divmod(number, EXPERTS), "me")
        assert ring.stall_seconds - stalled < 0.01
        assert reader.bytes_read - before <= 2 * EXPERTS * store.layers[0].block
        ring.close()


def test_faults_end_in_one_sentence(store, monkeypatch):
    path, store = store
    size = store.layers[0].bytes

    def failure(error: type[Exception]) -> str:
        with Reader(path, store) as reader:
            ring = Ring(reader, store, 2 * size)
            with pytest.raises(error) as caught:
                passes(ring, path, store, 2, check=False)
            assert ring.failure is caught.value
            ring.close()
        return str(caught.value)

    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[4 * size + 11] ^= 1
    path.write_bytes(changed)
    assert "is damaged: expert 0 of experts in unit 4 is not" in failure(ConfigError)
    path.write_bytes(whole[: 4 * size + 11])
    assert "was cut while it is drawn from" in failure(ConfigError)
    path.write_bytes(whole)
    preadv = os.preadv

    def broken(descriptor: int, buffers: list, offset: int) -> int:
        if offset >= 3 * size:
            raise OSError(5, "Input/output error")
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", broken)
    assert failure(OSError) == f"[Errno 5] cannot be read: Input/output error: '{path}'"


def test_reads_that_give_less_are_gone_on_with(store, monkeypatch):
    path, store = store
    preadv = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:1000]], offset)
    )
    with Reader(path, store) as reader:
        ring = Ring(reader, store, least_bytes(store))
        passes(ring, path, store, 1)
        ring.close()
