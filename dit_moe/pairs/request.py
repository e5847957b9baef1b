"""What is to be drawn of pairs, as a user says it, checked."""

import dataclasses
from pathlib import Path

from dit_moe.config import require

TASKS = ("image", "condition", "both", "coarse")
SIDES = ("first", "second")
PLAIN = ("task", "derive", "strength", "inpaint", "joint_scale", "condition_scale")
"""Fields of a request that are no files."""
MAX_SCALE = 100.0


@dataclasses.dataclass(frozen=True)
class PairsRequest:
    """What is to be drawn of pairs, as a user says it."""

    task: str
    """One of `TASKS`: the first image of a given second one, the second of a given first, both from
    noise, or both with a second that starts from a given one under noise."""
    given: Path | None = None
    """Pictures as of `known_pictures.read_pictures`, in turn; none for `both`."""
    derive: bool = False
    """`given` holds first images, of which the second ones are derived as in training."""
    strength: float | None = None
    """For `coarse`, how much noise the second starts under, in (0, 1); None: 0.7."""
    inpaint: str | None = None
    """One of `SIDES`: that image is `known` where `mask` says so."""
    known: Path | None = None
    mask: Path | None = None
    joint_scale: float = 1.0
    """The factor of what the images find in each other."""
    condition_scale: float = 0.0
    """Guidance by the other image, see `denoise.guided_rows`."""

    def __post_init__(self) -> None:
        require(self.task in TASKS, f"task is {self.task!r}; allowed: {', '.join(TASKS)}")
        require(
            (self.given is None) == (self.task == "both"),
            f"given is {_shown(self.given)} with task {self.task!r}; allowed: pictures with every "
            "task but 'both', which has none",
        )
        require(
            not self.derive or self.task in ("image", "coarse"),
            f"derive is given with task {self.task!r}; allowed: with 'image' and 'coarse'",
        )
        require(
            self.strength is None or (self.task == "coarse" and 0 < self.strength < 1),
            f"strength is {self.strength} with task {self.task!r}; allowed: between 0 and 1, with "
            "'coarse' alone",
        )
        together = {"inpaint": self.inpaint, "known": self.known, "mask": self.mask}
        missing = [name for name, value in together.items() if value is None]
        require(
            len(missing) in (0, 3),
            f"{', '.join(missing)} is missing beside the other of inpaint, known and mask; "
            "allowed: all three, or none",
        )
        require(
            self.inpaint is None or self.inpaint in self.drawn,
            f"inpaint is {self.inpaint!r} with task {self.task!r}; allowed: "
            f"{' or '.join(self.drawn)}, which is drawn",
        )
        for name in ("joint_scale", "condition_scale"):
            value = getattr(self, name)
            require(0 <= value <= MAX_SCALE, f"{name} is {value}; allowed: 0 to {MAX_SCALE:g}")

    @property
    def drawn(self) -> tuple[str, ...]:
        """Which of `SIDES` is drawn."""
        return {"image": SIDES[:1], "condition": SIDES[1:]}.get(self.task, SIDES)

    @property
    def levels(self) -> tuple[float, float]:
        """Of both images, see `Stream.level`."""
        coarse = 0.7 if self.strength is None else self.strength
        second = {"image": 0.0, "coarse": coarse}.get(self.task, 1.0)
        return 0.0 if self.task == "condition" else 1.0, second


def _shown(path: Path | None) -> str:
    return "none" if path is None else repr(str(path))
