"""`metrics.csv` of a run: one row a log line, of its step and the means since the last."""

import math
from collections.abc import Mapping

from etils import epath

from dit_moe.devices import hosts
from dit_moe.storage.files import atomic


class MetricsTable:
    """Appends to `metrics.csv`. What has no place in it once it is reopened is left out.

    Where that is more than rows that are done again and a last row half-written, the file is kept
    as it was, as `damaged-metrics.csv`, and a line printed.

    Args:
      workdir: the run folder, of this machine.
      first_step: rows after it are dropped, since their steps are about to be done again.

    Raises:
      OSError: the file cannot be read or written.
    """

    def __init__(self, workdir: epath.Path, first_step: int):
        self._path = workdir / "metrics.csv"
        self._fields: list[str] = []
        if self._path.exists():
            self._reopen(first_step)

    def append(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds a row of the columns that the first row had; a NaN is an empty cell.

        Raises:
          OSError: the file cannot be written.
        """
        cells = {k: "" if math.isnan(v) else f"{v:.6g}" for k, v in scalars.items()}
        lines = [[str(step), *(cells.get(name, "") for name in self._fields[1:])]]
        if not self._fields or not self._path.exists():
            self._fields = ["step", *scalars]
            lines = [self._fields, [str(step), *cells.values()]]
        with self._path.open("a") as file:
            file.write("".join(",".join(line) + "\n" for line in lines))

    def _reopen(self, first_step: int) -> None:
        whole = self._path.read_bytes()
        # Not by the csv module: no cell has quotes, and damage must not join lines.
        text = whole.decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
        header, *rows = [line.split(",") for line in text.split("\n")]
        rows, unfinished = rows[:-1], rows[-1:]
        self._fields = header if header[0] == "step" and len(header) > 1 and unfinished else []
        kept, damaged, last = [], not self._fields and bool(whole), -1
        for row in rows:
            step = _step(row, self._fields)
            if step is None or step <= last:
                damaged = True
            elif step <= first_step:
                kept.append(row)
                last = step
        if damaged:
            aside = self._path.with_name("damaged-metrics.csv")
            with atomic(aside) as temporary:
                temporary.write_bytes(whole)
            hosts.say(f"{self._path} is damaged: {len(kept)} rows are kept, and {aside} has all.")
        with atomic(self._path) as temporary:
            lines = [self._fields, *kept] if self._fields else []
            temporary.write_text("".join(",".join(line) + "\n" for line in lines))


def _step(row: list[str], fields: list[str]) -> int | None:
    """The step of a row, if it is whole."""
    if len(row) != len(fields):
        return None
    try:
        for cell in row[1:]:
            float(cell or "nan")
        return int(row[0])
    except ValueError:
        return None
