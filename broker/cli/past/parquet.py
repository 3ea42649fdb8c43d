"""Parquet files of records, with pyarrow."""

from __future__ import annotations

from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, Final

import pyarrow as pa
from pyarrow import parquet

from broker.cli.past.finished import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

TYPES: Final = {
    "text": pa.string(),
    "number": pa.int64(),
    "fraction": pa.float64(),
    "time": pa.timestamp("ms", tz="UTC"),
}

GROUP: Final = 20_000
"""Records of a row group: so many are held in memory."""

MOST: Final = 2**63 - 1
"""Largest number of a column."""


class ParquetFile:
    """Writer of records to a file that is open for bytes; it is complete when the block ends.

    Args:
        file: where it is written to.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._schema = pa.schema([(name, TYPES[kind]) for name, kind in COLUMNS.items()])
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._kept: list[dict[str, Any]] = []

    def write(self, records: Sequence[dict[str, Any]]) -> None:
        """Add records."""
        self._kept += map(_typed, records)
        if len(self._kept) >= GROUP:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._kept, schema=self._schema))
        self._kept = []

    def __enter__(self) -> Self:
        """Begin the file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the file: without an error it is complete."""
        if error is None and self._kept:
            self._flush()
        self._writer.close()


def _typed(record: dict[str, Any]) -> dict[str, Any]:
    return {name: _value(kind, record[name]) for name, kind in COLUMNS.items()}


def _value(kind: str, value: Any) -> Any:
    """Return a value in its column's type; what the type has no room for is None."""
    if kind == "time":
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            return None
    if kind == "number":
        return value if value is None or value <= MOST else None
    return value
