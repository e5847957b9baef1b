"""The shards of a data set made on this machine: worker processes decode ahead of the encoder."""

import contextlib
import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from dit_moe.config import ConfigError
from dit_moe.data.prepare.job import Job, PrepareError
from dit_moe.data.prepare.shard import build_encoder, make_shard
from dit_moe.data.prepare.worker import Decoded, decode_entries, start

MAX_WORKERS = 4096
_CHUNK = 16  # entries of one task


def make_shards(job: Job, missing: Sequence[int], workers: int) -> None:
    """Makes the shards of the given numbers, in their order.

    Args:
      job: what is made.
      missing: numbers of shards.
      workers: processes that decode.

    Raises:
      ConfigError: `workers` is below 1 or above `MAX_WORKERS`.
      PrepareError: a worker process died.
    """
    if not 1 <= workers <= MAX_WORKERS:
        raise ConfigError(f"workers is {workers}; allowed: 1 to {MAX_WORKERS}")
    encoder = build_encoder(job)
    total = len(job.input.entries)
    # Not forked: JAX has threads.
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(workers, context, initializer=start) as pool,
        tqdm(
            total=total,
            initial=total - sum(len(job.entries(index)) for index in missing),
            unit="image",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,  # in a log file, a line now and then
        ) as bar,
    ):
        try:
            for index, decoded in _decode_ahead(pool, job, missing):
                make_shard(job, index, _counted(decoded, bar), encoder)
        except BrokenProcessPool:
            raise PrepareError(
                "a worker process died, perhaps for lack of memory; the same command goes on, with "
                "fewer --workers if need be"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _decode_ahead(
    pool: ProcessPoolExecutor, job: Job, missing: Sequence[int]
) -> Iterator[tuple[int, Iterator[Decoded]]]:
    """The entries of shard after shard, decoded; the next shard's are under way meanwhile."""

    def submit(index: int) -> list[Future[list[Decoded]]]:
        entries, how = job.entries(index), (job.settings.image_size, job.channels)
        with _no_interrupt():
            return [
                pool.submit(decode_entries, job.input.reader, entries[i : i + _CHUNK], *how)
                for i in range(0, len(entries), _CHUNK)
            ]

    queue = [submit(missing[0])]
    for place, index in enumerate(missing):
        if place + 1 < len(missing):
            queue.append(submit(missing[place + 1]))
        yield index, _results(queue.pop(0))


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Processes that start within ignore Ctrl-C from their first moment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _results(futures: list[Future[list[Decoded]]]) -> Iterator[Decoded]:
    while futures:
        yield from futures.pop(0).result()  # popped, so that its pictures can be freed


def _counted(decoded: Iterable[Decoded], bar: tqdm) -> Iterator[Decoded]:
    for item in decoded:
        yield item
        bar.update()
