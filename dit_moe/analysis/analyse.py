"""The analysis of a run: from its folder to numbers, counts and pictures."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dit_moe.analysis.counts import Counts
from dit_moe.analysis.decisions import most_experts
from dit_moe.analysis.experts import expert_similarity, prototype_classes
from dit_moe.analysis.findings import findings
from dit_moe.analysis.pictures import draw
from dit_moe.analysis.record import FILE, Analysis, Inputs, InputsName, Settings
from dit_moe.analysis.summary import summarize
from dit_moe.analysis.text import markdown
from dit_moe.analysis.visits import sampling_bins, sampling_visits, training_visits
from dit_moe.config import Config, ConfigError, DataConfig, MeshConfig, ModelConfig
from dit_moe.config.files import load_json
from dit_moe.data.classes import ModelClasses, evenly_spaced, model_classes, read_classes
from dit_moe.data.sources import Source, source_of_run
from dit_moe.devices.mesh import build_mesh, replicated
from dit_moe.models.parameters import Parameters, abstract_parameters
from dit_moe.runs.loading import load_run, locate
from dit_moe.sampling.request import build_request
from dit_moe.storage.records import write_record

MAX_CLASSES = 16
"""How many classes are shown, at even distance where a run has more, with enough images each."""
MAX_IMAGES = 100_000
"""Counts of all of them are held in memory."""


class Found(NamedTuple):
    """The numbers, the counts that they are made of, and the pictures."""

    analysis: Analysis
    counts: Mapping[InputsName, Counts]
    pictures: Mapping[str, bytes]
    """PNG by file name."""


def build_settings(
    config: Config,
    *,
    inputs: Literal["both", "training", "sampling"] = "both",
    num_images: int = 256,
    classes: Sequence[int] = (),
    time_bins: int = 10,
    steps: int = 20,
    guidance_scale: float | None = None,
    seed: int = 0,
    ema: bool = True,
    data: Sequence[str] = (),
    learnt: Sequence[int] = (),
) -> Settings:
    """Checks settings and fills what is not given from the config.

    Args:
      config: of the run, which must have experts.
      inputs: what to show the network.
      num_images: images with a class, in each of the inputs.
      classes: of these images, equally many each; empty: all, but at most `MAX_CLASSES`.
      time_bins: equal parts of the time range.
      steps: of the sampling trajectories.
      guidance_scale: of the trajectories; None: the config's, as is all else of their guidance.
      seed: of everything that is random.
      ema: the moving average of the parameters.
      data: folders of the training data, where they are no longer those of the config.
      learnt: the classes that the training data have, of which the default is; empty: all.

    Raises:
      ConfigError: naming the value that cannot be used.
    """
    if not config.model.mixtures:
        raise ConfigError(
            f"model.moe is none in {config.name!r}, a dense model without experts; allowed: a "
            "model with a mixture of experts"
        )
    learnt = learnt or range(config.model.num_classes)
    chosen = sorted(set(classes)) or evenly_spaced(learnt, MAX_CLASSES)
    if not len(chosen) <= num_images <= MAX_IMAGES:
        raise ConfigError(
            f"num_images is {num_images} with {len(chosen)} classes; allowed: {len(chosen)} to "
            f"{MAX_IMAGES}"
        )
    # Solvers, classes, scale and seed are checked as for samples.
    request = build_request(
        config,
        num_samples=num_images,
        classes=chosen,
        guidance={"scale": guidance_scale},
        integration={"steps": steps},
        seed=seed,
    )
    if not 2 <= time_bins <= 1000:
        raise ConfigError(f"time_bins is {time_bins}; allowed: 2 to 1000")
    return Settings(
        inputs=("training", "sampling") if inputs == "both" else (inputs,),
        num_images=num_images,
        classes=tuple(chosen),
        time_bins=time_bins,
        steps=steps,
        guidance=request.guidance,
        seed=seed,
        parameters="ema" if ema else "raw",
        data=tuple(data),
    )


def open_source(data: DataConfig, model: ModelConfig, settings: Settings) -> Source:
    """The training data of a run; of mixed resolutions, those at the model's own.

    Raises:
      ConfigError: there are none, or a class has no example.
    """
    try:
        source = source_of_run(data, model, settings.data)
    except (ConfigError, OSError) as error:
        raise ConfigError(
            f"{error} (dit_moe.analysis --data FOLDER says where the training data are, --inputs "
            "sampling does without)"
        ) from error
    absent = sorted(set(settings.classes) - set(source.label.tolist()))
    if absent:
        raise ConfigError(
            f"classes has {absent[0]}, of which the training data have no example; allowed: "
            "classes with examples"
        )
    return source


def class_names(settings: Settings, source: Source | None, known: ModelClasses) -> tuple[str, ...]:
    """The names of the classes shown, or without names their numbers in the data set.

    Args:
      settings: with the classes.
      source: the training data, if they are read.
      known: what the run tells of its classes.
    """
    names = source.classes if source is not None else known.names or known.numbers
    return tuple(str(names[c]) for c in settings.classes)


def count_training(
    config: Config,
    parameters: Parameters,
    source: Source,
    settings: Settings,
    batch_size: int,
    mesh: Mesh,
) -> Counts:
    """Counts of the decisions about noised training data.

    As many images are shown with the null label as in training, beside those with a class.
    """
    label_N = np.resize(np.asarray(settings.classes, np.int32), settings.num_images)
    dropout = config.model.label_dropout
    null_images = round(len(label_N) * min(dropout / max(1 - dropout, 1e-6), 1))
    rows, columns = (side // config.model.patch_size for side in source.shape[:2])
    grid = rows, columns
    counts = empty_counts(config.model, label_N, settings, np.arange(settings.time_bins), grid)
    arguments = source, label_N, null_images, settings, batch_size, mesh
    with jax.set_mesh(mesh):
        for visit in training_visits(config, parameters, *arguments):
            counts.add(*visit)
    return counts


def count_sampling(
    config: Config, parameters: Parameters, settings: Settings, batch_size: int, mesh: Mesh
) -> Counts:
    """Counts of the decisions along sampling trajectories."""
    label_N = np.resize(np.asarray(settings.classes, np.int32), settings.num_images)
    bin_V = sampling_bins(config.objective, settings)
    counts = empty_counts(config.model, label_N, settings, bin_V, config.model.grid)
    with jax.set_mesh(mesh):
        for visit in sampling_visits(config, parameters, label_N, settings, batch_size, mesh):
            counts.add(*visit)
    return counts


def empty_counts(
    model: ModelConfig,
    label_N: np.ndarray,
    settings: Settings,
    bin_V: np.ndarray,
    grid: tuple[int, int],
) -> Counts:
    """Counts of nothing yet.

    Args:
      model: the network.
      label_N: class of every image that will be counted.
      settings: of the analysis.
      bin_V: the part of the time range of each of an image's times.
      grid: rows and columns of its tokens.
    """
    layers, bins = len(model.mixtures), settings.time_bins
    shape = (layers, bins, *grid, most_experts(model), model.width)
    return Counts(label_N, settings.classes, bin_V, shape)


class Opened(NamedTuple):
    """A run made ready to be looked at."""

    config: Config
    parameters: Parameters
    """On all devices of the mesh."""
    step: int
    settings: Settings
    source: Source | None
    """The training data, if they are shown."""
    known: ModelClasses
    """What the run tells of its classes."""
    mesh: Mesh


def open_run(
    workdir: str | Path, batch_size: int, *, classes: Sequence[int | str] = (), **asked: object
) -> Opened:
    """Reads a run, checks what is asked, and opens the data that it takes.

    Args:
      workdir: a run folder, an exported folder or a name on the Hugging Face hub.
      batch_size: images per pass.
      classes: of the images, by label or by name.
      asked: more for `build_settings`.

    Raises:
      ConfigError: the run or a setting cannot be used; the message is one sentence.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; allowed: 1 or more")
    folder, mesh = locate(workdir), build_mesh(MeshConfig())
    config = load_json(folder / "config.json")
    known = read_classes(folder)
    learnt = known.learnt() if known else ()
    of_model = model_classes(config.data, config.model, folder)
    asked["classes"] = of_model.labels([str(name) for name in classes])
    settings = build_settings(config, learnt=learnt, **asked)  # pyright: ignore[reportArgumentType]
    # Before the parameters are read, which may take long.
    source = None
    if "training" in settings.inputs:
        source = open_source(config.data, config.model, settings)
    like = {
        path: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=replicated(mesh))
        for path, p in abstract_parameters(config.model).items()
    }
    run = load_run(folder, settings.parameters == "ema", like)
    return Opened(config, run.parameters, run.step, settings, source, of_model, mesh)


def analyse(
    workdir: str | Path, batch_size: int, *, classes: Sequence[int | str] = (), **asked: object
) -> Found:
    """Analyses a run.

    Args:
      workdir: a run folder, an exported folder or a name on the Hugging Face hub.
      batch_size: images per pass, rounded up to divide evenly over the devices.
      classes: of the images, by label or by name.
      asked: more for `build_settings`.

    Raises:
      ConfigError: the run or a setting cannot be used; the message is one sentence.
    """
    run = open_run(workdir, batch_size, classes=classes, **asked)
    config, settings, source, mesh = run.config, run.settings, run.source, run.mesh
    counts: dict[InputsName, Counts] = {}
    if source is not None:
        arguments = source, settings, batch_size, mesh
        counts["training"] = count_training(config, run.parameters, *arguments)
    if "sampling" in settings.inputs:
        counts["sampling"] = count_sampling(config, run.parameters, settings, batch_size, mesh)
    inputs: dict[InputsName, Inputs] = {
        name: summarize(c, config.model, settings.seed) for name, c in counts.items()
    }
    means = next(iter(counts.values())).mean_tokens()
    analysis = Analysis(
        name=config.name,
        workdir=str(workdir),
        step=run.step,
        settings=settings,
        class_names=class_names(settings, source, run.known),
        inputs=inputs,
        expert_similarity=expert_similarity(config.model, run.parameters),
        prototypes=prototype_classes(config.model, run.parameters, means),
        findings=tuple(
            f for name, i in inputs.items() for f in findings(name, i, len(settings.classes))
        ),
        pictures={},
    )
    pictures = draw(analysis, counts, max(moe.num_experts for moe in config.model.mixtures))
    captions = {file: caption for file, (caption, _) in pictures.items()}
    png = {file: png for file, (_, png) in pictures.items()}
    return Found(dataclasses.replace(analysis, pictures=captions), counts, png)


def write(found: Found, folder: Path) -> None:
    """Writes analysis.json, analysis.md, counts.npz and the pictures into a folder."""
    arrays = {}
    for name, c in found.counts.items():
        arrays |= {
            f"{name}_position_time_LxBxSxE": c.position_time_LxBxSxE,
            f"{name}_label_LxYxE": c.by_class(),
            f"{name}_null_LxBxE": c.null_LxBxE,
            f"{name}_coactivation_LxExE": c.coactivation_LxExE,
        }
    np.savez_compressed(folder / "counts.npz", **arrays)
    for file, png in found.pictures.items():
        (folder / file).write_bytes(png)
    (folder / "analysis.md").write_text(markdown(found.analysis))
    write_record(folder / FILE, found.analysis)
