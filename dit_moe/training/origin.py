"""The model that a run starts from in place of random parameters (fine-tuning)."""

from collections.abc import Mapping
from pathlib import Path

import jax
from etils import epath
from pydantic.dataclasses import dataclass

from dit_moe.autoencoder.latent_space import LatentSpace, read_latent_space, same_latents
from dit_moe.config import Config, ConfigError, ModelConfig
from dit_moe.config.files import differences, load_json
from dit_moe.config.rules import RULES
from dit_moe.devices import hosts
from dit_moe.models.parameters import Parameters
from dit_moe.runs.loading import load_run, locate
from dit_moe.runs.weights import has_average
from dit_moe.storage.records import read_record, write_record

_FILE = "origin.json"
# Fields of the model that change neither its parameters nor what they compute; a router's own are
# told by its settings (`RouterSettings.free`).
_FREE = ("model.image_size", "model.label_dropout", "model.dtype", "model.remat")


@dataclass(frozen=True, config=RULES)
class Origin:
    """Kept in the run folder as origin.json."""

    init_from: str
    """The folder, from the root, or the name on the Hugging Face hub."""
    step: int
    """Where its checkpoint was saved; 0 for a folder that was exported."""


def check_origin(init_from: str, config: Config, space: LatentSpace | None) -> None:
    """Checks that a run can start from a model, before anything of either is read or written.

    Args:
      init_from: a run folder, an exported folder or a Hugging Face name.
      config: of the run.
      space: the latents that it learns from.

    Raises:
      ConfigError: there is no such model, it is another network, or of other latents.
    """
    folder = locate(init_from, "init_from")
    other = load_json(folder / "config.json")
    fields = [
        field
        for field in differences(other, config)
        if field.startswith("model.") and field not in _free(config.model)
    ]
    if fields:
        raise ConfigError(
            f"init_from is {init_from!r}, whose network differs from config.model in "
            f"{', '.join(fields)}; allowed: a model of the same network"
        )
    if not same_latents(read_latent_space(folder), space):
        raise ConfigError(
            f"init_from is {init_from!r}, which was trained on other latents than those of "
            "config.data; allowed: data prepared with the same autoencoder and scaled alike"
        )
    if other.objective != config.objective:
        hosts.say(f"The objective was {other.objective} in {init_from}; it is {config.objective}.")


def _free(model: ModelConfig) -> set[str]:
    mixtures = {"model.moe": model.moe}
    mixtures |= {f"model.segments.{i}.moe": s.moe for i, s in enumerate(model.segments)}
    of_routers = {
        f"{where}.router.{field}"
        for where, moe in mixtures.items()
        if moe is not None
        for field in moe.router.free
    }
    return {*_FREE, *of_routers}


def prepare_origin(init_from: str | None, workdir: epath.Path, *, resuming: bool) -> None:
    """When resuming, checks that `init_from`, if given, is what the run once started from.

    Raises:
      ConfigError: it is not.
    """
    path = workdir / _FILE
    if not resuming:
        path.unlink(missing_ok=True)  # of a start that came to no checkpoint
    elif init_from is not None:
        known = read_record(path, Origin).init_from if path.exists() else None
        if known not in (init_from, _identity(init_from)):
            raise ConfigError(
                f"init_from is {init_from!r}, but workdir {str(workdir)!r} holds a run that "
                f"started from {'random parameters' if known is None else repr(known)}; allowed: "
                "the same, none, or another --workdir"
            )


def start_parameters(
    init_from: str, workdir: epath.Path, like: Mapping[str, jax.ShapeDtypeStruct]
) -> Parameters:
    """Reads a model's parameters, averaged where it has an average, and keeps in the run folder
    whose they are.

    Args:
      init_from: as for `check_origin`, which was called.
      workdir: of the run that starts.
      like: of the run's parameters; they are read to where these are.

    Raises:
      ConfigError: it has no checkpoint, or the newest is damaged.
    """
    ema = has_average(locate(init_from, "init_from"))
    run = load_run(init_from, ema, like)
    averaged = "averaged " if ema else ""
    origin = Origin(_identity(init_from), run.step)
    hosts.on_lead(lambda: write_record(workdir / _FILE, origin))
    hosts.say(f"Starts from the {averaged}parameters of {init_from} at step {run.step:,}.")
    return run.parameters


def _identity(init_from: str) -> str:
    path = Path(init_from)
    return str(path.resolve()) if path.is_dir() else init_from
