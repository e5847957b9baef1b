"""Where images come from."""

from typing import Literal

from pydantic.dataclasses import dataclass

from dit_moe.config.rules import RULES, Listed, NonNegativeInt, PositiveFloat, require

SOURCES: dict[str, bool] = {"digits": False, "patches": False, "prepared": True}
"""The sources by name, and whether `path` names their folders. A file of the user's own may add to
them, by `data.sources.register_source`."""

PairKind = Literal["edges", "grey", "blur", "low_resolution", "folder"]


@dataclass(frozen=True, config=RULES)
class DataConfig:
    """Where images or latents come from."""

    source: str = "digits"
    """`digits`: scikit-learn's handwritten digits, 8x8. `patches`: colour patches of
    scikit-image's photographs, 32x32. `prepared`: folders that `dit_moe.data.prepare` made. Or one
    of the user's own."""
    path: Listed[str] = ()
    """Folders of `prepared`. With several (mixed resolutions), each step's batch is from one."""
    validation_path: Listed[str] = ()
    """Folders of held-out data; empty: what the folders of `path` hold out themselves, if any."""
    mix_weights: Listed[PositiveFloat] = ()
    """How often each folder of `path` has its turn; empty: equally often."""
    classes: Listed[NonNegativeInt] = ()
    """Only these classes of the data set; the model's class i is classes[i]. Empty: all."""
    flip: bool = False
    """Take the mirror image (for latents: the latent of the mirror image) with probability 1/2."""
    pair: PairKind | None = None
    """Images come in pairs (docs/pairs.md): each with its edges, its luma, its blurred or its
    coarse self; `folder`: with the image of its number in a folder of `pair_path`. None: alone."""
    pair_path: Listed[str] = ()
    """For pair `folder`: for each folder of `path` that of the second images, prepared alike of
    files with the same names."""
    latent_scaling: Literal["autoencoder", "per_channel"] = "autoencoder"
    """`autoencoder`: times the constant of its authors (0.18215). `per_channel`: to mean 0 and
    standard deviation 1 in every channel, by the data set's statistics (as EDM2)."""

    def __post_init__(self) -> None:
        require(
            self.source in SOURCES,
            f"source is {self.source!r}; allowed: {', '.join(map(repr, SOURCES))}, or what "
            "--extend adds",
        )
        with_folders = ", ".join(repr(name) for name, folders in SOURCES.items() if folders)
        require(
            SOURCES[self.source] == bool(self.path),
            f"path is {', '.join(self.path)!r} with source {self.source!r}; allowed: "
            f"folders with source {with_folders}, empty otherwise",
        )
        require(
            SOURCES[self.source] or not self.validation_path,
            f"validation_path is {', '.join(self.validation_path)!r} with source "
            f"{self.source!r}; allowed: folders with source {with_folders}, empty otherwise",
        )
        require(
            len(self.mix_weights) in (0, len(self.path)),
            f"mix_weights has {len(self.mix_weights)} numbers; allowed: none, or one for each of "
            f"the {len(self.path)} folders of path",
        )
        beside = self.pair == "folder"
        require(
            len(self.pair_path) == (len(self.path) if beside else 0)
            and (bool(self.path) or not beside),
            f"pair_path is {', '.join(self.pair_path)!r} with pair {self.pair!r} and path "
            f"{', '.join(self.path)!r}; allowed: with pair 'folder' a folder for each of path, "
            "empty otherwise",
        )
        require(
            not beside or not self.validation_path,
            f"validation_path is {', '.join(self.validation_path)!r} with pair 'folder'; allowed: "
            "empty, for what the folders of path and pair_path hold out themselves",
        )
        require(
            len(set(self.classes)) == len(self.classes),
            f"classes is {', '.join(map(str, self.classes))}; allowed: every class once",
        )
