"""Trust in paths that only this user or root could redirect.

A folder that others may write, or a link that another user made, lets that user put another file
in the place of ours.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_LINKS = 40
"""Most links that the kernel follows."""

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def foreign_link(path: Path) -> str:
    """Return the link on the way to `path` that another user made; empty: there is none."""
    for at, found in on_the_way(path):
        if stat.S_ISLNK(found.st_mode) and not is_trusted(found.st_uid):
            return f"{at} is a link that user {found.st_uid} made, not we ({os.geteuid()}) or root"
    return ""


def untrusted(path: Path) -> str:
    """Return a sentence on the power of others over the file at `path`; empty: only we or root.

    Every folder and link on the way counts. A folder that others may write is trusted only above
    the last one, and only if it is sticky, as /tmp is. Above the last one a user namespace may hide
    the owner of a folder: there the host's root is shown as the overflow user.

    Raises:
        OSError: it is missing, or may not be looked at.
    """
    passed = list(on_the_way(path))
    folders = [at for at, found in passed if stat.S_ISDIR(found.st_mode)]
    for at, found in passed:
        above = at in folders[:-1] and _is_unmapped(found.st_uid)
        if not above and not is_trusted(found.st_uid):
            return f"{at} belongs to user {found.st_uid}, not to us ({os.geteuid()}) or root"
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if stat.S_ISLNK(found.st_mode) or (sticky and at != folders[-1]):
            continue
        if found.st_mode & _OTHERS_WRITE:
            return f"{at} may be written by others: chmod go-w {at}"
    return ""


def is_trusted(uid: int) -> bool:
    """Tell whether this user's files are as good as our own."""
    return uid in {0, os.geteuid()}


def _is_unmapped(uid: int) -> bool:
    """Tell whether a user namespace hides the owner."""
    try:
        overflow = int(Path("/proc/sys/kernel/overflowuid").read_text())
        inside, outside, count = map(int, Path("/proc/self/uid_map").read_text().split()[:3])
    except (OSError, ValueError):
        return False
    return uid == overflow and (inside, outside, count) != (0, 0, 0xFFFFFFFF)


def on_the_way(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield each folder, link and file that the kernel passes on the way to `path`, with its lstat.

    A missing part ends it.

    Raises:
        OSError: a part may not be looked at, or the links lead in a circle.
    """
    at, links = Path("/"), 0
    parts = [*reversed(path.absolute().parts)]
    while parts:
        part = parts.pop()
        if part == "..":
            at = at.parent
            continue
        try:
            found = (at / part).lstat()
        except FileNotFoundError:
            return
        yield at / part, found
        if not stat.S_ISLNK(found.st_mode):
            at /= part
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        parts += reversed((at / part).readlink().parts)
