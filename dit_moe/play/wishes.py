"""What a page's fields ask for."""

import dataclasses

from dit_moe.config import ConfigError
from dit_moe.play.drawer import Drawer
from dit_moe.sampling.request import Request, build_request

MOST_PICTURES = 64


@dataclasses.dataclass(frozen=True)
class Wishes:
    """The fields, as they are filled in; an empty one is None."""

    classes: tuple[str, ...]
    """In turn, as `Drawer.labels` calls them; none: all that there are."""
    number: int | None
    seed: int | None
    solver: str
    steps: int | None
    guide: str
    scale: float | None
    low: float | None
    high: float | None

    def request(self, drawer: Drawer, offered: tuple[str, ...]) -> Request:
        """The same as a request to a run.

        Args:
          drawer: of the run.
          offered: the classes that the page offers.

        Raises:
          ConfigError: naming the value that cannot be used.
        """
        for name in ("number", "seed", "steps", "scale", "low", "high"):
            if getattr(self, name) is None:
                raise ConfigError(f"{_FIELDS[name]} is empty; allowed: a number")
        assert self.number is not None
        assert self.seed is not None
        if not 1 <= self.number <= MOST_PICTURES:
            raise ConfigError(
                f"number of pictures is {self.number}; allowed: 1 to {MOST_PICTURES} on the page "
                "(python sample.py draws more)"
            )
        return build_request(
            drawer.config,
            num_samples=self.number,
            classes=[drawer.labels[title] for title in self.classes or offered],
            integration={"solver": self.solver, "steps": self.steps},
            guidance={
                "guide": self.guide,
                "scale": self.scale,
                "interval": (self.low, self.high),
            },
            seed=self.seed,
        )


_FIELDS = {
    "number": "number of pictures",
    "seed": "seed",
    "steps": "steps",
    "scale": "guidance",
    "low": "guidance from",
    "high": "guidance to",
}
