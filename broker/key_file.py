"""File of the API keys: read with suspicion, changed by one writer at a time.

A change takes a lock beside the file, writes a draft, gives it the file's mode, owner and ACL, and
replaces the file in one step: a reader sees the old keys or the new ones.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent_sdk.store.trusted_path import untrusted

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES: Final = 1_048_576

LOCK_S: Final = 10.0
"""Seconds that a writer waits for earlier ones."""

_POLL_S: Final = 0.02

_NOT_COPIED: Final = frozenset({"security.ima", "security.evm", "security.capability"})
"""Attributes that describe the exact content of a file."""


class KeysError(ValueError):
    """Error of a key file or of its change; the message says what to do."""


def read_text(path: Path) -> str | None:
    """Read a key file; return None without a file.

    Raises:
        KeysError: others could have written it, it is no text file, or it may not be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        if why := untrusted(path):
            raise KeysError(f"the keys in {path} cannot be trusted: {why}")
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise KeysError(f"{path} is no file: keys cannot be read from it")
        return _text(path, os.read(handle, MAX_BYTES + 1))
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(handle)


def _text(path: Path, content: bytes) -> str:
    if len(content) > MAX_BYTES:
        raise KeysError(f"{path} is larger than {MAX_BYTES} bytes: it is no key file")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise KeysError(f"{path} is no UTF-8 text: it is no key file") from None


def _unreadable(path: Path, error: OSError) -> KeysError:
    return KeysError(
        f"{path} cannot be read by user {os.geteuid()} ({error.strerror}): give it read access to "
        "the file, which holds SHA-256 alone, and to its folders"
    )


@contextmanager
def alone(path: Path) -> Iterator[Path]:
    """Lock a key file for a change, and yield its real path, behind any links.

    A missing folder is made.

    Raises:
        KeysError: others could change the folder's content, or held the lock for too long.
        OSError: the folder cannot be used.
    """
    where = path.resolve()
    where.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if why := untrusted(path.parent) or untrusted(where.parent):
        raise KeysError(f"keys in {path} could not be trusted: {why}")
    lock = where.parent / f".{where.name}.lock"
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(handle, 0o600)  # independent of the umask
        _lock(handle, lock)
        yield where
    finally:
        os.close(handle)


def _lock(handle: int, name: Path) -> None:
    until = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise KeysError(
                    f"another gpu-broker keys has held {name} for {LOCK_S:g} s"
                ) from None
            time.sleep(_POLL_S)
        else:
            return


def replace(where: Path, text: str) -> None:
    """Replace the file's content by `text`, all or nothing; the same users may read it.

    A new file is its owner's alone.

    Raises:
        KeysError: the new file could not have the owner, mode and ACL of the old one.
        OSError: the file cannot be written.
    """
    handle, name = tempfile.mkstemp(dir=where.parent, prefix=f".{where.name}-")
    draft = Path(name)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            _dress(file.fileno(), where)
            os.fsync(file.fileno())
        draft.replace(where)
        _sync_folder(where.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _dress(draft: int, like: Path) -> None:
    """Give a draft the owner, mode and attributes of the file that it replaces."""
    try:
        old = like.stat()
    except FileNotFoundError:
        return
    new = os.fstat(draft)
    try:
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            os.fchown(draft, old.st_uid, old.st_gid)
        attributes = _attributes(like)
        for inherited in _attributes(draft).keys() - attributes.keys():
            if inherited.startswith("system."):  # the folder's default ACL
                os.removexattr(draft, inherited)
        os.fchmod(draft, stat.S_IMODE(old.st_mode))
        for attribute, value in attributes.items():
            if _attributes(draft).get(attribute) != value:
                os.setxattr(draft, attribute, value)
    except OSError as error:
        raise KeysError(
            f"{like} was left as it is: a new one could not have its owner ({old.st_uid}:"
            f"{old.st_gid}), mode and ACL ({error.strerror}): do this as its owner or as root"
        ) from error


def _attributes(file: Path | int) -> dict[str, bytes]:
    """Return a file's extended attributes, its ACL among them."""
    try:
        names = os.listxattr(file)
    except OSError as error:
        if error.errno in {errno.ENOTSUP, errno.ENOSYS}:
            return {}
        raise
    return {name: os.getxattr(file, name) for name in names if name not in _NOT_COPIED}


def _sync_folder(folder: Path) -> None:
    """Make a renaming last: a revoked key must not be back after a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
