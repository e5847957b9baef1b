"""What a run should tell its user: skipped updates, jumps of the loss, experts without work, and
a loss on held-out data that rises."""

import collections
import math
import re
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence

from dit_moe.runs.checkpoints import Checkpoints, TrainingError
from dit_moe.runs.state import TrainState

BAD_DATA = "the data are not finite"
"""The reason of a skipped update that no setting of the optimiser mends."""

_SPIKE = 1.5  # times the median of the last lines
_SPIKE_HISTORY = 20  # lines
_SPIKE_MINIMUM = 5  # lines before the first warning
_DEAD_AFTER = 3  # lines
_RISE = 1.02  # times the best loss on held-out data
_RISING_AFTER = 5  # validations
_LOAD = re.compile(r"moe/load/layer(\d+)/expert(\d+)")


class Skips:
    """Tells of skipped updates, and ends the training after too many in a row.

    Args:
      limit: how many in a row are too many.
      say: prints a line.
    """

    def __init__(self, limit: int, say: Callable[[str], object]):
        self._limit = limit
        self._say = say
        self.in_a_row = 0
        """Updates skipped up to now, since the last that was not."""
        self._reasons: set[str] = set()

    def report(self, number: int, reasons: list[str | None], newest: int | None) -> None:
        """Takes why each of the steps up to `number` was skipped (None: it was not).

        The batch of a step follows from the seed and the step's number.

        Args:
          number: the last step.
          reasons: of every step since the last report.
          newest: the step of the newest checkpoint, if any.

        Raises:
          TrainingError: the limit is reached.
        """
        skipped: dict[str, list[str]] = collections.defaultdict(list)
        longest = 0
        for step, reason in enumerate(reasons, start=number - len(reasons) + 1):
            self.in_a_row = 0 if reason is None else self.in_a_row + 1
            longest = max(longest, self.in_a_row)
            if reason is not None:
                skipped[reason].append(f"{step:,}")
        for reason, steps in skipped.items():
            self._say(f"update {', '.join(steps)} skipped: {reason}")
        if longest >= self._limit:
            good = "none" if newest is None else f"step {newest:,}"
            raise TrainingError(
                f"{longest} updates in a row were skipped up to step {number:,}, because "
                f"{' and '.join(skipped)}; the last good checkpoint is {good}: {_advice(skipped)}"
            )
        self._reasons.update(skipped)

    def conclude(self, steps: int, updates: int) -> None:
        """Takes how many of all steps of the run, now at its end, made an update.

        Raises:
          TrainingError: none did.
        """
        if updates == 0:
            because = " and ".join(sorted(self._reasons))
            raise TrainingError(
                f"none of the {steps:,} updates could be made, because {because}: "
                f"{_advice(self._reasons)}"
            )
        if updates < steps:
            self._say(f"{steps - updates:,} of {steps:,} updates were skipped")


def _advice(reasons: Collection[str]) -> str:
    if set(reasons) == {BAD_DATA}:
        return "look at the data set and how it was made, no setting of the training mends it"
    return "try a smaller learning_rate or a gradient_clip"


class Warnings:
    """Warns of a loss far above the last lines' and of experts that no token went to.

    Args:
      num_experts: the routed experts of every MoE layer; the unconditional ones have their work
        from the labels, and cheap ones may be idle.
      say: prints a line.
    """

    def __init__(self, num_experts: Sequence[int], say: Callable[[str], object]):
        self._num_experts = num_experts
        self._say = say
        self._losses: collections.deque[float] = collections.deque(maxlen=_SPIKE_HISTORY)
        self._idle: dict[tuple[int, int], int] = collections.Counter()
        self._overfitting = Overfitting(say)

    def check(self, number: int, scalars: Mapping[str, float]) -> None:
        """Takes the means of a log line up to step `number`."""
        self._overfitting.check(number, scalars)
        self._check_loss(number, scalars)
        self._check_experts(number, scalars)

    def _check_loss(self, number: int, scalars: Mapping[str, float]) -> None:
        if len(self._losses) >= _SPIKE_MINIMUM:
            usual = statistics.median(self._losses)
            if scalars["loss"] > _SPIKE * usual:
                self._say(
                    f"step {number:,}: loss {scalars['loss']:.4g} jumped above {_SPIKE} times its "
                    f"median of the last {len(self._losses)} lines ({usual:.4g})"
                )
        if math.isfinite(scalars["loss"]):  # a median among NaNs is any number
            self._losses.append(scalars["loss"])

    def _check_experts(self, number: int, scalars: Mapping[str, float]) -> None:
        for name, load in scalars.items():
            match = _LOAD.fullmatch(name)
            if match is None or int(match[2]) >= self._num_experts[int(match[1])]:
                continue
            expert = int(match[1]), int(match[2])
            self._idle[expert] = 0 if load > 0 else self._idle[expert] + 1
        newly = [expert for expert, lines in self._idle.items() if lines == _DEAD_AFTER]
        if newly:
            names = ", ".join(f"layer {layer} expert {expert}" for layer, expert in newly)
            self._say(f"step {number:,}: no token in the last {_DEAD_AFTER} lines went to {names}")


class Overfitting:
    """Warns once of a loss on held-out data that stays above its best for long, while the training
    loss falls.

    Args:
      say: prints a line.
    """

    def __init__(self, say: Callable[[str], object]):
        self._say = say
        self._losses: list[float] = []  # of training, since the last validation
        self._best: tuple[float, float, int] | None = None
        self._above = 0  # validations in a row

    def check(self, number: int, scalars: Mapping[str, float]) -> None:
        """Takes the means of a log line up to step `number`."""
        if math.isfinite(scalars["loss"]):
            self._losses.append(scalars["loss"])
        heldout = scalars.get("validation/loss", math.nan)
        if not math.isfinite(heldout) or not self._losses:
            return
        training, self._losses = statistics.mean(self._losses), []
        if self._best is None or heldout < self._best[0]:
            self._best, self._above = (heldout, training, number), 0
            return
        best, training_then, step = self._best
        rises = heldout > _RISE * best and training < training_then
        self._above = self._above + 1 if rises else 0
        if self._above == _RISING_AFTER:
            self._say(
                f"step {number:,}: the loss on held-out data has been above its best ({best:.4g} "
                f"at step {step:,}) for {_RISING_AFTER} validations, while the training loss "
                f"falls: it is {heldout:.4g} now. The model learns the training data by heart: "
                "stop earlier, use more data or data.flip, or a smaller model"
            )


def check_saved(checkpoints: Checkpoints, state: TrainState) -> None:
    """Checks that the last state of a run is on disk.

    Raises:
      TrainingError: it is not.
    """
    newest, step = checkpoints.newest_on_disk(), int(state.step)
    if newest != step:
        raise TrainingError(
            f"the last state, of step {step:,}, could not be saved; the newest "
            f"checkpoint is {'none' if newest is None else f'step {newest:,}'}"
        )
