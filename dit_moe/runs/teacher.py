"""The trained model that a run learns from (`train.distill`)."""

import dataclasses

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from pydantic.dataclasses import dataclass

from dit_moe.autoencoder.latent_space import LatentSpace, read_latent_space, same_latents
from dit_moe.config import Config, ConfigError, ModelConfig, TrainConfig
from dit_moe.config.files import load_json
from dit_moe.config.objective import other_meaning
from dit_moe.config.rules import RULES
from dit_moe.data.classes import ModelClasses, model_classes
from dit_moe.devices.mesh import parameter_shardings
from dit_moe.models.parameters import Parameters, abstract_parameters, logical_axes
from dit_moe.runs.fingerprint import fingerprints
from dit_moe.runs.loading import load_run, locate
from dit_moe.runs.weights import has_average
from dit_moe.storage.files import FilePath
from dit_moe.storage.records import read_record, write_record

_FILE, _FIELD = "teacher.json", "config.train.distill.teacher"
# Matrices that a network casts before it uses them, and that are most of its parameters.
_CAST = (
    ".attention.qkv.kernel",
    ".attention.out.kernel",
    ".modulation.kernel",
    ".experts.w_in",
    ".experts.w_out",
)


@dataclass(frozen=True, config=RULES)
class Teacher:
    """Kept in the run folder as teacher.json."""

    teacher: str
    """As the config named it when the run began."""
    step: int
    """Where its checkpoint was saved; 0 for a folder that was exported."""
    fingerprints: dict[str, int] = dataclasses.field(default_factory=dict)
    """Of each of its parameters by path (runs/fingerprint.py)."""


def taught_steps(train: TrainConfig) -> int:
    """How many steps of a run have a teacher, from the first on."""
    if train.distill is None or train.distill.coefficient == 0:
        return 0
    return round(train.distill.stop_at * train.steps)


def teacher_model(config: Config) -> ModelConfig | None:
    """The network of a run's teacher, in the type that the run computes in; None: it has none.

    Raises:
      ConfigError: there is no such model, or it predicts other than the run does.
    """
    if config.train.distill is None or not taught_steps(config.train):
        return None
    folder = locate(config.train.distill.teacher, _FIELD)
    theirs = load_json(folder / "config.json")
    pairs = [
        (f"model.{field}", getattr(theirs.model, field), getattr(config.model, field))
        for field in ("image_size", "channels", "num_classes")
    ]
    if (name := other_meaning(theirs.objective, config.objective)) is not None:
        of_teacher, own = (o.meaning.get(name) for o in (theirs.objective, config.objective))
        pairs.append((f"objective.{name}", of_teacher, own))
    for field, of_teacher, own in pairs:
        if of_teacher != own:
            raise ConfigError(
                f"{_FIELD} is {str(folder)!r}, whose {field} is {of_teacher}; allowed: a model "
                f"with that of the run, {own}"
            )
    return dataclasses.replace(theirs.model, dtype=config.model.dtype)


def check_teacher(config: Config, space: LatentSpace | None, classes: ModelClasses) -> None:
    """Checks that the teacher knows the data of a run.

    Args:
      config: of the run, with a teacher.
      space: of its latents; None for pictures.
      classes: of its labels.

    Raises:
      ConfigError: it was trained on other latents, or other classes.
    """
    assert config.train.distill is not None
    folder = locate(config.train.distill.teacher, _FIELD)
    if not same_latents(read_latent_space(folder), space):
        raise ConfigError(
            f"{_FIELD} is {str(folder)!r}, which was trained on other latents than those of "
            "config.data; allowed: a model of the same autoencoder's, scaled alike"
        )
    known = load_json(folder / "config.json")
    theirs = model_classes(known.data, known.model, folder).names
    if theirs and classes.names and theirs != classes.names:
        raise ConfigError(
            f"{_FIELD} is {str(folder)!r}, whose classes are {', '.join(theirs[:5])}, ...; "
            f"allowed: a model with those of the run, {', '.join(classes.names[:5])}, ..., in order"
        )


def load_teacher(config: Config, model: ModelConfig, mesh: Mesh) -> tuple[Teacher, Parameters]:
    """Reads a teacher's parameters, averaged where it has an average.

    Args:
      config: of the run.
      model: of the teacher, from `teacher_model`.
      mesh: of the run.

    Returns:
      Whose they are, and the parameters, spread over the mesh as the run's own are, and in the
      types of `held_as`.

    Raises:
      ConfigError: they cannot be read.
    """
    assert config.train.distill is not None
    name = config.train.distill.teacher
    shapes = abstract_parameters(model)
    shardings = parameter_shardings(mesh, shapes, logical_axes(model))
    like = {
        path: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=shardings[path])
        for path, p in shapes.items()
    }
    folder = locate(name, _FIELD)
    run = load_run(folder, has_average(folder), like)
    teacher = Teacher(name, run.step, fingerprints(run.parameters))
    cast = {path: p.astype(held_as(path, model.dtype)) for path, p in run.parameters.items()}
    return teacher, cast


def held_as(path: str, dtype: str) -> jnp.dtype:
    """The type in which a parameter is held that need not learn: this one, where the network casts
    it before any use, else float32.

    Args:
      path: of the parameter.
      dtype: that of the computation, by which nothing is lost, or a narrower one.
    """
    return jnp.dtype(dtype if path.endswith(_CAST) else "float32")


def read_teacher(workdir: FilePath) -> Teacher | None:
    """Whose teaching a run has; None: nobody's.

    Raises:
      ConfigError: the file cannot be read.
    """
    path = workdir / _FILE
    return read_record(path, Teacher) if path.exists() else None


def check_same_teacher(workdir: epath.Path, teacher: Teacher) -> None:
    """Checks that a run which resumes has the teacher that it had, wherever that lies now.

    Raises:
      ConfigError: it is another.
    """
    known = read_teacher(workdir)
    if known is None or known.fingerprints != teacher.fingerprints:
        had = "none" if known is None else f"{known.teacher!r} at step {known.step:,}"
        raise ConfigError(
            f"{_FIELD} is {teacher.teacher!r} at step {teacher.step:,}, but workdir "
            f"{str(workdir)!r} holds a run whose teacher was {had}, with other parameters; "
            "allowed: that teacher as it was, or another --workdir"
        )


def write_teacher(workdir: epath.Path, teacher: Teacher | None) -> None:
    """Keeps in the folder of a new run whose teaching it has."""
    if teacher is None:
        (workdir / _FILE).unlink(missing_ok=True)  # of a start that came to no checkpoint
        return
    write_record(workdir / _FILE, teacher)
