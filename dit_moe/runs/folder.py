"""What a run writes of itself into its folder as it starts."""

import json
from collections.abc import Sequence

from clu import parameter_overview
from etils import epath

from dit_moe.autoencoder.latent_space import write_latent_space
from dit_moe.config import Config, ConfigError
from dit_moe.config.files import RunConfig, read_config, to_json
from dit_moe.data.classes import count_classes, write_classes
from dit_moe.data.sources import Source
from dit_moe.devices import hosts
from dit_moe.runs.history import OVERRIDABLE, changes_between, told, write_change
from dit_moe.runs.state import TrainState
from dit_moe.storage.files import atomic
from dit_moe.storage.records import read_json

# Fields (and what begins so) that do not change what is learned.
_FREE_ON_RESUME = (
    "name",
    "mesh.",
    "sample.",
    "data.path",
    "data.pair_path",
    "data.validation_path",
    "model.remat",
    "model.forward_rounds",
    "model.backward_rounds",
    "model.exchange_within",
    "train.averages_on_host",
    "train.moments_on_host",
    "train.distill.teacher",
    "train.evaluate.",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.max_skipped",
    "train.sample_every",
    "train.validate_every",
    "train.validation_batches",
)


def write_run(
    config: Config,
    sources: Sequence[Source],
    workdir: epath.Path,
    *,
    resuming: bool,
    override: Sequence[str] = (),
    step: int = 0,
) -> None:
    """Writes what tells later commands which run this is; when resuming, only if it is the same.

    Args and errors as of `write_config`, or ConfigError: its data or latents are others.
    """
    write_config(config, workdir, resuming=resuming, override=override, step=step)
    write_latent_space(workdir, sources[0].latent_space, resuming=resuming)
    write_data_digests([source.digest for source in sources], workdir, resuming=resuming)
    write_classes(workdir, count_classes(sources))


def put_back_run(config: Config, sources: Sequence[Source], workdir: epath.Path) -> None:
    """Writes it once more, if part of it was removed while the run went on."""
    files = ["config.json", "data.json", "classes.json"]
    if sources[0].latent_space is not None:
        files.append("latents.json")
    gone = [file for file in files if not (workdir / file).exists()]
    if gone:
        write_run(config, sources, workdir, resuming=False)
        hosts.say(f"{', '.join(gone)} had gone from {workdir} meanwhile, and was written again.")


def write_config(
    config: RunConfig,
    workdir: epath.Path,
    *,
    resuming: bool,
    override: Sequence[str] = (),
    step: int = 0,
) -> None:
    """Writes config.json; when resuming, only if it describes the same run as before.

    What is learned differently from now on goes into the run's history.

    Args:
      config: of the run.
      workdir: the run folder.
      resuming: it has checkpoints.
      override: which of `history.OVERRIDABLE` may differ, with or without "train." before them.
      step: of the newest checkpoint.

    Raises:
      ConfigError: naming the fields that differ, or it is lost.
    """
    path = workdir / "config.json"
    if resuming:
        if not path.exists():
            raise ConfigError(
                f"workdir {str(workdir)!r} has checkpoints but no config.json any longer, so that "
                "nothing shows how they were trained; allowed: that file put back (the same "
                "command with a new --workdir writes one), or another --workdir"
            )
        before = read_config(path, type(config))
        changes = {
            field: values
            for field, values in changes_between(before, config).items()
            if not field.startswith(_FREE_ON_RESUME)
        }
        allowed = {f"train.{name.removeprefix('train.')}" for name in override}
        constant = before.train.schedule == config.train.schedule == "constant"
        if constant and config.train.distill is None:
            allowed.add("train.steps")  # more steps continue the same trajectory
        refused = {field: values for field, values in changes.items() if field not in allowed}
        if refused:
            raise ConfigError(
                f"workdir {str(workdir)!r} holds a run with another config; it differs in "
                f"{told(refused)}: use the same config or another --workdir, or name in "
                f"--override_resume what is to change; allowed there: {', '.join(OVERRIDABLE)}"
            )
        if changes:
            # Before config.json, or a kill in between would lose it.
            write_change(workdir, step, changes)
            hosts.say(f"From step {step:,} on, other settings: {told(changes)}.")
    with atomic(path) as temporary:
        temporary.write_text(to_json(config))


def write_data_digests(digests: Sequence[str], workdir: epath.Path, *, resuming: bool) -> None:
    """Writes what data the run learns from to data.json; when resuming, only if it is the same.

    Raises:
      ConfigError: the data set is another, or data.json is damaged.
    """
    path = workdir / "data.json"
    try:
        known = read_json(path) if resuming and path.exists() else list(digests)
    except ConfigError as error:
        raise ConfigError(f"{error}; remove it if the data are those of before") from None
    if known != list(digests):
        raise ConfigError(
            f"workdir {str(workdir)!r} was trained on other records (see {path}); allowed: the "
            "same data set, wherever it lies, or another --workdir"
        )
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(list(digests)) + "\n")


def write_parameter_overview(state: TrainState, workdir: epath.Path) -> None:
    """Lists the state's parameters, real or abstract, in parameters.txt."""
    overview = parameter_overview.get_parameter_overview(
        state.parameters,  # pyright: ignore[reportArgumentType]
        include_stats=False,
    )
    with atomic(workdir / "parameters.txt") as temporary:
        temporary.write_text(overview + "\n")
