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
from dit_moe.files import atomic

PAGE = Path("docs/benchmarks.md")

SETS = {
    # Within a quarter of an hour on two cores.
    "cpu": [
        "moe_layer --experts 8,32,64 --loads balanced,zipf --peers torch --repeats 3",
        "moe_layer --experts 32 --loads one-hot --peers torch --repeats 3",
        "train_step --models DiT-S/2 DiT-MoE-S/2-8E2A DiT-MoE-S/2-32E2A --repeats 2",
        "sample",
        "rematerialisation",
        "compile_time --repeats 1",
    ],
    "gpu": [
        "moe_layer --dtype bfloat16 --peers torch",
        "moe_layer --dtype bfloat16 --width 1152 --hidden 4608 --tokens 16384 --peers torch",
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
        text += f"\nfailed: {done.stderr.strip().splitlines()[-1]}"
    print(f"{text}\n[{time.perf_counter() - start:.0f} s]\n", flush=True)
    # Tables are drawn, text keeps its columns.
    body = text if "\n|---" in text else f"```\n{text}\n```"
    return (
        f"`python -m benchmarks.{command}`\n\n{body.replace(chr(10) + '|', chr(10) * 2 + '|', 1)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=SETS)
    name = parser.parse_args().set
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    page = PAGE.read_text()
    if page.count(begin) != 1 or page.count(end) != 1:
        sys.exit(f"{PAGE} must have one {begin} and one {end}")
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    head = f"{datetime.date.today()}; {machine()}; {load}."
    sections = "\n\n".join([head, *map(run, SETS[name])])
    page = re.sub(
        f"{begin}.*?{end}", lambda _: f"{begin}\n\n{sections}\n\n{end}", page, flags=re.DOTALL
    )
    with atomic(PAGE) as temporary:
        temporary.write_text(page)
    print(f"Wrote {PAGE}.")


if __name__ == "__main__":
    main()
