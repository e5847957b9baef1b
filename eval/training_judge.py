"""Judges samples of a run while it trains; the command hands it to the training loop."""

from pathlib import Path
from typing import Any

import numpy as np

from dit_moe.config import ConfigError, EvaluateConfig

from .choose import check, choose
from .collect import default_cache
from .evaluate import evaluate
from .features import OUTPUTS, load_extractor
from .metric_table import METRICS, PAIRWISE_REFERENCE
from .references import open_reference
from .run_samples import StateSamples, image_set


class TrainingJudge:
    """What `config.train.evaluate` asks for, made ready.

    Raises:
        ConfigError: a field cannot be used.
    """

    def __init__(self, settings: EvaluateConfig):
        assert settings.reference is not None
        if settings.features not in OUTPUTS:
            raise ConfigError(f"features is {settings.features!r}; allowed: {', '.join(OUTPUTS)}")
        self._reference = open_reference(settings.reference)
        self._names = choose(settings.metrics, settings.features, self._reference)
        weights = None if settings.weights is None else Path(settings.weights)
        self._extractor = load_extractor(settings.features, weights, batch_size=settings.batch_size)
        first = METRICS[self._names[0]]
        if first.best is None:
            judging = [name for name, metric in METRICS.items() if metric.best]
            raise ConfigError(
                f"metrics begins with {self._names[0]!r}, by which no checkpoint is better than "
                f"another; allowed first: {', '.join(judging)}"
            )
        self.highest = first.best == "highest"
        """Whether the highest of the first values is the best."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that the values depend on beside the samples, ready for JSON."""
        return {
            "reference": self._reference.sha256,
            "features": self._extractor.description,
            "metrics": self._names,
            "pairwise_reference": PAIRWISE_REFERENCE,
        }

    def check(self, samples: StateSamples) -> None:
        """Whether such samples can be judged; one black image runs through the network.

        Raises:
            ConfigError: they cannot.
        """
        images = image_set(samples)
        chosen = [METRICS[name] for name in self._names]
        check(images, self._reference, self._extractor, chosen)
        self._extractor(np.zeros((1, *images.shape), np.uint8))

    def __call__(self, samples: StateSamples) -> dict[str, float]:
        """The values by column: "digits/fid" is that metric by features `digits`.

        Raises:
            ConfigError: the samples cannot be judged.
            OSError: the cache cannot be written.
        """
        result = evaluate(
            image_set(samples),
            self._reference,
            self._extractor,
            self._names,
            cache=default_cache(),
            batch_size=samples.batch_size,
        )
        return {
            _column(self._extractor.name, name, entry): result["metrics"][name][entry]
            for name in self._names
            for entry in METRICS[name].rows
        }


def _column(features: str, metric: str, entry: str) -> str:
    return f"{features}/{metric}" if entry == "value" else f"{features}/{metric}_{entry}"
