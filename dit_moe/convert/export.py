"""Runs become open folders (see published.py) or the peers' state_dicts."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dit_moe.config import (
    BatchPoolRouterConfig,
    Config,
    ConfigError,
    MoEConfig,
    PrototypeSettings,
    RectifiedFlowConfig,
)
from dit_moe.config_io import to_json
from dit_moe.convert import Family
from dit_moe.convert.peers import to_peer
from dit_moe.convert.published import write_tensors
from dit_moe.convert.sit import exchange_clocks
from dit_moe.data.latents import read_latent_space, write_latent_space
from dit_moe.files import atomic, new_folder
from dit_moe.hub import reason
from dit_moe.loading import Run, load_run, locate

Format = Literal["safetensors"] | Family
_ROUTERS: dict[Family, str] = {
    "dit-moe": "top_k",
    "promoe": "prototype",
    "promoe-ec": "prototype_expert_choice",
    "tc-dit": "top_k",
    "ec-dit": "expert_choice",
    "diffmoe": "batch_pool",
}
_IN_PROMOES_CODE = ("promoe", "promoe-ec", "tc-dit", "ec-dit", "diffmoe")
_PROMOE_NULL = 1000
_DIFFMOE_DECAY = 0.95


def export_run(workdir: str | Path, output: Path, form: Format, *, ema: bool = True) -> Config:
    """Writes a run's model in another form, and returns its config.

    Args:
      workdir: a run folder, an open folder, or a name on the Hugging Face hub.
      output: for `safetensors` a new folder; else a new `.safetensors` file, or `.pt` or `.pth`
        where PyTorch is installed. The constructor's arguments are written beside it, as `.json`.
      form: `safetensors`, or the family whose names the tensors shall have.
      ema: the moving average of the parameters rather than the parameters.

    Raises:
      ConfigError: the run cannot be read, or the family has no such network.
      OSError: the output cannot be written.
    """
    folder = locate(workdir)
    if form == "safetensors":
        run = load_run(folder, ema)
        with new_folder(output) as target:
            write_tensors(target, {path: np.asarray(p) for path, p in run.parameters.items()})
            with atomic(target / "config.json") as temporary:
                temporary.write_text(to_json(run.config))
            write_latent_space(target, read_latent_space(folder), resuming=False)
            with atomic(target / "README.md") as temporary:
                temporary.write_text(model_card(run, folder, ema=ema, name=output.name))
        return run.config
    _check_file(output)
    run = load_run(folder, ema)
    arguments = constructor_arguments(form, run.config)
    tensors = to_peer(run.config.model, {path: np.asarray(p) for path, p in run.parameters.items()})
    if form == "sit":
        tensors = exchange_clocks(tensors)
    _write_state_dict(output, tensors)
    with atomic(output.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(arguments, indent=2) + "\n")
    return run.config


def constructor_arguments(family: Family, config: Config) -> dict[str, Any]:
    """What the peer's constructor needs to make this network, ready for JSON.

    Raises:
      ConfigError: the family has no such network.
    """
    model, moe = config.model, config.model.moe
    problems = []
    arguments: dict[str, Any] = {
        "input_size": model.image_size,
        "patch_size": model.patch_size,
        "in_channels": model.channels,
        "hidden_size": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": model.mlp_ratio,
        "class_dropout_prob": model.label_dropout,
        "num_classes": model.num_classes,
        "learn_sigma": model.learn_sigma,
    }

    def require(condition: bool, field: str, value: object, allowed: str) -> None:
        if not condition:
            problems.append(f"{field} is {value!r} (allowed: {allowed})")

    if family not in _IN_PROMOES_CODE:
        require(not model.qk_norm, "model.qk_norm", model.qk_norm, "false")
    if family in ("dit", "sit"):
        require(moe is None, "model.moe", "a mixture", "none")
    if family == "sit":
        require(
            isinstance(config.objective, RectifiedFlowConfig) and config.objective.time_scale == 1,
            "objective",
            config.objective,
            "rectified_flow with time_scale 1",
        )
    if family in _ROUTERS:
        require(moe is not None, "model.moe", None, "a mixture")
    if moe is not None and family in _ROUTERS:
        shared, ratio = moe.shared_hidden_ratio, moe.hidden_ratio
        kind = "swiglu" if family == "dit-moe" else "gelu"
        every = {"dit-moe": (1,), "tc-dit": (2,)}.get(family, (1, 2))
        name = moe.router.name
        require(name == _ROUTERS[family], "model.moe.router.name", name, _ROUTERS[family])
        require(moe.expert == kind, "model.moe.expert", moe.expert, kind)
        require(moe.every in every, "model.moe.every", moe.every, " or ".join(map(str, every)))
        if family == "dit-moe":
            require(shared == 2, "model.moe.shared_hidden_ratio", shared, "2")
            require(ratio.is_integer(), "model.moe.hidden_ratio", ratio, "a whole number")
            arguments["mlp_ratio"] = int(ratio)
            arguments["num_experts"] = moe.num_experts
            arguments["num_experts_per_tok"] = moe.top_k
        elif family in ("promoe", "promoe-ec"):
            require(
                not moe.unconditional_expert or model.null_label == _PROMOE_NULL,
                "model.num_classes",
                model.num_classes,
                f"{_PROMOE_NULL}, the null label that its code knows",
            )
            arguments["MoE_config"] = _promoe_arguments(moe, model.width)
        else:
            require(shared == 0, "model.moe.shared_hidden_ratio", shared, "0")
            require(
                moe.every == 1 or ratio == model.mlp_ratio,
                "model.moe.hidden_ratio",
                ratio,
                f"{model.mlp_ratio:g}, the mlp_ratio of the dense blocks",
            )
            arguments["mlp_ratio"] = ratio
            arguments["MoE_config"] = {
                "num_experts": moe.num_experts,
                "capacity": moe.top_k,
                "n_shared_experts": 0,
                "interleave": moe.every == 2,
                "init_MoeMLP": False,
            }
        if isinstance(moe.router, BatchPoolRouterConfig):
            decay = moe.router.threshold_decay
            field = "model.moe.router.threshold_decay"
            require(decay == _DIFFMOE_DECAY, field, decay, f"{_DIFFMOE_DECAY}, as in its code")
            arguments["CapacityPred_loss_weight"] = moe.router.capacity_coef
    if family in _IN_PROMOES_CODE:
        arguments["qk_norm"] = model.qk_norm
    if problems:
        raise ConfigError(f"format {family!r} has no such network: {'; '.join(problems)}")
    if family in ("dit", "dit-moe"):
        arguments["objective"] = config.objective.name
    return arguments


def _promoe_arguments(moe: MoEConfig, width: int) -> dict[str, Any]:
    if not isinstance(moe.router, PrototypeSettings):
        return {}
    return {
        "num_routed_experts": moe.num_experts,
        "moe_intermediate_size": int(moe.hidden_ratio * width),
        "shared_expert_intermediate_size": int(moe.shared_hidden_ratio * width),
        "top_k": moe.top_k,
        "load_balance_loss_coef": 0,
        "norm_topk_prob": False,
        "seq_aux": False,
        "use_shared_expert": moe.shared_hidden_ratio > 0,
        "use_uncond_expert": moe.unconditional_expert,
        "router_weight_mode": moe.router.activation,
        "routing_contrastive_lam": moe.router.contrastive_coef,
        "use_top_k_for_routing_contrastive": True,
        "routing_contrastive_temperature": moe.router.contrastive_temperature,
        "interleave": moe.every == 2,
        "init_MoeMLP": False,
    }


def _check_file(output: Path) -> None:
    if output.suffix not in (".safetensors", ".pt", ".pth"):
        raise ConfigError(f"output is {str(output)!r}; allowed: .safetensors, .pt or .pth")
    if output.exists():
        raise ConfigError(f"output is {str(output)!r}, which is there already; allowed: a new file")
    if output.suffix != ".safetensors":
        try:
            import torch  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError(
                f"output is {str(output)!r}, which needs PyTorch to be written: pip install torch "
                "--index-url https://download.pytorch.org/whl/cpu; allowed without: .safetensors"
            ) from None


def _write_state_dict(output: Path, tensors: Mapping[str, np.ndarray]) -> None:
    whole = {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}
    with atomic(output) as temporary:
        if output.suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file(whole, temporary, metadata={"format": "pt"})
        else:
            import torch  # pyright: ignore[reportMissingImports]

            # A copy where NumPy does not let PyTorch write.
            whole = {key: np.require(x, requirements="W") for key, x in whole.items()}
            torch.save({key: torch.from_numpy(x) for key, x in whole.items()}, temporary)


def model_card(run: Run, workdir: Path, *, ema: bool, name: str) -> str:
    """README.md of an open folder: what the model is, what was measured, how to use it."""
    config, model, moe = run.config, run.config.model, run.config.model.moe
    count = sum(p.size for p in run.parameters.values())
    size = f"{model.depth} blocks of width {model.width}, {model.heads} heads, "
    size += f"patches of {model.patch_size}x{model.patch_size}"
    rows = [
        ("parameters", f"{count:,}"),
        ("size", size),
        ("input", f"{model.image_size}x{model.image_size}x{model.channels}"),
        ("classes", f"{model.num_classes:,}, and label {model.null_label} for none"),
        ("objective", config.objective.name),
    ]
    if moe is not None:
        experts = f"{moe.num_experts} of {moe.expert}, {moe.top_k} for a token"
        experts += "" if moe.router.name in ("top_k", "prototype") else " on average"
        rows.insert(2, ("experts", f"{experts}, router {moe.router.name}"))
    space = read_latent_space(workdir)
    if space is not None:
        rows.append(("latents of", f"`{space.autoencoder.source}`"))
    weights = "the moving average" if ema else "the parameters themselves"
    rows.append(("weights", f"{weights} at step {run.step:,}"))
    table = "\n".join(f"| {title} | {text} |" for title, text in rows)
    return f"""---
library_name: dit_moe
pipeline_tag: unconditional-image-generation
tags: [diffusion, diffusion-transformer{", mixture-of-experts" if moe else ""}]
---

# {config.name}

| | |
|---|---|
{table}

`config.json` is the whole configuration.
{_measured(workdir)}
## Use

```
python sample.py --workdir {name} --output out/
```

```python
import dit_moe

model = dit_moe.load("{name}")
prediction = model(x, t, y)  # x [N,H,W,C], t in the network's own unit, y [N] labels
```
"""


def _measured(workdir: Path) -> str:
    """Results of the evaluation that lie in the run folder, and the last of the training loss."""
    rows = []
    for path in sorted(workdir.glob("*.json")):
        try:
            metrics = json.loads(path.read_text())["metrics"]
            found = {f"{m} {k}": v for m, values in metrics.items() for k, v in values.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        numbers = {k: v for k, v in found.items() if isinstance(v, int | float)}
        rows += [(f"{path.stem}: {name}", f"{value:.4g}") for name, value in numbers.items()]
    if (workdir / "metrics.csv").is_file():
        with (workdir / "metrics.csv").open(newline="") as file:
            last = list(csv.DictReader(file))[-1:]
        rows += [("training loss", row["loss"]) for row in last if row.get("loss")]
    if not rows:
        return ""
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"\n## Measured\n\n| | |\n|---|---|\n{table}\n"


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
        raise ConfigError(
            f"{name!r} cannot be uploaded ({reason(error)}); {folder} is written: "
            f"log in with `hf auth login`, then: hf upload {name} {folder}"
        ) from error
    return f"https://huggingface.co/{name}"
