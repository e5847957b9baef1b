"""The model that a run starts from in place of random parameters (fine-tuning)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from pydantic.dataclasses import dataclass

from dit_moe.autoencoder.latent_space import read_latent_space, same_latents
from dit_moe.config import Config, ConfigError, ModelConfig
from dit_moe.config.files import differences, load_json
from dit_moe.config.rules import RULES
from dit_moe.config.sizes import size_text
from dit_moe.data.classes import count_classes, model_classes, named_classes, read_classes
from dit_moe.data.sources import Source
from dit_moe.devices import hosts
from dit_moe.models.parameters import Parameters, abstract_parameters
from dit_moe.models.unpacking import check_whole
from dit_moe.runs.fingerprint import fingerprints
from dit_moe.runs.loading import load_run, locate
from dit_moe.runs.weights import has_average
from dit_moe.storage.files import FilePath
from dit_moe.storage.records import read_record, write_record
from dit_moe.training.label_rows import LABEL_TABLE, LabelRows, find_rows, sentence
from dit_moe.training.taken_layers import check_layers, take_layers

_FILE = "origin.json"
# Fields of the model that change neither its parameters, but for the label table, nor what they
# compute; a router's own are told by its settings (`RouterSettings.free`).
_FREE = (
    "model.image_size",
    "model.num_classes",
    "model.label_dropout",
    "model.dtype",
    "model.remat",
    "model.forward_rounds",
    "model.backward_rounds",
    "model.exchange_within",
)


@dataclass(frozen=True, config=RULES)
class Origin:
    """Kept in the run folder as origin.json."""

    init_from: str
    """The folder, from the root, or the name on the Hugging Face hub."""
    step: int
    """Where its checkpoint was saved; 0 for a folder that was exported."""
    init_classes: dict[str, str] = dataclasses.field(default_factory=dict)
    """For classes of the run, which of the model's each started from, as the user said."""
    init_layers: tuple[int, ...] = ()
    """For each block of the run, which of the model's it started from; empty: the same."""
    fingerprints: dict[str, int] = dataclasses.field(default_factory=dict)
    """Of each of the model's parameters by path (runs/fingerprint.py), where additions are learnt
    to them."""


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """What a run is asked to start from."""

    model: str
    """A run folder, an exported folder or a Hugging Face name."""
    classes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """See `label_rows.find_rows`."""
    layers: tuple[int, ...] = ()
    """See `taken_layers.check_layers`; empty where the model has the run's blocks."""


@dataclasses.dataclass(frozen=True)
class Start:
    """What a new run starts from: a model that is there and fits."""

    asked: InitFrom
    config: Config
    """Of the model."""
    model: ModelConfig
    """Of the run."""
    rows: LabelRows


def find_start(asked: InitFrom, config: Config, sources: Sequence[Source]) -> Start:
    """Checks that a run can start from a model, before anything of either is read or written.

    Args:
      asked: the model.
      config: of the run.
      sources: the data that it learns from.

    Raises:
      ConfigError: there is no such model, it is another network, or of other latents; or there is
        no such class.
    """
    init_from, folder = asked.model, locate(asked.model, "init_from")
    other = load_json(folder / "config.json")
    check_whole(other.model, f"init_from is {init_from!r}, which")
    fields = [
        field
        for field in differences(other, config)
        if field.startswith("model.") and field not in _free(config.model)
        if not (asked.layers and field.startswith(("model.depth", "model.segments")))
        if asked.layers or other.model.pairs is not None or not field.startswith("model.pairs")
    ]
    if fields:
        raise ConfigError(
            f"init_from is {init_from!r}, whose network differs from config.model in "
            f"{', '.join(fields)}; allowed: a model of the same network"
        )
    if asked.layers:
        check_layers(asked.layers, other.model, config.model)
    if not same_latents(read_latent_space(folder), sources[0].latent_space):
        raise ConfigError(
            f"init_from is {init_from!r}, which was trained on other latents than those of "
            "config.data; allowed: data prepared with the same autoencoder and scaled alike"
        )
    if other.objective != config.objective:
        hosts.say(f"The objective was {other.objective} in {init_from}; it is {config.objective}.")
    if other.model.image_size != config.model.image_size:
        hosts.say(
            f"The image size was {size_text(other.model.image_size)} in {init_from}; it is "
            f"{size_text(config.model.image_size)}. Positions are computed: no parameter depends "
            "on it."
        )
    known = read_classes(folder)
    old = model_classes(other.data, other.model, folder)
    new = named_classes(config.data, config.model, count_classes(sources).names)
    rows = find_rows(old, () if known is None else known.learnt(), new, asked.classes)
    if told := sentence(rows, old, new):
        hosts.say(told)
    return Start(asked, other, config.model, rows)


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


def prepare_origin(asked: InitFrom | None, workdir: epath.Path, *, resuming: bool) -> None:
    """When resuming, checks that what is asked for is what the run once started from.

    Raises:
      ConfigError: it is not.
    """
    path = workdir / _FILE
    if not resuming:
        path.unlink(missing_ok=True)  # of a start that came to no checkpoint
        return
    if asked is None:
        return
    known = read_origin(workdir)
    if known is None or known.init_from not in (asked.model, _identity(asked.model)):
        began = "random parameters" if known is None else repr(known.init_from)
        raise ConfigError(
            f"init_from is {asked.model!r}, but workdir {str(workdir)!r} holds a run that "
            f"started from {began}; allowed: the same, none, or another --workdir"
        )
    if asked.classes and asked.classes != known.init_classes:
        raise ConfigError(
            f"init_classes is {_pairs(asked.classes)}, but workdir {str(workdir)!r} holds a run "
            f"that started with {_pairs(known.init_classes)}; allowed: the same, none, or another "
            "--workdir"
        )
    if asked.layers and asked.layers != known.init_layers:
        began = ", ".join(map(str, known.init_layers)) or "all"
        raise ConfigError(
            f"init_layers is {', '.join(map(str, asked.layers))}, but workdir {str(workdir)!r} "
            f"holds a run that started with {began}; allowed: the same, none, or another --workdir"
        )


def read_origin(workdir: FilePath) -> Origin | None:
    """What a run started from; None where it is not noted: from random parameters, for one.

    Raises:
      ConfigError: the file cannot be read.
    """
    path = workdir / _FILE
    return read_record(path, Origin) if path.exists() else None


def start_parameters(
    start: Start,
    workdir: epath.Path,
    like: Mapping[str, jax.ShapeDtypeStruct],
    *,
    fingerprinted: bool = False,
) -> Parameters:
    """Reads a model's parameters, averaged where it has an average, and keeps in the run folder
    whose they are.

    Args:
      start: the model.
      workdir: of the run that starts.
      like: of the run's parameters of the network; they are read to where these are.
      fingerprinted: keeps their fingerprints, too.

    Raises:
      ConfigError: it has no checkpoint, or the newest is damaged.
    """
    init_from, layers = start.asked.model, start.asked.layers
    ema = has_average(locate(init_from, "init_from"))
    table = like[LABEL_TABLE]
    old_shape = (start.config.model.num_classes + 1, *table.shape[1:])
    old = jax.ShapeDtypeStruct(old_shape, table.dtype, sharding=table.sharding)
    wanted = {**like, LABEL_TABLE: old}
    like = _of_model(start.config.model, wanted)
    run = load_run(init_from, ema, like, pairs=start.model.pairs is not None)
    take = jax.jit(start.rows.take, out_shardings=table.sharding)
    parameters = {**run.parameters, LABEL_TABLE: take(run.parameters[LABEL_TABLE])}
    if layers:
        blocks = functools.partial(
            take_layers, layers=layers, old=start.config.model, new=start.model
        )
        shardings = {path: p.sharding for path, p in like.items()}
        parameters = jax.jit(blocks, out_shardings=shardings)(parameters)
    averaged = "averaged " if ema else ""
    found = fingerprints(run.parameters) if fingerprinted else {}
    classes = dict(start.asked.classes)
    origin = Origin(_identity(init_from), run.step, classes, layers, found)
    hosts.on_lead(lambda: write_record(workdir / _FILE, origin))
    hosts.say(f"Starts from the {averaged}parameters of {init_from} at step {run.step:,}.")
    return parameters


def _of_model(
    model: ModelConfig, like: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters of a model where those of the run are, which may have other blocks."""
    anywhere = next(iter(like.values())).sharding
    assert isinstance(anywhere, NamedSharding)
    whole = NamedSharding(anywhere.mesh, PartitionSpec())
    return {
        path: jax.ShapeDtypeStruct(
            p.shape, p.dtype, sharding=like[path].sharding if path in like else whole
        )
        for path, p in abstract_parameters(model).items()
    }


def _pairs(init_classes: Mapping[str, str]) -> str:
    return ", ".join(f"{new}={old}" for new, old in init_classes.items()) or "none"


def _identity(init_from: str) -> str:
    path = Path(init_from)
    return str(path.resolve()) if path.is_dir() else init_from
