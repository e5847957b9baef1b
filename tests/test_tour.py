"""The notebook that tours the package. Trains a little: run by `make test-slow`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = json.loads((ROOT / "docs" / "tour.ipynb").read_text())


def program() -> str:
    """The cells of code: plain Python, which needs no kernel."""
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 5
    return "\n".join("".join(cell["source"]) for cell in cells)


@pytest.mark.slow
def test_its_cells_run(tmp_path):
    # From the folder of the notebook, as Jupyter does, and without the suite's XLA flags.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"MPLBACKEND": "Agg", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program()]
    docs = ROOT / "docs"
    done = subprocess.run(command, cwd=docs, env=environment, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert "images/s" in done.stdout  # the last cell's plan


def test_it_is_small():
    assert (ROOT / "docs" / "tour.ipynb").stat().st_size < 100_000
    kinds = {
        output["output_type"] for cell in NOTEBOOK["cells"] for output in cell.get("outputs", [])
    }
    assert "error" not in kinds
    assert "stream" in kinds  # it was run
