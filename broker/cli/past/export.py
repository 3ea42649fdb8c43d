"""Export of finished leases to a file, in parts: memory stays bounded, however many there are."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Protocol

import click

from agent_sdk.usage.history import START
from agent_sdk.usage.period import at_ms
from broker.cli.past.finished import COLUMNS, record
from broker.cli.past.use_table import csv_text
from broker.text.screen import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from agent_sdk import LeaseClient
    from agent_sdk.usage.period import Instant

FORMS: Final = ("jsonl", "csv", "parquet")

STDOUT: Final = "-"

PAGE: Final = 1000

TELL_S: Final = 2.0
"""Seconds between two lines about how far it is."""

NEEDS_PYARROW: Final = (
    "Parquet needs pyarrow: pip install 'gpu-lease-broker[parquet]'; or --format csv or jsonl"
)


class Sink(Protocol):
    """Writer of records."""

    def write(self, records: Sequence[dict[str, Any]]) -> None:
        """Add records."""


class _Text:
    """Writer of records as JSON, one a line, or as CSV with a head.

    Args:
        form: jsonl or csv.
        write: takes whole lines, without the last one's end.
    """

    def __init__(self, form: str, write: Callable[[str], object]) -> None:
        self._form, self._write = form, write
        if form == "csv":
            write(csv_text(tuple(COLUMNS), []))

    def write(self, records: Sequence[dict[str, Any]]) -> None:
        if not records:
            return
        if self._form == "csv":
            self._write(csv_text(tuple(COLUMNS), records).partition("\n")[2])
        else:
            self._write("\n".join(map(json.dumps, records)))


def form_of(path: str, asked: str | None) -> str:
    """Return the form of a file: the one asked for, or by the end of its name."""
    end = Path(path).suffix.removeprefix(".").lower()
    form = asked or (end if end in FORMS else "jsonl" if path == STDOUT else "")
    if not form:
        raise click.UsageError(f"say --format {', '.join(FORMS)}: the name {path} has no such end")
    if form == "parquet" and path == STDOUT:
        raise click.UsageError("Parquet goes to a file, not to stdout")
    return form


def export(client: LeaseClient, path: str, form: str, **wanted: Any) -> int:
    """Write the finished leases that are wanted; return their number.

    A file is complete or is not there: it gets its name at the end.
    """
    since: Instant | None = wanted.pop("since")
    since_ms = None if since is None else at_ms(since, client.pool().now_ms)
    count, after, more, told_at = 0, START, True, time.monotonic()
    with _sink(path, form) as sink:
        while more:
            page = client.history(after=after, limit=PAGE, since=since_ms, **wanted)
            sink.write([record(lease) for lease in page.leases])
            count, after, more = count + len(page.leases), page.last, page.more
            if more and time.monotonic() - told_at > TELL_S:
                told_at = time.monotonic()
                say(f"gpu-broker: {count} finished leases so far", err=True)
    return count


@contextmanager
def _sink(path: str, form: str) -> Iterator[Sink]:
    """Open a file, or stdout, for records; an error leaves no file behind.

    The file behind a link is replaced, and not the link; a pipe or a device is written to.
    """
    if path == STDOUT:
        yield _Text(form, say)
        return
    named = Path(path)
    if named.exists() and not named.is_file():
        with _written(named, form) as sink:
            yield sink
        return
    where = named.resolve()
    part = where.with_name(f"{where.name}.part")
    try:
        with _written(part, form) as sink:
            yield sink
        part.replace(where)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


@contextmanager
def _written(path: Path, form: str) -> Iterator[Sink]:
    """Open a file for records."""
    if form == "parquet":
        with path.open("wb") as binary, _parquet(binary) as sink:
            yield sink
    else:
        with path.open("w", encoding="utf-8", newline="") as out:
            yield _Text(form, lambda lines: out.write(f"{lines}\n"))


def _parquet(binary: IO[bytes]) -> Any:
    try:
        from broker.cli.past.parquet import ParquetFile  # noqa: PLC0415 - only with its extra
    except ModuleNotFoundError as missing:
        if missing.name != "pyarrow":
            raise
        raise click.ClickException(NEEDS_PYARROW) from missing
    return ParquetFile(binary)
