"""The network of a checkpoint that is to be taken: its moving average or its parameters.

A checkpoint may hold the network alone, or under names such as "ema", "model", "module" and
"state_dict", nested or as prefixes. What names "ema" is the moving average. Two packages keep the
average in another form: Lightning's LitEma under names without dots, torch-ema and diffusers as a
list in the order of the parameters (`shadow_params`).
"""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from dit_moe.config import ConfigError
from dit_moe.runs.checkpoint_files import PICKLES, read_file
from dit_moe.runs.tensor_files import StoredTensor

Tensors = Mapping[str, StoredTensor]

# What torch.compile and PyTorch's FSDP insert anywhere in a name.
_INSERTED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# Every network of the families has it; what stands before it is how the set was wrapped.
_LANDMARK = "x_embedder.proj.weight"
_WITHOUT_DOTS = _LANDMARK.replace(".", "")
_LIST = re.compile(r"(.*\b)?shadow_params\.(?=\d+$)")
# Not trained, so that an average may leave it out.
_FIXED = "pos_embed"


class Network(NamedTuple):
    """One network of a checkpoint."""

    tensors: dict[str, StoredTensor]
    """By name, without what wraps the names."""
    name: str
    """What the checkpoint calls it; empty for a network alone."""
    kind: Literal["ema", "raw"] | None
    """The moving average or the parameters; None where the checkpoint does not tell."""


def read_checkpoint(
    path: Path, which: Literal["ema", "raw"] | None = None, name: str | None = None
) -> Network:
    """One network of a checkpoint.

    Args:
      path: see `checkpoint_files.read_file`.
      which: the moving average or the parameters; None takes the average where there is one.
      name: what the checkpoint calls the network, in place of `which`.

    Raises:
      ConfigError: the file cannot be read, or holds no such network, or several.
    """
    tensors = _unwrap(read_file(path))
    networks = _plain(tensors)
    if name in networks:  # before averages in forms of their own are made out
        return Network(networks[name], name, "ema" if _is_average(name) else "raw")
    alone = list(networks) == [""]
    if which != "raw":
        averages = {**_without_dots(path, tensors, networks), **_lists(path, tensors, networks)}
        networks |= averages
        alone = alone and not averages
    if not networks:
        shown = ", ".join(list(tensors)[:3]) or "nothing"
        raise ConfigError(
            f"{path} holds no diffusion transformer of these families: no {_LANDMARK} among its "
            f"{len(tensors):,} tensors ({shown}, ...)"
        )
    if name is not None:
        return _named(path, networks, name)
    averages = [name for name in networks if _is_average(name)]
    others = [name for name in networks if name not in averages]
    wanted = averages if which == "ema" else others if which == "raw" else averages or others
    if alone:
        wanted = [""]  # a network alone does not tell which it is
    if len(wanted) != 1:
        names = ", ".join(map(repr, networks))
        found = "more than one network" if wanted else f"no {which} parameters"
        raise ConfigError(
            f"{path} holds {found}: its networks are {names}; allowed: one of them by --network"
        )
    (name,) = wanted
    if which is None and not averages:
        _refuse_unknown_average(path, tensors, name)
    kind = which if alone else "ema" if name in averages else "raw" if averages or which else None
    return Network(networks[name], name, kind)


def _named(path: Path, networks: Mapping[str, dict[str, StoredTensor]], name: str) -> Network:
    if name not in networks:
        raise ConfigError(
            f"network is {name!r}, which {path} does not hold; allowed: "
            f"{', '.join(map(repr, networks))}"
        )
    return Network(networks[name], name, "ema")  # the plain ones were looked at before


def _unwrap(tensors: Tensors) -> dict[str, StoredTensor]:
    unwrapped = {}
    for name, tensor in tensors.items():
        for inserted in _INSERTED:
            name = name.replace(inserted, "")
        unwrapped[name] = tensor
    return unwrapped


def _is_average(name: str) -> bool:
    return "ema" in name.lower() or "shadow_params" in name


def _heads(tensors: Tensors, ending: str) -> list[str]:
    return [name.removesuffix(ending) for name in tensors if name.endswith(ending)]


def _plain(tensors: Tensors) -> dict[str, dict[str, StoredTensor]]:
    """The networks that have their own names after a prefix, by that."""
    prefixes = _heads(tensors, _LANDMARK)
    # A network may lie within another's names, as "net.ema." in "net.", and so may a list.
    folders = {head[: head.rfind(".") + 1] for head in _heads(tensors, _WITHOUT_DOTS)}
    lists = {found[0] for name in tensors if (found := _LIST.match(name))}
    within = {*prefixes, *folders, *lists, *(name.removesuffix("shadow_params.") for name in lists)}
    networks = {}
    for prefix in prefixes:
        elsewhere = tuple(p for p in within if p and p != prefix and p.startswith(prefix))
        networks[prefix.rstrip(".")] = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix) and not name.startswith(elsewhere)
        }
    return networks


def _without_dots(
    path: Path, tensors: Tensors, networks: Mapping[str, Tensors]
) -> dict[str, dict[str, StoredTensor]]:
    """The averages whose names have lost their dots, with the names of the networks beside."""
    known = dict.fromkeys(name for network in networks.values() for name in network)
    averages = {}
    for head in _heads(tensors, _WITHOUT_DOTS):
        stored = {name: tensors.get(head + name.replace(".", "")) for name in known}
        if not known:
            raise ConfigError(
                f"{path} holds an average under names without dots ({head}{_WITHOUT_DOTS}, ...) "
                "and no network beside that tells the whole names; allowed: a checkpoint with both"
            )
        averages[head.rstrip(".")] = {name: x for name, x in stored.items() if x is not None}
    return averages


def _lists(
    path: Path, tensors: Tensors, networks: Mapping[str, Tensors]
) -> dict[str, dict[str, StoredTensor]]:
    """The averages that are lists, with the names of the network beside in its order."""
    averages = {}
    for head in dict.fromkeys(found[0] for name in tensors if (found := _LIST.match(name))):
        places = itertools.takewhile(
            tensors.__contains__, (f"{head}{i}" for i in itertools.count())
        )
        values = [tensors[place] for place in places]
        for network in networks.values():
            for names in (list(network), [name for name in network if name != _FIXED]):
                # Safetensors files keep no order.
                if path.suffix in PICKLES and _same_shapes(network, names, values):
                    averages[head.rstrip(".")] = dict(zip(names, values, strict=True))
        if head.rstrip(".") not in averages:
            raise ConfigError(
                f"{path} holds an average as a list ({head}0 to {len(values) - 1}), which does not "
                "follow the names of a network beside it; allowed: an average with names, or the "
                "parameters (--parameters raw)"
            )
    return averages


def _same_shapes(network: Tensors, names: list[str], values: list[StoredTensor]) -> bool:
    return [network[name].shape for name in names] == [value.shape for value in values]


def _refuse_unknown_average(path: Path, tensors: Tensors, chosen: str) -> None:
    inside = f"{chosen}." if chosen else ""
    for name, tensor in tensors.items():
        if _is_average(name) and len(tensor.shape) > 1 and not name.startswith(inside):
            raise ConfigError(
                f"{path} seems to hold a moving average in a form that is not known ({name}); "
                "allowed: an average with names, or the parameters (--parameters raw)"
            )
