"""The layers of the package: a module imports only from layers below its own, or beside it."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Lowest first. Modules that are not listed belong to the entry of their folder.
LAYERS = [
    {
        "dit_moe.config.command_line",
        "dit_moe.config",
        "dit_moe.config.files",
        "dit_moe.storage.files",
        "dit_moe.storage.hub",
        "dit_moe.storage.images",
        "dit_moe.storage.pickles",
        "dit_moe.storage.records",
    },
    {"dit_moe.devices.hosts"},
    {"dit_moe.config.presets", "dit_moe.moe"},
    {"dit_moe.nn", "dit_moe.autoencoder"},
    {"dit_moe.diffusion", "dit_moe.data", "dit_moe.convert"},
    {
        "dit_moe.sampling.guides",
        "dit_moe.sampling.sampler",
        "dit_moe.sampling.known_images",
        "dit_moe.training",
        "dit_moe.plan",
        "dit_moe.sampling.rendering",
        "dit_moe.runs.writer",
    },
    {"dit_moe.runs.loading"},
    {
        "dit_moe.sampling.sample_parts",
        "dit_moe.sampling.sample_set",
        "dit_moe.training.loop",
        "dit_moe.training.origin",
        "dit_moe",
        "dit_moe.data.preview",
        "dit_moe.convert.importing",
        "dit_moe.convert.export",
        "dit_moe.surgery.upcycle",
        "dit_moe.convert.command",
        "dit_moe.convert.__main__",
        "dit_moe.analysis",
        "dit_moe.report",
        "eval",
    },
    {"train", "sample"},
]

FORBIDDEN = [
    ("dit_moe.diffusion", "dit_moe.moe"),  # objectives know nothing of experts
    ("dit_moe.moe", "dit_moe.storage.images"),
]

# It judges files, not models,
EVAL_MAY_IMPORT = (
    "dit_moe.config.command_line",
    "dit_moe.config",
    "dit_moe.data",
    "dit_moe.storage.files",
    "dit_moe.storage.pickles",
    "dit_moe.storage.records",
    "eval",
)
# but for the command's way from a run to images.
EVAL_EXCEPTIONS = {("eval.run_samples", "dit_moe.sampling.sample_set")}


def modules() -> dict[str, Path]:
    paths = [*ROOT.glob("dit_moe/**/*.py"), *ROOT.glob("eval/**/*.py")]
    paths += [ROOT / "train.py", ROOT / "sample.py"]
    names = {}
    for path in paths:
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` names the module.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("dit_moe", "eval")}


def layer(module: str) -> int:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        for index, names in enumerate(LAYERS):
            if prefix in names:
                return index
    raise AssertionError(f"{module} belongs to no layer: add it to LAYERS")


def test_imports_flow_one_way():
    known = modules()
    wrong = []
    for module, path in known.items():
        for name in imports(path):
            target = name if name in known else name.rpartition(".")[0]
            if target == module or target not in known:
                continue
            if layer(target) > layer(module):
                wrong.append(f"{module} imports {target}")
            allowed = target.startswith(EVAL_MAY_IMPORT) or (module, target) in EVAL_EXCEPTIONS
            if module.startswith("eval") and not allowed:
                wrong.append(f"{module} imports {target}")
            wrong += [
                f"{module} imports {target}"
                for above, below in FORBIDDEN
                if f"{module}.".startswith(f"{above}.") and f"{target}.".startswith(f"{below}.")
            ]
    assert not wrong


# Each would run code or start programs for files that it is given.
UNSAFE = ("Image.open", "tfds.builder_from_directory", "tfds.builder", "tfds.load")


def test_untrusted_files_are_opened_in_one_place():
    found = {
        (name, module)
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in UNSAFE
    }
    assert found == {("Image.open", "dit_moe.storage.pictures")}
