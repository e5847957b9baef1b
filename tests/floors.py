"""Prints pip constraints that hold every dependency to the floor that pyproject.toml promises.

For `make test-floors`: the suite must pass on the oldest releases it says it works with.
"""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
EXTRAS = ["dev", "docs"]


def constraints(requirements: list[str]) -> list[str]:
    """`name>=floor` or `name[extra]>=floor` as `name==floor`.

    Raises:
      ValueError: a requirement has another form.
    """
    pinned = []
    for requirement in requirements:
        match = re.fullmatch(r"([\w.-]+)(?:\[[\w,.-]+\])?>=([\d.]+)", requirement)
        if match is None:
            raise ValueError(f"requirement is {requirement!r}; allowed: name>=floor")
        pinned.append("{}=={}".format(*match.groups()))
    return pinned


if __name__ == "__main__":
    project = tomllib.loads(PROJECT.read_text())["project"]
    extras = [r for extra in EXTRAS for r in project["optional-dependencies"][extra]]
    print(*constraints(project["dependencies"] + extras), sep="\n")
