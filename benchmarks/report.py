"""Runs a set of benchmarks and writes what they print into docs/benchmarks.md.

The part between the marks of the set is replaced, with date, machine and versions; the rest of the
page stays. A benchmark that fails is named there.
"""

import argparse
import datetime
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.timing import machine
from dit_moe.storage.files import atomic

PAGE = Path("docs/benchmarks.md")

SETS = {
    # Within a quarter of an hour on two cores.
    "cpu": [
        "moe_layer --experts 8,32,64 --loads balanced,zipf --peers torch --repeats 3",
        "moe_layer --experts 32 --loads one-hot --peers torch --repeats 3",
        "train_step --models DiT-MoE-S/2-8E2A DiT-S/2 ProMoE-S/2 DiT-MoE-S/2-16E2A --repeats 2",
        "train_step --models configs/digits.py:dit configs/digits.py:promoe --batch_size 128",
        "sample_beside_torch",
        "sample",
        "rematerialisation",
        "compile_time --repeats 1",
    ],
    "gpu": [
        "moe_layer --dtype bfloat16 --peers ragged",
        "moe_layer --dtype bfloat16 --backend blocked --peers ragged",
        "moe_layer --dtype bfloat16 --width 1152 --hidden 4608 --tokens 16384 --peers ragged",
        "accelerator --models DiT-XL/2 DiT-MoE-XL/2-8E2A ProMoE-XL/2",
        "sample --config configs/promoe.py:XL/2",
    ],
}


def run(command: str) -> str:
    """What `python -m benchmarks.<command>` prints, as a section."""
    print(f"python -m benchmarks.{command}", flush=True)
    start = time.perf_counter()
    arguments = [sys.executable, "-m", *f"benchmarks.{command}".split()]
    done = subprocess.run(arguments, capture_output=True, text=True)
    text = done.stdout.strip()
    if done.returncode:
        reason = done.stderr.strip().splitlines() or ["killed, as where memory ends"]
        text += f"\nfailed: {reason[-1]}"
    print(f"{text}\n[{time.perf_counter() - start:.0f} s]\n", flush=True)
    # Tables are drawn, text keeps its columns.
    body = text if "\n|---" in text else f"```\n{text}\n```"
    return (
        f"`python -m benchmarks.{command}`\n\n{body.replace(chr(10) + '|', chr(10) * 2 + '|', 1)}"
    )


def _split(begin: str, end: str) -> tuple[str, str]:
    """The page before and after the marks."""
    parts = re.split(f"{begin}.*?{end}", PAGE.read_text(), flags=re.DOTALL)
    if len(parts) != 2:
        sys.exit(f"{PAGE} must have one {begin} and one {end} behind it")
    return parts[0], parts[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=SETS)
    name = parser.parse_args().set
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    _split(begin, end)  # before a quarter of an hour is spent
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    head = f"{datetime.date.today()}; {machine()}; {load}."
    sections = "\n\n".join([head, *map(run, SETS[name])])
    before, after = _split(begin, end)
    page = f"{before}{begin}\n\n{sections}\n\n{end}{after}"
    with atomic(PAGE) as temporary:
        temporary.write_text(page)
    print(f"Wrote {PAGE}.")


if __name__ == "__main__":
    main()
