"""Models from run folders, open folders, the Hugging Face hub, and presets."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dit_moe.config import Config, ConfigError
from dit_moe.config.files import load_json
from dit_moe.config.presets import preset
from dit_moe.devices import hosts
from dit_moe.models.dit import DiT
from dit_moe.models.fewer_bits import at_bits, check_bits
from dit_moe.models.frozen import split_learning
from dit_moe.models.low_rank import merge_on_devices, shapes_and_axes
from dit_moe.models.parameters import Parameters, abstract_parameters, functional, stack_of
from dit_moe.runs import additions
from dit_moe.runs import open_folder as published
from dit_moe.runs.checkpoints import Checkpoints, on_one_device
from dit_moe.runs.ema_snapshots import RECIPE_FILE
from dit_moe.runs.ema_start import start_share, start_warning
from dit_moe.runs.fingerprint import fingerprints
from dit_moe.runs.tensor_files import finite
from dit_moe.runs.weights import check_weights, has_average
from dit_moe.storage.hub import is_hub_name


class Run(NamedTuple):
    """What a run folder holds at one of its checkpoints."""

    config: Config
    step: int
    parameters: Parameters
    start_share: float | None = None
    """How much of the average still is the run's start, 0 to 1; None for parameters that are no
    average, or one that was not made as config.json says."""


def locate(workdir: str | Path, what: str = "workdir") -> Path:
    """The folder of a model: on this machine, or downloaded from the hub as "user/name".

    Raises:
      ConfigError: there is no such folder; the message calls it `what`.
    """
    path = Path(workdir)
    if path.is_dir():
        return path
    # In a folder that is here, a name that is not is a slip of the pen.
    if not path.exists() and not path.parent.is_dir() and is_hub_name(str(workdir)):
        return published.download(str(workdir))
    raise ConfigError(
        f"{what} is {str(workdir)!r}, which is not a folder; allowed: a run, an exported folder, "
        "or a Hugging Face name such as 'user/name'"
    )


def load_run(
    workdir: str | Path,
    ema: bool = True,
    like: Mapping[str, jax.ShapeDtypeStruct] | None = None,
    checkpoint: str = "newest",
    *,
    pairs: bool = False,
    bits: int | None = None,
) -> Run:
    """Reads config and parameters of a model; says so if much of the average still is its start.

    Args:
      workdir: see `locate`.
      ema: the moving average of the parameters rather than the parameters. A folder that
        `dit_moe.convert` exported, or made of a checkpoint's average, holds one of them alone.
      like: the parameters with their shardings, of one process or several, to which they are
        read; None: the first local device.
      checkpoint: of a run, see `Checkpoints.find`; a folder that is none has but one.
      pairs: whether a model of pairs (`model.pairs`), which denoises no single images, will do.
      bits: of a quantised model whose matrices are nested, how many they have at most, on the first
        local device; None: as many as are stored.

    Raises:
      ConfigError: if the folder is not a run, has no such checkpoint, or holds the other one alone;
        if the weights are damaged or not finite; if the model is of pairs, and may not be; or if it
        cannot be read at so many bits.
    """
    workdir = locate(workdir)
    check_weights(workdir, ema=ema)
    if (workdir / published.STORE).is_file():
        raise ConfigError(
            f"workdir is {str(workdir)!r}, a store of experts, of which sample.py and eval alone "
            "draw; allowed here: the run or folder that it was made of"
        )
    config = load_json(workdir / "config.json")
    if config.model.pairs is not None and not pairs:
        raise ConfigError(
            f"{workdir} holds a model of pairs (model.pairs); allowed: a model of single images, "
            "or python -m dit_moe.pairs"
        )
    if bits is not None:
        check_bits(config.model, bits)
    like = like or on_one_device(abstract_parameters(config.model))
    if additions.holds_additions(workdir) or published.is_published(workdir):
        check_exported(workdir, checkpoint)
    if additions.holds_additions(workdir):
        return Run(config, 0, _onto_base(workdir, config, like))
    if published.is_published(workdir):
        tensors = published.read_tensors(workdir, config.model)
        if bits is not None:
            model, parameters = at_bits(config.model, jax.device_put(tensors), bits)
            return Run(dataclasses.replace(config, model=model), 0, parameters)
        # One by one, so that little is in memory twice.
        return Run(config, 0, {path: _place(tensors.pop(path), p) for path, p in like.items()})
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.find(checkpoint)
        kept = _restore_kept(checkpoints, step, config, like, ema)
    parameters = merge_on_devices(kept, config.train.lora) if config.train.lora else kept
    check_finite(parameters, f"{workdir} at step {step:,}")
    if not (ema and _averaged_here(workdir, step)):
        return Run(config, step, parameters)
    if warning := start_warning(config.train, step):
        hosts.say(f"{workdir}: {warning}")
    return Run(config, step, parameters, start_share(config.train, step))


class OneByOne(NamedTuple):
    """A model whose parameters are read one after another."""

    config: Config
    step: int
    parts: Iterator[tuple[str, int | None, np.ndarray]]
    """Sorted by path: path, unit of its stack (None: it is in none), and the floats there."""


def load_each(workdir: Path, *, ema: bool, checkpoint: str = "newest") -> OneByOne:
    """Reads a model without holding all of it: of an open folder one unit's tensor at a time, of a
    run one array of its checkpoint, where all units lie in one piece. What has additions is made
    whole first, and held.

    Raises:
      ConfigError: as of `load_run`; for what lies in the parameters, while they are read.
    """
    config = load_json(workdir / "config.json")
    shapes = abstract_parameters(config.model)
    if additions.holds_additions(workdir) or config.train.lora is not None:
        run = load_run(workdir, ema, checkpoint=checkpoint)
        whole = ((path, np.asarray(run.parameters[path])) for path in sorted(shapes))
        return OneByOne(config, run.step, _by_unit(whole))
    check_weights(workdir, ema=ema)
    if published.is_published(workdir):
        check_exported(workdir, checkpoint)
        return OneByOne(config, 0, published.read_each(workdir, config.model))
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.find(checkpoint)

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        with Checkpoints(workdir) as checkpoints:
            for path, array in checkpoints.restore_each(step, shapes, ema):
                yield path, finite(path, f"{workdir} at step {step:,}", array)

    return OneByOne(config, step, _by_unit(arrays()))


def _by_unit(
    arrays: Iterator[tuple[str, np.ndarray]],
) -> Iterator[tuple[str, int | None, np.ndarray]]:
    for path, array in arrays:
        if stack_of(path) is None:
            yield path, None, array
        else:
            yield from ((path, unit, part) for unit, part in enumerate(array))


def check_exported(workdir: Path, checkpoint: str) -> None:
    """Checks that of a folder that has but one checkpoint no other is asked for.

    Raises:
      ConfigError: it is.
    """
    if checkpoint != "newest":
        raise ConfigError(
            f"checkpoint is {checkpoint!r}, but {str(workdir)!r} is an exported folder; allowed: "
            "newest"
        )


def load_kept(workdir: Path, config: Config, *, ema: bool) -> tuple[int, Parameters]:
    """The step of a run's newest checkpoint, and all that it keeps there: with additions
    (`train.lora`), these apart and the averages of what learns.

    Raises:
      ConfigError: as of `load_run`.
    """
    check_weights(workdir, ema=ema)
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.find("newest")
        like = on_one_device(abstract_parameters(config.model))
        return step, _restore_kept(checkpoints, step, config, like, ema)


def _restore_kept(
    checkpoints: Checkpoints,
    step: int,
    config: Config,
    like: Mapping[str, jax.ShapeDtypeStruct],
    ema: bool,
) -> Parameters:
    train = config.train
    if not train.averages_what_learns:
        return checkpoints.restore_parameters(step, like, ema)
    shapes, _ = shapes_and_axes(config.model, train.lora)
    everywhere = _everywhere(like)
    kept = {
        path: like.get(path, jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=everywhere))
        for path, p in shapes.items()
    }
    parameters = checkpoints.restore_parameters(step, kept, ema=False)
    if ema:
        learnt, _ = split_learning(kept, train)
        parameters |= checkpoints.restore_parameters(step, learnt, ema=True)
    return parameters


def _onto_base(
    folder: Path, config: Config, like: Mapping[str, jax.ShapeDtypeStruct]
) -> Parameters:
    """The network's parameters of a folder of additions, on the model that they are for."""
    tensors = additions.read_additions(folder, config)
    base = additions.read_base(folder)
    place = locate(base.base, f"base of {folder / 'lora.json'}")
    theirs = load_json(place / "config.json").model
    everywhere = _everywhere(like)
    # Of other classes, perhaps, and so of another shape.
    of_base = {
        path: jax.ShapeDtypeStruct(
            p.shape, p.dtype, sharding=like[path].sharding if path in like else everywhere
        )
        for path, p in abstract_parameters(theirs).items()
    }
    parameters = load_run(place, has_average(place), of_base).parameters
    additions.check_base(folder, base, base.base, fingerprints(parameters))
    for path, tensor in tensors.items():
        kept = jax.ShapeDtypeStruct(tensor.shape, tensor.dtype, sharding=everywhere)
        parameters[path] = _place(tensor, like.get(path, kept))
    return merge_on_devices(parameters, config.train.lora)


def _everywhere(like: Mapping[str, jax.ShapeDtypeStruct]) -> jax.sharding.Sharding:
    """Whole on each of the devices that `like` is spread over."""
    sharding = next(iter(like.values())).sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    assert isinstance(sharding, jax.sharding.Sharding)
    return sharding


def check_finite(parameters: Parameters, place: str) -> None:
    """Checks that a checkpoint's parameters are those of a network that can compute something.

    Args:
      parameters: by dotted path.
      place: where they were found, for the message.

    Raises:
      ConfigError: some are not finite.
    """
    wrong = [path for path, is_finite in _finite(parameters).items() if not is_finite]
    if wrong:
        raise ConfigError(
            f"{wrong[0]} and {len(wrong) - 1} more parameters of {place} hold numbers that are not "
            "finite; allowed: a checkpoint from before the training failed"
        )


@jax.jit
def _finite(parameters: Parameters) -> dict[str, jax.Array]:
    return {path: jnp.isfinite(p).all() for path, p in parameters.items()}


def _averaged_here(workdir: Path, step: int) -> bool:
    """Whether training made the average as config.json says: not by conversion, nor afterwards."""
    return step > 0 and not (workdir / RECIPE_FILE).exists()


def _place(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    """The array, of which every process has the whole, spread as `like` is."""
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: array[index])


def load(workdir: str | Path, *, ema: bool = True, bits: int | None = None) -> DiT:
    """A model, ready to be called.

    Args:
      workdir: a run folder, a folder that `dit_moe.convert` exported, or the name of one on the
        Hugging Face hub, such as "user/name"; what is on this machine goes before.
      ema: the moving average of the parameters rather than the parameters.
      bits: of a model whose packed matrices are nested, how many they have at most.

    Raises:
      ConfigError: if there is no such model, or it has no checkpoint yet.
    """
    run = load_run(workdir, ema, bits=bits)
    return functional(run.config.model)(run.parameters)


def create(name: str, *, seed: int = 0) -> DiT:
    """A published model by name, such as "ProMoE-S/2", with random parameters.

    Raises:
      ConfigError: for an unknown name.
    """
    return DiT(preset(name).model, nnx.Rngs(seed))
