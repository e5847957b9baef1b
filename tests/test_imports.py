"""The house: imports flow one way between rooms, and in no circle between files."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import dit_moe

ROOT = Path(__file__).parent.parent

# A room may import what comes before it.
ROOMS = [
    "dit_moe.storage",
    "dit_moe.config",
    "dit_moe.devices",
    "dit_moe.nn",
    "dit_moe.moe",
    "dit_moe.models",
    "dit_moe.caching",
    "dit_moe.diffusion",
    "dit_moe.autoencoder",
    "dit_moe.data",
    "dit_moe.runs",
    "dit_moe.plan",
    "dit_moe.streaming",
    "dit_moe.sampling",
    "dit_moe.training",
    "dit_moe.pairs",
    "dit_moe.text",
    "dit_moe.surgery",
    "dit_moe.convert",
    "dit_moe.analysis",
    "dit_moe.placement",
    "dit_moe.report",
    "dit_moe.sweep",
    "dit_moe.play",
    "dit_moe",
    "eval",
    "dit_moe.commands",
    "train",
    "sample",
]

# Rooms that know nothing of each other although the order would allow it.
STRANGERS = [
    ("dit_moe.diffusion", "dit_moe.moe"),  # objectives know nothing of experts
    ("dit_moe.nn", "dit_moe.devices"),
    ("dit_moe.training", "dit_moe.analysis"),
]

# `eval` judges pictures, not models, but for the command's way from a run to them. `nn.flat` gives
# any module its parameters by dotted path, those of the feature networks too.
EVAL_MAY_IMPORT = ("dit_moe.config", "dit_moe.data", "dit_moe.nn.flat", "dit_moe.storage", "eval")
EVAL_DRAWS = "eval.run_samples"


def modules() -> dict[str, Path]:
    paths = [*ROOT.glob("dit_moe/**/*.py"), *ROOT.glob("eval/**/*.py")]
    paths += [ROOT / "train.py", ROOT / "sample.py"]
    names = {}
    for path in paths:
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = modules()


def imports(module: str) -> Iterator[str]:
    """The modules of this package that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = _package(module, node)
            # `from package import module` names the module.
            inner = [f"{package}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else package for name in inner]
        yield from (name for name in names if name in MODULES and name != module)


def _package(module: str, node: ast.ImportFrom) -> str:
    """What `from ... import` takes its names from, by its full name."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    above = parts if MODULES[module].name == "__init__.py" else parts[:-1]
    above = above[: len(above) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])


ARROWS = {module: set(imports(module)) for module in MODULES}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] != "dit_moe" else ".".join(parts[:2])


def test_rooms_import_what_comes_before_them():
    unlisted = {room(module) for module in MODULES} - set(ROOMS)
    assert not unlisted, f"{unlisted} are no rooms: add them to ROOMS"
    up = [
        f"{module} imports {target}"
        for module, targets in ARROWS.items()
        for target in targets
        if ROOMS.index(room(target)) > ROOMS.index(room(module))
    ]
    assert not up


def test_no_file_is_part_of_a_circle():
    try:
        list(TopologicalSorter(ARROWS).static_order())
    except CycleError as error:
        raise AssertionError(f"a circle of imports: {' -> '.join(error.args[1])}") from None


def test_strangers():
    met = [
        f"{module} imports {target}"
        for module, targets in ARROWS.items()
        for target in targets
        if (room(module), room(target)) in STRANGERS
        or (
            room(module) == "eval"
            and module != EVAL_DRAWS
            and not f"{target}.".startswith(tuple(f"{name}." for name in EVAL_MAY_IMPORT))
        )
    ]
    assert not met


def test_eval_knows_no_name_of_its_own():
    """A wheel installs it as `dit_moe.eval`, where `eval` would be anyone's."""
    named = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in ROOT.glob("eval/**/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom) and _names_eval(node)
    ]
    assert not named, "import relatively: from .image_sets import ..."


def _names_eval(node: ast.Import | ast.ImportFrom) -> bool:
    if isinstance(node, ast.ImportFrom):
        return not node.level and (node.module or "").partition(".")[0] == "eval"
    return any(alias.name.partition(".")[0] == "eval" for alias in node.names)


def test_names_of_modules_in_texts_are_those_of_the_tree():
    """In docs, messages and sources of other processes, where no import shows that one is old."""
    known = {*MODULES, *(f"dit_moe.{name}" for name in dit_moe.__all__)}
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile", *MODULES.values()]
    texts += [
        *ROOT.glob("tests/**/*.py"),
        *ROOT.glob("benchmarks/*.py"),
        *ROOT.glob("configs/*.py"),
    ]
    stale = []
    for path in texts:
        text = path.read_text()
        named = re.findall(r"(?:from|import|-m) (dit_moe\.[\w.]*\w)", text)
        for names in re.findall(r"from dit_moe import ([\w, ]+)", text):
            named += [f"dit_moe.{name.strip()}" for name in names.split(",")]
        stale += [f"{path.relative_to(ROOT)}: {name}" for name in named if name not in known]
    assert not stale


def test_nothing_lies_loose_in_the_hall():
    loose = {path.name for path in (ROOT / "dit_moe").glob("*.py")}
    assert loose == {"__init__.py"}


# Each would run code or start programs for files that it is given.
UNSAFE = ("Image.open", "tfds.builder_from_directory", "tfds.builder", "tfds.load")


def test_untrusted_files_are_opened_in_one_place():
    found = {
        (name, module)
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in UNSAFE
    }
    assert found == {("Image.open", "dit_moe.storage.pictures")}
