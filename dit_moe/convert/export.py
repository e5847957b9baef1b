"""Runs become open folders (see published.py) or the peers' state_dicts."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.config.files import load_json
from dit_moe.convert import Family
from dit_moe.convert.clocks import exchange_clocks
from dit_moe.convert.constructors import constructor_arguments
from dit_moe.convert.diffusers_format import STEM, diffusers_config, to_diffusers
from dit_moe.convert.formats import PEERS
from dit_moe.convert.peers import to_peer
from dit_moe.models.unpacking import unpacked, whole_model
from dit_moe.runs.additions import Base, write_additions
from dit_moe.runs.fingerprint import fingerprints
from dit_moe.runs.loading import Run, load_kept, load_run, locate
from dit_moe.runs.model_card import measured
from dit_moe.runs.model_folder import write_beside, write_model
from dit_moe.runs.open_folder import write_shards
from dit_moe.runs.tensor_files import finite, write_safetensors
from dit_moe.runs.weights import has_average
from dit_moe.storage.files import atomic, new_folder
from dit_moe.storage.hub import reason
from dit_moe.training.origin import read_origin

Format = Literal["safetensors", "lora", "diffusers"] | Family


def export_run(workdir: str | Path, output: Path, form: Format, *, ema: bool | None = None) -> bool:
    """Writes a run's model in another form, and returns whether it is the moving average.

    Args:
      workdir: a run folder, an open folder, or a name on the Hugging Face hub.
      output: for `safetensors` and `diffusers` a new folder; else a new `.safetensors` file, or
        `.pt` or `.pth` where PyTorch is installed. The constructor's arguments are written beside
        it, as `.json`.
      form: `safetensors`, `lora` (the additions alone that a run with `train.lora` learnt, for the
        model that it started from), `diffusers`, or the family whose names the tensors shall have.
      ema: the moving average of the parameters rather than the parameters; None: where there is
        one.

    Raises:
      ConfigError: the run cannot be read, or the family has no such network.
      OSError: the output cannot be written.
    """
    folder = locate(workdir)
    if form not in ("safetensors", "lora", "diffusers"):
        _check_file(output)
    ema = has_average(folder) if ema is None else ema
    if form == "lora":
        _write_additions(folder, output, ema=ema)
        return ema
    run = load_run(folder, ema)
    if form == "safetensors":
        _write_open_folder(run, folder, output, ema=ema)
    elif form == "diffusers":
        _write_diffusers(run, output)
    else:
        _write_for_peer(run, form, output)
    return ema


def _write_open_folder(run: Run, workdir: Path, output: Path, *, ema: bool) -> None:
    with new_folder(output) as target:
        write_model(
            target,
            workdir,
            run.config,
            {path: np.asarray(p) for path, p in run.parameters.items()},
            step=run.step,
            ema=ema,
            name=output.name,
            more=measured(workdir),
        )


def _write_additions(workdir: Path, output: Path, *, ema: bool) -> None:
    config, origin = load_json(workdir / "config.json"), read_origin(workdir)
    if config.train.lora is None or origin is None:
        raise ConfigError(
            f"format is 'lora', but {workdir} is no run that learnt additions to a model "
            "(config.train.lora); allowed: safetensors, which holds all parameters"
        )
    _, kept = load_kept(workdir, config, ema=ema)
    found = fingerprints(kept)
    lacking = [path for path in kept if found[path] != origin.fingerprints.get(path)]
    tensors = {path: finite(path, workdir, np.asarray(kept[path])) for path in lacking}
    with new_folder(output) as target:
        write_additions(target, tensors, Base(origin.init_from, origin.fingerprints), ema=ema)
        write_beside(target, workdir, config)


def _write_diffusers(run: Run, output: Path) -> None:
    model = whole_model(run.config.model)
    # Refuses what DiT's code does not have.
    constructor_arguments("dit", model, run.config.objective)
    config = diffusers_config(model)
    tensors = to_diffusers(model.depth, _peer_tensors(run))
    with new_folder(output) as target:
        write_shards(target, STEM, tensors, form="pt")
        with atomic(target / "config.json") as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n")


def _write_for_peer(run: Run, family: Family, output: Path) -> None:
    model = whole_model(run.config.model)
    arguments = constructor_arguments(family, model, run.config.objective)
    tensors = _peer_tensors(run)
    if PEERS[family].other_clock:
        tensors = exchange_clocks(tensors)
    _write_state_dict(output, PEERS[family].own_names(tensors, model))
    with atomic(output.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(arguments, indent=2) + "\n")


def _peer_tensors(run: Run) -> dict[str, np.ndarray]:
    """Those of the peers' code, which has no packed matrices."""
    model, parameters = unpacked(run.config.model, run.parameters)
    return to_peer(model, {path: np.asarray(p) for path, p in parameters.items()})


def _check_file(output: Path) -> None:
    if output.suffix not in (".safetensors", ".pt", ".pth"):
        raise ConfigError(f"output is {str(output)!r}; allowed: .safetensors, .pt or .pth")
    for path in (output, output.with_suffix(".json")):
        if path.exists():
            raise ConfigError(
                f"output is {str(output)!r}, but {path} is there already; allowed: a new file"
            )
    if output.suffix != ".safetensors":
        try:
            import torch  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError(
                f"output is {str(output)!r}, which needs PyTorch to be written: pip install torch "
                "--index-url https://download.pytorch.org/whl/cpu; allowed without: .safetensors"
            ) from None


def _write_state_dict(output: Path, tensors: Mapping[str, np.ndarray]) -> None:
    with atomic(output) as temporary:
        if output.suffix == ".safetensors":
            write_safetensors(temporary, tensors, form="pt")
        else:
            import torch  # pyright: ignore[reportMissingImports]

            # A copy where NumPy does not let PyTorch write.
            whole = {key: np.require(x, requirements=["C", "W"]) for key, x in tensors.items()}
            try:
                torch.save({key: torch.from_numpy(x) for key, x in whole.items()}, temporary)
            except RuntimeError as error:
                raise OSError(f"{temporary} cannot be written: {error}") from None


def upload(folder: Path, name: str) -> str:
    """Uploads an open folder to the Hugging Face hub, and returns its address.

    Raises:
      ConfigError: the hub refuses or cannot be reached.
    """
    import huggingface_hub

    try:
        hub = huggingface_hub.HfApi()
        hub.create_repo(name, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # the client's errors have no common class, but one remedy
        command = shlex.join(["hf", "upload", name, str(folder)])
        raise ConfigError(
            f"{name!r} cannot be uploaded ({reason(error)}); {folder} is written: "
            f"log in with `hf auth login`, then: {command}"
        ) from error
    return f"https://huggingface.co/{name}"
