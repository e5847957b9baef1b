"""Records of array_record files by number, from however many files."""

import bisect
import functools
import itertools
import resource
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

_MOST_FILES = 2**16


class RecordError(OSError):
    """A record cannot be read; the message names its file."""


class Records:
    """Random access to the examples of a split, from several threads at once.

    A file stays open once it was read, but for those that were read longest ago when there are more
    than the system lets a process open.

    Args:
      parts: which records of which files, in order (`tfds`'s file instructions).
      fields: what is read of an example; others may be there.
      decoders: how, as for `tfds.load`.
    """

    def __init__(
        self,
        parts: Sequence[Any],
        fields: tfds.features.FeaturesDict,
        decoders: Mapping[str, Any] | None = None,
    ):
        self._parts = parts
        self._ends = list(itertools.accumulate(part.take for part in parts))
        self._fields = fields
        self._decoders = decoders
        self._reader = functools.lru_cache(maxsize=_files_that_may_stay_open())(_open)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The fields of one example.

        Raises:
          IndexError: there is no such record.
          RecordError: it is damaged, or its file cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        place = bisect.bisect_right(self._ends, index)
        part = self._parts[place]
        position = index - self._ends[place] + part.take + part.skip
        try:
            (record,) = self._reader(str(part.filename)).read([position])
            example: Any = self._fields.deserialize_example_np(record, decoders=self._decoders)
            for name, value in example.items():
                if value is None:
                    raise ValueError(f"it lacks the field {name!r}")
            return example
        except Exception as error:  # whatever the readers make of damaged bytes
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RecordError(
                f"record {position} of {part.filename} cannot be read ({reason})"
            ) from error


def _open(file: str) -> ArrayRecordReader:
    return ArrayRecordReader(
        file, options="readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=2**15
    )


@functools.cache
def _files_that_may_stay_open() -> int:
    """A quarter of the system's limit for a process, which is first raised as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
        except (OSError, ValueError):  # macOS allows less than it says
            pass
    return max(1, min(soft if soft > 0 else most, most) // 4)
