"""The whole of a prepared set: makes what is missing, and finishes it."""

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from csv import writer as csv_writer
from pathlib import Path

from dit_moe.config import ConfigError
from dit_moe.data import prepared
from dit_moe.data.prepare.job import PROGRESS, Job, PrepareError, Record
from dit_moe.data.prepared import Card
from dit_moe.storage.files import atomic, lock, sha256
from dit_moe.storage.records import read_json

JOB = "job.json"
REJECTED = "rejected.csv"


def prepare(
    job: Job, make: Callable[[Job, Sequence[int]], None], max_rejected: float
) -> tuple[Card, bool]:
    """Makes what is missing of a data set, and finishes it.

    Args:
      job: what is to be made.
      make: makes the shards of the given numbers and writes their records.
      max_rejected: the share of pictures that may be left out.

    Returns:
      The card, and whether the set was there already; then it has been verified.

    Raises:
      ConfigError: the output belongs to another job, or is in use.
      PrepareError: too many pictures were rejected, or files have changed.
    """
    output = job.settings.output
    _check_identity(job)
    if (output / prepared.CARD).is_file():
        return _check_finished(output), True
    busy = ConfigError(
        f"output {str(output)!r} is in use by another run; allowed: another --output"
    )
    with lock(output / ".lock", busy):
        _check_identity(job)  # another run may have begun and ended in between
        with atomic(output / JOB) as temporary:
            temporary.write_text(json.dumps(job.identity(), indent=2) + "\n")
        _sweep(job)
        missing = [index for index in range(job.num_shards) if job.record(index) is None]
        if len(missing) < job.num_shards:
            done = job.num_shards - len(missing)
            print(f"Resuming: {done} of {job.num_shards} shards are done.")
        if missing:
            make(job, missing)
        return _finish(job, max_rejected), False


def _check_identity(job: Job) -> None:
    """Refuses an output that holds something else.

    Raises:
      ConfigError: it does.
    """
    output = job.settings.output
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output {str(output)!r} is a file; allowed: a new or empty folder")
    if output.resolve().is_relative_to(Path(job.settings.input).resolve()):
        raise ConfigError(
            f"output {str(output)!r} lies inside of the input; allowed: another place"
        )
    path = output / JOB
    if not path.is_file():
        if output.is_dir() and any(not item.name.startswith(".") for item in output.iterdir()):
            raise ConfigError(
                f"output {str(output)!r} holds files that this command did not write; allowed: a "
                "new or empty folder"
            )
        return
    wanted = job.identity()
    missing = object()
    try:
        known = read_json(path)
        changed = sorted(
            name
            for name in {*known, *wanted}
            if known.get(name, missing) != wanted.get(name, missing)
        )
    except (AttributeError, TypeError, ValueError, RecursionError):
        raise ConfigError(f"{path} cannot be read; allowed: a new --output") from None
    if changed:
        raise ConfigError(
            f"output {str(output)!r} belongs to another job; it differs in {', '.join(changed)}: "
            "use the same input and flags, or another --output"
        )


def _check_finished(output: Path) -> Card:
    wrong = prepared.verify(output)
    if wrong:
        raise PrepareError(
            f"data set {str(output)!r} is damaged: {'; '.join(wrong)}. Remove the folder and "
            "prepare it again"
        )
    shutil.rmtree(output / PROGRESS, ignore_errors=True)  # of a run that ended just before
    return prepared.Prepared(output).card


def _sweep(job: Job) -> None:
    """Removes what runs that were killed had half written."""
    stems = ["job", "rejected", "labels", "labels-validation", "prepared"]
    stems += [f"{job.settings.name}-{split}" for split in ("train", "validation")]
    for pattern in (*(f".{stem}.*" for stem in stems), f"{PROGRESS}/.*"):
        for path in job.settings.output.glob(pattern):
            path.unlink()


def _finish(job: Job, max_rejected: float) -> Card:
    settings, total = job.settings, len(job.input.entries)
    records = list(_checked_records(job))
    training, validation = records[: job.num_train_shards], records[job.num_train_shards :]
    rejected = sorted(item for record in records for item in record.rejected)
    _print_rejected(rejected, total)
    _print_absent(job.input.classes, training)
    share = len(rejected) / total
    if not any(record.shard.labels for record in training):
        raise PrepareError("none of the pictures can be used")
    if share > max_rejected:
        raise PrepareError(
            f"{share:.2%} of the pictures were rejected; allowed by max_rejected: "
            f"{max_rejected:.2%}. With a higher --max_rejected the same command finishes at once"
        )
    with (
        atomic(settings.output / REJECTED) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        csv_writer(file, lineterminator="\n").writerows([("key", "reason"), *rejected])
    card = prepared.finish(
        settings.output,
        name=settings.name,
        image_size=settings.image_size,
        shape=job.shape,
        classes=job.input.classes,
        autoencoder=job.autoencoder,
        mirrored=job.input.latents is None,
        shards=[record.shard for record in training],
        validation=[record.shard for record in validation],
        description=f"Made by dit_moe.data.prepare from {job.input.kind}.",
    )
    shutil.rmtree(settings.output / PROGRESS)
    return card


def _checked_records(job: Job) -> Iterator[Record]:
    """The records of all shards, each held against its file.

    Raises:
      PrepareError: a file is not what its record says.
    """
    wrong = []
    for index in range(job.num_shards):
        record = job.record(index)
        if record is not None and _is_whole(job, index, record):
            yield record
            continue
        with contextlib.suppress(FileNotFoundError):
            job.record_path(index).unlink()
        wrong.append(job.shard_path(index).name)
    if wrong:
        raise PrepareError(
            f"{wrong[0]} is not as it was written ({len(wrong)} of {job.num_shards} files); the "
            "same command makes them again"
        )


def _is_whole(job: Job, index: int, record: Record) -> bool:
    entries = len(job.entries(index))
    counted = len(record.shard.labels) + len(record.rejected)
    return counted == entries and sha256(job.shard_path(index)) == record.shard.sha256


def _print_rejected(rejected: Sequence[tuple[str, str]], total: int) -> None:
    if not rejected:
        return
    print(f"Rejected {len(rejected):,} of {total:,} pictures:")
    for reason, number in Counter(reason for _, reason in rejected).most_common():
        example = next(key for key, why in rejected if why == reason)
        print(f"  {number:>7,}  {reason} (such as {example})")


def _print_absent(classes: Sequence[str], records: Sequence[Record]) -> None:
    present = {label for record in records for label in record.shard.labels}
    absent = [name for label, name in enumerate(classes) if label not in present]
    if absent and present:
        print(
            f"{len(absent):,} of {len(classes):,} classes have no picture that can be used (such "
            f"as {absent[0]}); a model can learn nothing of them."
        )
