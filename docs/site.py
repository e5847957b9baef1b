"""The pages of the site that are no files of docs/: those of the root, and a reference page a room.

A hook of MkDocs (mkdocs.yml). Markdown knows nothing of it: README.md links to docs/NAME.md, as a
reader of the repository needs.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
OF_THE_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": None, "CHANGELOG.md": None}


def rooms() -> list[str]:
    """The packages of the code, by their full names."""
    inner = sorted(path.parent.name for path in ROOT.glob("dit_moe/*/__init__.py"))
    return ["dit_moe", *(f"dit_moe.{name}" for name in inner), "eval"]


def reference(room: str) -> str:
    """Markdown of a room's page: everything public in it, with its docstrings."""
    # The pages of its rooms hold what is in them.
    options = "    options: {show_submodules: false}\n" if room == "dit_moe" else ""
    return f"# {room}\n\n::: {room}\n{options}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    for name, page in OF_THE_ROOT.items():
        text = (ROOT / name).read_text().replace("](docs/", "](")
        files.append(File.generated(config, page or name, content=text))
    for room in rooms():
        files.append(File.generated(config, f"reference/{room}.md", content=reference(room)))
    return files
