"""Repair of the embedded store's append-only file, so that the server takes it again.

The server takes a file with a missing end, and dies at one that ends in garbage, as a power cut
leaves it. Here such a file is cut after its last whole command, or transaction; if that does not
help, all files are set aside. The removed parts stay beside them.
"""

from __future__ import annotations

import os
import re
import time
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = "appendonlydir"

_MANIFEST = "appendonly.aof.manifest"

_PART = re.compile(r"appendonly\.aof\.(\d+)\.(base|incr)\.(?:aof|rdb)")

_LINE_BYTES = 1024


def find_again(state_dir: Path) -> str:
    """Write a missing list of the files anew: without it a server would begin without them.

    Returns:
        The repair, in a sentence; empty: there was none.
    """
    folder = state_dir / FOLDER
    manifest = folder / _MANIFEST
    parts = sorted(
        (match[2], int(match[1]), path.name)
        for path in folder.glob("appendonly.aof.*")
        if (match := _PART.fullmatch(path.name))
    )
    if manifest.exists() or not parts:
        return ""
    newest_base = max((number for kind, number, _ in parts if kind == "base"), default=0)
    lines = [
        f"file {name} seq {number} type {kind[0]}\n"
        for kind, number, name in parts
        if kind == "incr" or number == newest_base
    ]
    manifest.write_text("".join(lines))
    return f"{manifest} was gone: it is written anew"


def cut(state_dir: Path) -> str:
    """Cut the last file after its last whole command; the rest stays beside it.

    Returns:
        The repair, in a sentence; empty: the file is whole, or missing.
    """
    found = sorted(
        (int(match[1]), path)
        for path in (state_dir / FOLDER).glob("*.incr.aof")
        if (match := _PART.fullmatch(path.name))
    )
    if not found:
        return ""
    path = found[-1][1]
    size = path.stat().st_size
    with path.open("r+b") as file:
        end = whole_bytes(file)
        if end == size:
            return ""
        file.seek(end)
        kept = path.with_name(f"{path.name}.cut-{_moment()}")
        kept.write_bytes(file.read())
        file.truncate(end)
        os.fsync(file.fileno())
    return f"{path} was no good after byte {end} of {size}: what was cut off is in {kept}"


def set_aside(state_dir: Path) -> str:
    """Make the server begin anew without the files; return their new place in a sentence."""
    folder = state_dir / FOLDER
    kept = state_dir / f"{FOLDER}.damaged-{_moment()}"
    folder.rename(kept)
    return f"{folder} could not be read: it is in {kept}, and the store begins anew"


def whole_bytes(file: IO[bytes]) -> int:
    """Return the bytes of whole commands in a file; one transaction is whole or nothing."""
    end, inside = file.tell(), False
    while (command := _command(file)) is not None:
        inside = command == b"MULTI" or (inside and command != b"EXEC")
        if not inside:
            end = file.tell()
    return end


def _command(file: IO[bytes]) -> bytes | None:
    """Read a command's name in capitals, empty for a comment; None: there is no whole command."""
    line = file.readline(_LINE_BYTES)
    if line.startswith(b"#") and line.endswith(b"\n"):
        return b""
    count = _number(line, b"*")
    if not count:
        return None
    name = b""
    for at in range(count):
        length = _number(file.readline(_LINE_BYTES), b"$")
        word = b"" if length is None else file.read(length + 2)
        if length is None or len(word) < length + 2 or not word.endswith(b"\r\n"):
            return None
        name = word[:-2].upper() if at == 0 else name
    return name


def _number(line: bytes, sign: bytes) -> int | None:
    """Return the number of a line such as `*3`; None: it is no such line."""
    digits = line[1:-2]
    good = line.startswith(sign) and line.endswith(b"\r\n") and digits.isdigit()
    return int(digits) if good else None


def _moment() -> str:
    return time.strftime("%Y%m%d-%H%M%S")
