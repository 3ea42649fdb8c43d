"""Table of nvidia-smi's CSV output with a header, by column name."""

from __future__ import annotations

import csv
import re
from typing import Final

from broker.devices.sample import text

_VERSION: Final = re.compile(r"\d{3,4}\.\d+|0\.0")


def lines(printed: str) -> list[str]:
    """Return a program's output lines as printable ASCII, without empty ones."""
    return [text(line)[:200] for line in printed.splitlines() if text(line)]


def records_of(
    printed: str, header_has: frozenset[str]
) -> tuple[list[dict[str, str]] | None, list[str]]:
    """Return the rows under the header, by column name, and all lines that are not rows.

    The header is the first line that has all columns of `header_has`; None: no line has them.

    nvidia-smi does not quote: a comma in a name makes the row longer than the header. A row
    that is longer for another reason, such as commas in numbers, is none: its cells are shifted.
    """
    header: list[str] = []
    records: list[dict[str, str]] = []
    remarks: list[str] = []
    for row in csv.reader(printed.splitlines(), skipinitialspace=True):
        cells = [cell.strip() for cell in row]
        columns = [cell.split(" [")[0] for cell in cells]
        if not header and header_has <= set(columns):
            header = columns
        elif not header or len(cells) < len(header):
            remarks += lines(", ".join(cells))
        else:
            if "name" in header and len(cells) > len(header):
                at, end = header.index("name"), header.index("name") + len(cells) - len(header) + 1
                cells[at:end] = [", ".join(cells[at:end])]
                said = dict(zip(header, cells, strict=False))
                if not _VERSION.match(said.get("driver_version", "0.0")):
                    remarks += lines(", ".join(cells))
                    continue
            records.append(dict(zip(header, cells, strict=False)))
    return records if header else None, remarks


def told(record: dict[str, str], column: str) -> str:
    """Return the cell, or "" for `[N/A]`, `N/A`, `[Not Supported]`, `ERR!` and their like."""
    cell = text(record.get(column))
    return "" if cell.startswith("[") or cell in {"N/A", "ERR!"} else cell
