"""What the page's buttons do, for one run or for two that are asked the same."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dit_moe.config import ConfigError
from dit_moe.play import brush
from dit_moe.play.drawer import Drawer, Drawn, Known
from dit_moe.play.starts import Starts, own_starts, walk
from dit_moe.play.wishes import Wishes
from dit_moe.sampling.request import Request

Tell = Callable[[int, int], None]
"""Is told how many pictures are done, of how many."""

Plan = Callable[[Drawer, Request], tuple[Starts, Known | None]]
"""What a button makes of a request: where pictures begin, and what is known of them."""


class Answer(NamedTuple):
    """What one run gives."""

    drawn: Drawn
    captions: tuple[str, ...]
    """Of each picture."""


class Player:
    """The runs, and the classes that all of them have.

    Args:
      drawers: of the runs.

    Raises:
      ConfigError: they have no class in common.
    """

    def __init__(self, drawers: Sequence[Drawer]):
        self.drawers = tuple(drawers)
        first, *others = self.drawers
        self.classes = tuple(t for t in first.labels if all(t in other.labels for other in others))
        """In the order of the first run."""
        if not self.classes:
            raise ConfigError(
                f"compare is {others[0].name!r}, which has no class of {first.name!r}; allowed: a "
                "run that shares some"
            )

    def draw(self, wishes: Wishes, tell: Tell) -> list[Answer]:
        """The pictures that `sample.py` draws."""
        return self._answer(wishes, _plainly, tell)

    def walk(
        self, wishes: Wishes, end: str, seed: int | None, mixed: bool, tell: Tell
    ) -> list[Answer]:
        """From the first class and the seed to others; the class is mixed, or switched."""
        if seed is None:
            raise ConfigError("seed at the end is empty; allowed: a number")

        def plan(drawer: Drawer, request: Request) -> tuple[Starts, None]:
            table = drawer.label_table if mixed else None
            shape, label = drawer.config.model.image_shape, drawer.labels[end]
            return walk(request, shape, seed, label, table), None

        return self._answer(wishes, plan, tell)

    def paint(self, wishes: Wishes, edited: Mapping[str, Any] | None, tell: Tell) -> list[Answer]:
        """What is brushed over, drawn anew; `edited` is as for `brush.known`."""

        def plan(drawer: Drawer, request: Request) -> tuple[Starts, Known]:
            shape = drawer.config.model.image_shape
            return own_starts(request, shape), brush.known(edited, shape)

        return self._answer(wishes, plan, tell)

    def _answer(self, wishes: Wishes, plan: Plan, tell: Tell) -> list[Answer]:
        """All is checked before anything is drawn.

        Raises:
          ConfigError: naming the value that cannot be used.
        """
        requests = [wishes.request(drawer, self.classes) for drawer in self.drawers]
        plans = [plan(*asked) for asked in zip(self.drawers, requests, strict=True)]
        answers = []
        for drawer, request, (starts, known) in zip(self.drawers, requests, plans, strict=True):
            before, total = len(answers) * request.num_samples, len(plans) * request.num_samples
            said = lambda done, before=before, total=total: tell(before + done, total)  # noqa: E731
            drawn = drawer.draw(request, starts, known, said)
            answers.append(Answer(drawn, _captions(drawer, starts)))
        return answers


def _plainly(drawer: Drawer, request: Request) -> tuple[Starts, None]:
    return own_starts(request, drawer.config.model.image_shape), None


def _captions(drawer: Drawer, starts: Starts) -> tuple[str, ...]:
    """The classes; on a walk that mixes them, how far it is."""
    if starts.row is not None:
        last = len(starts.row) - 1
        return tuple(f"{place / last:.0%} of the way" for place in range(last + 1))
    titles = {label: title for title, label in drawer.labels.items()}
    return tuple(titles[label] for label in starts.label.tolist())
