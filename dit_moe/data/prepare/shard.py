"""One shard: what was decoded is encoded and written."""

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from dit_moe.data.prepare.input import Posterior
from dit_moe.data.prepare.job import Job, Record
from dit_moe.data.prepare.worker import Decoded
from dit_moe.data.prepared import write_shard

if TYPE_CHECKING:
    from dit_moe.data.prepare.encoder import Encoder


def build_encoder(job: Job) -> "Encoder | None":
    """The job's autoencoder, ready to work; None if it has nothing to do."""
    if job.loaded is None or job.input.latents is not None:
        return None
    from dit_moe.data.prepare.encoder import Encoder  # JAX takes seconds to import

    return Encoder(job.loaded, job.settings.batch_size)


def make_shard(job: Job, index: int, decoded: Iterable[Decoded], encoder: "Encoder | None") -> None:
    """Writes one shard, and then the record that says that it is done.

    The bytes depend on the job and the index alone: batches are counted from the shard's start.

    Args:
      job: what is made.
      index: the shard's number.
      decoded: its entries in their order; they may come as they get ready.
      encoder: makes latents; None if pictures are kept, or latents as they are.
    """
    rejected: list[tuple[str, str]] = []

    def good() -> Iterator[Decoded]:
        for item in decoded:
            if item.image is None:
                rejected.append((item.key, item.reason))
            else:
                yield item

    if job.input.latents is not None:
        examples = _ready_made(good(), *job.latent_scale, rejected)
    else:
        examples = _pictures(good()) if encoder is None else _latents(good(), encoder)
    shard = write_shard(job.shard_path(index), job.fields, examples)
    job.write_record(index, Record(shard, tuple(rejected)))


def _pictures(items: Iterator[Decoded]) -> Iterator[dict[str, object]]:
    for item in items:
        yield {"image": item.image, "label": item.label, "key": item.key}


def _ready_made(
    items: Iterator[Decoded], scale: float, shift: float, rejected: list[tuple[str, str]]
) -> Iterator[dict[str, object]]:
    """Latents that were there, unscaled, without one of the mirror image."""
    for item in items:
        assert isinstance(item.image, Posterior)
        mean = item.image.mean / np.float32(scale) + np.float32(shift)
        with np.errstate(over="ignore"):
            parts = mean.astype(np.float16), item.image.log_variance.astype(np.float16)
        if not all(np.isfinite(part).all() for part in parts):
            rejected.append((item.key, "not finite, or exceeds float16"))
            continue
        yield {
            "mean": parts[0][None],
            "log_variance": parts[1][None],
            "label": item.label,
            "key": item.key,
        }


def _latents(items: Iterator[Decoded], encoder: "Encoder") -> Iterator[dict[str, object]]:
    while batch := list(itertools.islice(items, encoder.batch_size)):
        images = [item.image for item in batch if isinstance(item.image, np.ndarray)]
        image_NxHxWx3 = np.stack(images)
        for item, mean, log_variance in zip(batch, *encoder(image_NxHxWx3), strict=True):
            yield {
                "mean": mean,
                "log_variance": log_variance,
                "label": item.label,
                "key": item.key,
            }
