"""`metrics.csv` of a run: one row a log line, of its step and the means since the last."""

import math
from collections.abc import Mapping, Sequence

from etils import epath

from dit_moe.devices import hosts
from dit_moe.storage.files import atomic


class MetricsTable:
    """Appends to `metrics.csv`. When it is read, what has no place in it is left out.

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
        self._last_step: int | None = None
        if self._path.exists():
            rows = self._rows_to(first_step)
            self._write(rows)
            self._last_step = int(rows[-1][0]) if rows else None

    def append(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds a row; a NaN is an empty cell. A new column is empty in the rows before. What is
        told of the last row's step once more becomes part of that row.

        Raises:
          OSError: the file cannot be read or written.
        """
        cells = {k: "" if math.isnan(v) else f"{v:.6g}" for k, v in scalars.items()}
        known = self._path.exists() and scalars.keys() <= set(self._fields)
        if known and step != self._last_step:
            with self._path.open("a") as file:
                file.write(_text([self._row(step, cells)]))
        else:
            self._rewrite(step, cells)
        self._last_step = step

    def _rewrite(self, step: int, cells: dict[str, str]) -> None:
        """Writes the file again, with the columns that it lacks, and a row more or a fuller one."""
        rows = self._rows_to(step) if self._path.exists() else []
        if rows and rows[-1][0] == str(step):
            cells = dict(zip(self._fields[1:], rows.pop()[1:], strict=True)) | cells
        fields = self._fields if rows else []
        self._fields = [*dict.fromkeys(["step", *fields, *cells])]
        wide = [row + [""] * (len(self._fields) - len(row)) for row in rows]
        self._write([*wide, self._row(step, cells)])

    def _row(self, step: int, cells: Mapping[str, str]) -> list[str]:
        return [str(step), *(cells.get(name, "") for name in self._fields[1:])]

    def _write(self, rows: Sequence[list[str]]) -> None:
        with atomic(self._path) as temporary:
            temporary.write_text(_text([self._fields, *rows] if self._fields else []))

    def _rows_to(self, last_step: int) -> list[list[str]]:
        """The whole rows of the file up to a step; what else it loses is kept aside."""
        whole = self._path.read_bytes()
        # Not by the csv module: no cell has quotes, and damage must not join lines.
        text = whole.decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
        header, *rows = [line.split(",") for line in text.split("\n")]
        rows, unfinished = rows[:-1], rows[-1:]
        known = header[0] == "step" and len({*header}) == len(header) > 1 and unfinished
        self._fields = header if known else []
        kept, damaged, last = [], not self._fields and bool(whole), -1
        for row in rows:
            step = _step(row, self._fields)
            if step is None or step <= last:
                damaged = True
            elif step <= last_step:
                kept.append(row)
                last = step
        if damaged:
            aside = self._path.with_name("damaged-metrics.csv")
            with atomic(aside) as temporary:
                temporary.write_bytes(whole)
            hosts.say(f"{self._path} is damaged: {len(kept)} rows are kept, and {aside} has all.")
        return kept


def _text(lines: Sequence[list[str]]) -> str:
    return "".join(",".join(line) + "\n" for line in lines)


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
