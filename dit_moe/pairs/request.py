"""What is to be drawn of pairs, as a user says it, checked."""

import dataclasses
from pathlib import Path

from dit_moe.config import require

TASKS = ("image", "condition", "both", "coarse")
PLAIN = ("task", "derive", "strength", "inpaint", "joint_scale", "weights", "condition_scale")
"""Fields of a request that are no files."""
MAX_SCALE = 100.0


@dataclasses.dataclass(frozen=True)
class PairsRequest:
    """What is to be drawn of pairs, as a user says it."""

    task: str
    """One of `TASKS`: the first image of a given second one, the second of a given first, both from
    noise, or both with a second that starts from a given one under noise."""
    given: tuple[Path, ...] = ()
    """Pictures as of `known_pictures.read_pictures`, in turn; none for `both`. Of second images,
    one for each run."""
    derive: bool = False
    """`given` holds first images, of which the second ones are derived as in training."""
    others: tuple[Path, ...] = ()
    """Runs that are combined with the one that draws; each has a second image of its own."""
    weights: tuple[float, ...] = ()
    """For each run, the factor of what the first image finds in its second one; none: 1."""
    strength: float | None = None
    """For `coarse`, how much noise the second starts under, in (0, 1); None: 0.7."""
    inpaint: str | None = None
    """One of `sides`: that image is `known` where `mask` says so."""
    known: Path | None = None
    mask: Path | None = None
    joint_scale: float = 1.0
    """The factor of what the images find in each other."""
    condition_scale: float = 0.0
    """Guidance by the other image, see `denoise.guided_rows`."""

    def __post_init__(self) -> None:
        require(self.task in TASKS, f"task is {self.task!r}; allowed: {', '.join(TASKS)}")
        shown = repr(",".join(map(str, self.given))) if self.given else "none"
        require(
            (not self.given) == (self.task == "both"),
            f"given is {shown} with task {self.task!r}; allowed: pictures with every task but "
            "'both', which has none",
        )
        require(
            not self.derive or self.task in ("image", "coarse"),
            f"derive is given with task {self.task!r}; allowed: with 'image' and 'coarse'",
        )
        seconds = len(self.sides) - 1
        files = seconds if self.task in ("image", "coarse") and not self.derive else 1
        require(
            not self.given or len(self.given) == files,
            f"given is {shown} with task {self.task!r} and {len(self.others)} others; allowed: "
            f"{files}, with a comma between them",
        )
        require(
            len(self.weights) in (0, seconds)
            and all(0 <= weight <= MAX_SCALE for weight in self.weights),
            f"weights is {self.weights} with {len(self.others)} others; allowed: {seconds} numbers "
            f"of 0 to {MAX_SCALE:g}, one for each run",
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
        """Which of `sides` is drawn."""
        return {"image": self.sides[:1], "condition": self.sides[1:]}.get(self.task, self.sides)

    @property
    def sides(self) -> tuple[str, ...]:
        """What the images of a pair are called."""
        return "first", "second", *(f"second_{i}" for i in range(2, 2 + len(self.others)))

    @property
    def levels(self) -> tuple[float, ...]:
        """Of all images, see `Stream.level`."""
        coarse = 0.7 if self.strength is None else self.strength
        second = {"image": 0.0, "coarse": coarse}.get(self.task, 1.0)
        seconds = (second,) * (1 + len(self.others))
        return 0.0 if self.task == "condition" else 1.0, *seconds
