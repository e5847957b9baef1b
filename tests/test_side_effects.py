"""Importing the package, or loading a model, changes nothing of the process that does so."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for folder in ("dit_moe", "eval")
    for path in ROOT.glob(f"{folder}/**/*.py")
    # They need the extras `beam` and `play`.
    if str(path.relative_to(ROOT))
    not in ("dit_moe/data/prepare/beam_pipeline.py", "dit_moe/play/page.py")
)

SCRIPT = """
import importlib, json, logging, os, resource, signal, sys, threading, warnings

others, modules = json.loads(sys.stdin.read())
for name in others:
    importlib.import_module(name)

import jax

def state():
    loggers = {name: log.level for name, log in logging.root.manager.loggerDict.items()
               if isinstance(log, logging.Logger)}
    return {
        "levels": {**loggers, "root": logging.root.level},
        "handlers": [str(handler) for handler in logging.root.handlers],
        "disabled": logging.root.manager.disable,
        "filters": [str(item) for item in warnings.filters],
        "hooks": [str(getattr(sys, name)) for name in
                  ("excepthook", "unraisablehook", "displayhook", "stdout", "stderr")]
                 + [str(threading.excepthook)],
        "path": list(sys.path),
        "recursion": sys.getrecursionlimit(),
        "environment": dict(os.environ),
        "jax": {name: str(value) for name, value in jax.config.values.items()},
        "signals": [str(signal.getsignal(number)) for number in signal.valid_signals()],
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "threads": threading.active_count(),
        "backends": list(jax._src.xla_bridge._backends),
    }

before = state()
for name in modules:
    importlib.import_module(name)
after = state()
for kind, value in before.items():
    if isinstance(value, dict):  # loggers that a module makes for itself are no change
        value, after[kind] = ({k: v for k, v in part.items() if k in value or v}
                              for part in (value, after[kind]))
    assert after[kind] == value, f"{kind}: {value} became {after[kind]}"
"""


def others() -> set[str]:
    """The modules outside of the project that importing it imports, whose effects are not ours."""
    names = set()
    for module in MODULES:
        path = ROOT / Path(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module)
    return {name for name in names if name.partition(".")[0] not in ("dit_moe", "eval")}


def test_importing_everything_changes_nothing():
    subprocess.run(
        [sys.executable, "-W", "default", "-c", SCRIPT],
        input=json.dumps([sorted(others()), MODULES]),
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=True,
        timeout=120,
    )
