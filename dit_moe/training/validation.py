"""The loss on held-out data, measured now and then with the same noise."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

from dit_moe.config import (
    Config,
    ConfigError,
    DataConfig,
    LowRankConfig,
    ModelConfig,
    ObjectiveConfig,
)
from dit_moe.data.array_records import RecordError
from dit_moe.data.pipeline import batches
from dit_moe.data.sources import Source, build_sources, check_heldout
from dit_moe.devices.mesh import batch_sharding, replicated
from dit_moe.diffusion.integrate import build_objective
from dit_moe.diffusion.objective import TIME_BINS, Network
from dit_moe.models.low_rank import functional_merged
from dit_moe.models.parameters import Parameters
from dit_moe.models.prediction import Prediction
from dit_moe.runs.checkpoints import TrainingError
from dit_moe.training.logging import summarize
from dit_moe.training.step import Metrics, image_keys, in_parts, mean_of_parts

PREFIX = "validation/"
NAMES = tuple(f"{PREFIX}{name}" for name in ("loss", *(f"loss_t{b}" for b in range(TIME_BINS))))
"""The columns: the objective's loss, and the same by quarter of the time range."""
_SEED = 0
"""What images, times and noise are drawn from, whatever the run's own: runs can be compared."""

Loss = Callable[[Parameters, jax.Array, jax.Array, jax.Array], Metrics]


def heldout_sources(
    data: DataConfig, model: ModelConfig, every: int | None, sources: Sequence[Source]
) -> Sequence[Source]:
    """The held-out data that the config asks for; none where it asks for no validation.

    Args:
      data: of the run.
      model: of the run.
      every: `train.validate_every`.
      sources: what is trained on.

    Raises:
      ConfigError: there are none and `every` is a number above 0, or they do not fit.
    """
    heldout = () if every == 0 else build_sources(data, model, "validation")
    if every and not heldout:
        raise ConfigError(
            f"config.train.validate_every is {every}, but the data hold nothing out; allowed: 0, "
            "or folders of held-out data in config.data.validation_path"
        )
    check_heldout(sources, heldout)
    return heldout


class Validation:
    """The loss on the first batches of the held-out data, in an order of their own.

    Every image has a time and noise that never change. Labels are not dropped, routers choose as
    in sampling, and auxiliary losses are left out.

    Args:
      config: of the run.
      heldout: from `heldout_sources`, at least one.
      mesh: of the run.

    Raises:
      TrainingError: a record of the data cannot be read.
    """

    def __init__(self, config: Config, heldout: Sequence[Source], mesh: Mesh):
        settings = config.train
        self._sharding = batch_sharding(mesh)
        plain = dataclasses.replace(config.data, flip=False, mix_weights=())
        share = {"host": jax.process_index(), "num_hosts": jax.process_count()}
        stream = batches(heldout, plain, settings.batch_size, _SEED, **share)
        try:
            # Kept on the host: reading ahead again and again would cost more than they do.
            self._batches = [*itertools.islice(stream, settings.validation_batches)]
        except RecordError as error:
            raise TrainingError(str(error)) from error
        loss = build_validation_loss(
            config.model, config.objective, settings.accumulation, settings.lora
        )
        self._loss = jax.jit(loss, out_shardings=replicated(mesh))

    def measure(self, parameters: Parameters) -> dict[str, float]:
        """The losses by `NAMES`."""
        put = functools.partial(jax.make_array_from_process_local_data, self._sharding)
        key = jax.random.key(_SEED)
        measured = [
            self._loss(parameters, jax.random.fold_in(key, i), put(batch.x), put(batch.label))
            for i, batch in enumerate(self._batches)
        ]
        scalars = {f"{PREFIX}{name}": value for name, value in summarize(measured).items()}
        return {name: scalars[name] for name in NAMES}


NOT_MEASURED = dict.fromkeys(NAMES, math.nan)
"""What a row of the metrics has where nothing was measured."""


def build_validation_loss(
    model: ModelConfig, objective: ObjectiveConfig, parts: int, lora: LowRankConfig | None = None
) -> Loss:
    """The function from parameters, a key and a batch to the metrics of the objective alone.

    A batch is cut into the parts that training cuts it into, and needs less memory than that.
    """
    bind, objective_loss = functional_merged(model, lora), build_objective(objective).loss

    def loss(
        parameters: Parameters, key: jax.Array, x_NxHxWxC: jax.Array, y_N: jax.Array
    ) -> Metrics:
        network = _without_losses(bind(parameters))

        def measure(part: list[jax.Array]) -> Metrics:
            _, (metrics, _) = objective_loss(network, *part)
            return metrics

        key_N = image_keys(key, len(y_N))
        return mean_of_parts(
            jax.lax.map(measure, in_parts(parts, model.rows, key_N, x_NxHxWxC, y_N))
        )

    return loss


def _without_losses(network: Network) -> Network:
    def predict(x_NxHxWxC: jax.Array, t_N: jax.Array, y_N: jax.Array) -> Prediction:
        return dataclasses.replace(network(x_NxHxWxC, t_N, y_N), losses={})

    return predict
