"""The shards of a data set made by an Apache Beam pipeline."""

from collections.abc import Iterator, Sequence

import apache_beam as beam  # pyright: ignore[reportMissingImports]
from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]
from apache_beam.utils.shared import Shared  # pyright: ignore[reportMissingImports]

from dit_moe.config import ConfigError
from dit_moe.data.prepare.job import Job, PrepareError, Settings
from dit_moe.data.prepare.shard import build_encoder, make_shard
from dit_moe.data.prepare.worker import Decoded, decode_entries


def make_shards(job: Job, missing: Sequence[int], beam_flags: Sequence[str]) -> None:
    """Makes the shards of the given numbers, in any order, and waits for them.

    Args:
      job: what is made.
      missing: numbers of shards.
      beam_flags: Beam's own options.

    Raises:
      PrepareError: the pipeline failed.
    """
    try:
        with beam.Pipeline(options=PipelineOptions(list(beam_flags))) as pipeline:
            _ = (
                pipeline
                | "Numbers" >> beam.Create(missing)
                | "Spread" >> beam.Reshuffle()
                | "Make" >> beam.ParDo(MakeShard(job.settings, job.identity()))
            )
    except RuntimeError as error:
        # Beam has logged the rest.
        raise PrepareError(str(error).strip().partition("\n")[0]) from None


class MakeShard(beam.DoFn):
    """Makes the shard of a given number, and passes the number on.

    Args:
      settings: of the job.
      identity: of the job, as the launching machine sees it.
    """

    def __init__(self, settings: Settings, identity: dict[str, object]):
        self._settings = settings
        self._identity = identity
        self._shared = Shared()

    def setup(self) -> None:
        """Lists the input and loads the autoencoder, once in a process.

        Raises:
          ConfigError: this machine sees another input or autoencoder than the launching one.
        """
        self._tools = self._shared.acquire(lambda: _Tools(self._settings))
        found = self._tools.job.identity()
        if found != self._identity:
            raise ConfigError(
                f"this machine finds {found} where the launching one found {self._identity}; "
                "allowed: the same input and autoencoder on every machine"
            )

    def process(self, element: int) -> Iterator[int]:
        """See `shard.make_shard`."""
        job = self._tools.job
        make_shard(job, element, _decoded(job, element), self._tools.encoder)
        yield element


class _Tools:
    def __init__(self, settings: Settings):
        self.job = Job(settings)
        self.encoder = build_encoder(self.job)


def _decoded(job: Job, index: int) -> Iterator[Decoded]:
    for entry in job.entries(index):
        yield from decode_entries(job.input.reader, [entry], job.settings.image_size, job.channels)
